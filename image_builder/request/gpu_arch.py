"""Maps names of GPUs and their architectures: `sm_80`, `a100`, `NVIDIA A100-SXM4-40GB`."""

from __future__ import annotations

import functools
import re

from image_builder.request.cpu_targets import nearest
from image_builder.request.facts import gpu_facts
from image_builder.spack import version_ranges

_VENDOR_WORDS = frozenset(
    {"nvidia", "amd", "instinct", "tesla", "geforce", "quadro", "radeon", "pro", "gpu", "jetson"}
)
_LONGEST_NAME = 3
"""The most words of a product's name, such as `RTX 6000 Ada`."""


class UnknownArchitecture(ValueError):
    """The runtime does not have this GPU architecture; `hint` says what to write."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def architecture_of(asked: str, runtime: str) -> str:
    """Return the architecture that `asked` names, as packages of a GPU `runtime` call it.

    Raises `UnknownArchitecture`.
    """
    name = asked.strip().lower()
    facts = gpu_facts()["runtimes"][runtime]
    generation = gpu_facts()["generations"].get(re.sub(r"[^a-z0-9]", "", name), ())
    architectures = {gpu_facts()["products"][product]: product for product in generation}
    if len(architectures) > 1:
        raise UnknownArchitecture(
            f"{asked!r} is several architectures", f"write {' or '.join(architectures.values())}"
        )
    found = next(iter(architectures), None) or product_architecture(name) or _plain(name, runtime)
    if re.fullmatch(facts["pattern"], found):
        return found
    raise _unknown(asked, found, runtime)


@functools.lru_cache(maxsize=256)
def product_architecture(name: str) -> str | None:
    """Return the architecture of the product that a text names, such as what `nvidia-smi` prints."""
    products = gpu_facts()["products"]
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in _VENDOR_WORDS]
    words = [word for word in words if word]
    for start in range(len(words)):
        for count in range(_LONGEST_NAME, 0, -1):
            joined = "".join(words[start : start + count])
            if joined in products:
                return str(products[joined])
    return None


def is_product(name: str) -> bool:
    """Return whether a text is the name of a GPU, or of a generation of GPUs."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return letters in gpu_facts()["generations"] or product_architecture(name) is not None


def is_gpu(name: str) -> bool:
    """Return whether a text is the name of a GPU, or of an architecture of GPUs (`sm_80`)."""
    return is_product(name) or re.fullmatch(r"(?:sm|compute)_\d+[af]?|gfx\w+", name) is not None


def runtime_of(architecture: str) -> str | None:
    """Return the GPU runtime that has an architecture, or None."""
    runtimes = gpu_facts()["runtimes"].items()
    return next(
        (name for name, known in runtimes if re.fullmatch(known["pattern"], architecture)), None
    )


def shown(architecture: str) -> str:
    """Return how a vendor writes an architecture: `90` is `sm_90`."""
    return f"sm_{architecture}" if architecture[:1].isdigit() else architecture


def needed_versions(architecture: str) -> str:
    """Return the versions of the runtime whose compiler makes code for an architecture."""
    return str(gpu_facts()["needs"].get(architecture.partition(":")[0], ""))


def version_problem(architecture: str, needed: str, asked: str, called: str) -> str | None:
    """Return what is wrong with a runtime's version for an architecture, or None.

    An example is `sm_90 needs CUDA 11.8 or newer`.
    """
    if version_ranges.overlap(needed, asked):
        return None
    low, high = version_ranges.lowest(needed), version_ranges.highest(needed)
    if low and high:
        return f"{shown(architecture)} needs {called} {low} to {high}"
    return f"{shown(architecture)} needs {called} " + (
        f"{low} or newer" if low else f"{high} or older"
    )


def nearest_version(needed: str, asked: str) -> str:
    """Return the end of a range of versions that is nearer to what was asked for."""
    low, high = version_ranges.lowest(needed), version_ranges.highest(needed)
    return low if low and version_ranges.overlap(f":{low}", asked) else high or low


def _plain(name: str, runtime: str) -> str:
    if runtime != "cuda":
        return name
    return re.sub(r"^(?:sm|compute|cc)[_ -]?(?=\d)", "", name).replace(".", "")


def _unknown(asked: str, found: str, runtime: str) -> UnknownArchitecture:
    facts = gpu_facts()["runtimes"][runtime]
    problem = f"{asked!r} is not an architecture of {runtime}"
    other = runtime_of(found)
    if other is not None:
        called = "rocm" if other == "hip" else other
        hint = f'write "gpu": "{called}", or an architecture such as {facts["example"]}'
        return UnknownArchitecture(problem, hint)
    products = [
        product
        for product, architecture in gpu_facts()["products"].items()
        if re.fullmatch(facts["pattern"], architecture)
    ]
    close = (*(nearest(asked, products, 2) if re.search(r"\d", asked) else ()), facts["example"])
    return UnknownArchitecture(problem, f"write {' or '.join(close)}")
