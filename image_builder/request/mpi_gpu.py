"""Maps the MPI and GPU runtime that a machine names to Spack's packages. Pure."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request.build_request import Machine
from image_builder.request.cpu_targets import nearest
from image_builder.spack import spec as spack_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mpi:
    """Describes one MPI: its package, the whole `spec` and the `family` of its binary interface.

    `name` is the package's, and the spec is such as `openmpi@4`.
    """

    name: str
    spec: str
    version: str
    family: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """Describes one GPU runtime: its package, the whole `spec`, and what packages call it.

    The spec is such as `cuda@12`. `variant` is what packages are built with (`+cuda`), `arch` the
    architecture's value (`90`) or None.
    """

    name: str
    spec: str
    version: str
    variant: str
    arch_variant: str
    arch: str | None

    @property
    def settings(self) -> str:
        """Return the variants of a package that uses the GPU: `+cuda cuda_arch=90`."""
        return f"+{self.variant}" + (f" {self.arch_variant}={self.arch}" if self.arch else "")


@functools.cache
def mpi_facts() -> Mapping[str, Mapping[str, Any]]:
    """Return the data file about MPI: `implementations` and `aliases`."""
    return _data("mpi")


@functools.cache
def gpu_facts() -> Mapping[str, Mapping[str, Any]]:
    """Return the data file about GPUs: `runtimes`, `aliases` and `products`."""
    return _data("gpus")


def mpi_of(machine: Machine, release: tuple[int, ...] | None) -> Mpi | None:
    """Return the MPI that a machine asks for, as `release` of Spack calls it, or None.

    Raises `InvalidRequest`.
    """
    if machine.mpi is None:
        return None
    asked, rest = _name_and_rest(machine.mpi, "machine.mpi", "openmpi@4")
    known = mpi_facts()["implementations"]
    name = mpi_facts()["aliases"].get(asked, asked)
    if name not in known:
        close = nearest(asked, [*known, *mpi_facts()["aliases"]]) or ("openmpi", "mpich")
        raise _refused(
            "machine.mpi", f"{asked!r} is not a known MPI", f"write {' or '.join(close)}"
        )
    facts = known[name]
    if (
        release is not None
        and "last_release" in facts
        and release[:2] > _numbers(facts["last_release"])
    ):
        raise _refused(
            "machine.mpi",
            f"Spack {'.'.join(map(str, release))} has no {name}",
            f"write {facts['instead']}, or choose a base image with Spack {facts['last_release']}",
        )
    return Mpi(
        name=name,
        spec=name + rest,
        version=spack_spec.nodes(name + rest)[0].version,
        family=facts["family"],
    )


def gpu_of(machine: Machine) -> Gpu | None:
    """Return the GPU runtime that a machine asks for, or None. Raises `InvalidRequest`."""
    if machine.gpu is None:
        return None
    asked, rest = _name_and_rest(machine.gpu, "machine.gpu", "cuda@12")
    name = gpu_facts()["aliases"].get(asked, asked)
    runtimes = gpu_facts()["runtimes"]
    if name not in runtimes:
        raise _refused(
            "machine.gpu",
            f"{asked!r} is not a known GPU runtime",
            f"write {' or '.join([*runtimes, 'rocm'])}, perhaps with a version such as cuda@12",
        )
    facts = runtimes[name]
    return Gpu(
        name=facts["package"],
        spec=facts["package"] + rest,
        variant=facts["variant"],
        version=spack_spec.nodes(facts["package"] + rest)[0].version,
        arch_variant=facts["arch_variant"],
        arch=_gpu_arch(machine.gpu_arch, name, facts),
    )


def is_mpi(name: str) -> bool:
    """Return whether a package is an MPI."""
    return name in mpi_facts()["implementations"]


def _gpu_arch(asked: str | None, runtime: str, facts: Mapping[str, str]) -> str | None:
    if asked is None:
        return None
    name = asked.lower()
    name = gpu_facts()["products"].get(name, name)
    name = (
        re.sub(r"^(?:sm|compute)_?(?=\d)", "", name).replace(".", "") if runtime == "cuda" else name
    )
    if not re.fullmatch(facts["pattern"], name):
        products = [
            product
            for product, arch in gpu_facts()["products"].items()
            if re.fullmatch(facts["pattern"], arch)
        ]
        close = (*(nearest(asked, products, 2) or products[-1:]), facts["example"])
        raise _refused(
            "machine.gpu_arch",
            f"{asked!r} is not an architecture of {runtime}",
            f"write {' or '.join(close)}",
        )
    return name


def _name_and_rest(spec: str, field: str, example: str) -> tuple[str, str]:
    problem = spack_spec.problem(spec)
    found = spack_spec.nodes(spec)
    if problem or (len(found) > 1 and any(node.sigil == "^" for node in found)):
        raise _refused(
            field,
            problem[0] if problem else "names dependencies",
            f"write a Spack spec such as {example}",
        )
    name = found[0].name
    return name.lower(), spec[len(name) :]


def _refused(field: str, problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest([FieldProblem(field, problem, hint)])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _data(name: str) -> dict[str, dict[str, Any]]:
    text = resources.files("image_builder").joinpath(f"data/{name}.yaml").read_text("utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded
