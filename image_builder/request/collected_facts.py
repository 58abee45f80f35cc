"""Checks what `cic_cli here` collects on a machine, before anything is made of it. Pure.

The text is a stranger's: it is bounded, and every value has a shape of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request import cpu_targets
from image_builder.request.machines import PmiName, Provider, Version
from image_builder.request.parsing import load_json

MAX_BYTES = 64 * 1024
"""The largest text of facts; a machine with every known tool has about 5 KB."""

Words = Annotated[str, Field(max_length=8000, pattern=r"^[A-Za-z0-9_.\-]+( [A-Za-z0-9_.\-]+)*$")]
Code = Annotated[str, Field(max_length=10, pattern=r"^0x[0-9a-f]{1,4}$")]
Few = Field(default=(), max_length=64)


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cpu(_Facts):
    """Describes the first CPU of /proc/cpuinfo, in the fields that its architecture has.

    These are vendor and flags on x86, implementer, part and features on ARM, the model on Power,
    and uarch on RISC-V.
    """

    vendor_id: Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z ]+$")] | None = None
    flags: Words | None = None
    implementer: Code | None = None
    part: Code | None = None
    features: Words | None = None
    uarch: Annotated[str, Field(max_length=40, pattern=r"^[a-z0-9,-]+$")] | None = None
    model: (
        Annotated[str, Field(max_length=80, pattern=r"^POWER\d{1,3}[A-Za-z0-9+, ()]*$")] | None
    ) = None


class Gpu(_Facts):
    """Describes the GPU: its driver's version, the newest runtime, its architecture.

    The runtime is the newest that the driver serves. The architecture is such as `8.0` or `gfx90a`.
    """

    vendor: Literal["nvidia", "amd"]
    driver: Version | None = None
    runtime: Version | None = None
    architecture: (
        Annotated[str, Field(max_length=20, pattern=r"^(\d+\.\d+|gfx[0-9a-f]+)$")] | None
    ) = None


class CollectedFacts(_Facts):
    """Holds the facts of one machine, as `cic_cli here` prints them."""

    facts: Literal[1] = Field(description="the version of this form")
    machine: Annotated[str, Field(max_length=20, pattern=r"^[a-z0-9_]+$")] = Field(
        description="what `uname -m` prints", examples=["x86_64"]
    )
    cpu: Cpu
    kernel: Version | None = None
    glibc: Version | None = None
    squashfs: tuple[Provider, ...] = Few
    slurm: Version | None = None
    pmi: tuple[PmiName, ...] = Few
    mpi: tuple[Annotated[str, Field(max_length=60, pattern=r"^[a-z0-9-]+ \d+(\.\d+)*$")], ...] = Few
    pmix: Version | None = None
    libfabric: tuple[Provider, ...] = Few
    ucx: tuple[Provider, ...] = Few
    gpu: Gpu | None = None
    engines: tuple[
        Annotated[str, Field(max_length=60, pattern=r"^[a-z-]+( \d+(\.\d+)*)?$")], ...
    ] = Few


def parse_facts(raw: bytes) -> CollectedFacts:
    """Return the facts that a text holds. Raises `InvalidRequest` with every problem."""
    if len(raw) > MAX_BYTES:
        problem = f"is longer than {MAX_BYTES} bytes"
        raise InvalidRequest([FieldProblem("body", problem, "send what `cic_cli here` prints")])
    try:
        facts = CollectedFacts.model_validate(load_json(raw))
    except ValidationError as error:
        raise InvalidRequest(list(_problems(error))) from None
    if problems := list(_contradictions(facts)):
        raise InvalidRequest(problems)
    return facts


def _problems(error: ValidationError) -> Iterator[FieldProblem]:
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:20]:
        name = ".".join(str(part)[:60] for part in detail["loc"])
        is_unknown = detail["type"] == "extra_forbidden"
        problem = "is not a known fact" if is_unknown else "is not what `cic_cli here` prints"
        printable = "".join(char if char.isprintable() else "?" for char in name)
        yield FieldProblem(
            printable, problem, "run `cic_cli here` on that machine, and send all of it"
        )


def _contradictions(facts: CollectedFacts) -> Iterator[FieldProblem]:
    """Yield what no real machine has: another architecture's CPU, or one without its basic parts."""
    if cpu_targets.platform_of_family(facts.machine) is None:
        families = ", ".join(cpu_targets.facts()["families"].values())
        yield FieldProblem(
            "machine", f"no images are built for {facts.machine}", f"known are {families}"
        )
        return
    given = {name for name, value in facts.cpu.model_dump().items() if value}
    needed, allowed = _CPU_FIELDS[facts.machine]
    for name in sorted(needed - given):
        yield FieldProblem(f"cpu.{name}", f"is missing for a machine of {facts.machine}", _AGAIN)
    for name in sorted(given - allowed):
        yield FieldProblem(
            f"cpu.{name}", f"is of another architecture than {facts.machine}", _AGAIN
        )
    if facts.machine == "x86_64" and not {"lm", "sse2"} <= set(
        (facts.cpu.flags or "lm sse2").split()
    ):
        yield FieldProblem("cpu.flags", "lacks what every x86_64 CPU has (lm, sse2)", _AGAIN)
    if facts.machine == "aarch64" and not {"fp", "asimd"} <= set(
        (facts.cpu.features or "fp asimd").split()
    ):
        yield FieldProblem("cpu.features", "lacks what every aarch64 CPU has (fp, asimd)", _AGAIN)
    if facts.gpu and facts.gpu.architecture:
        is_amd = re.match("gfx", facts.gpu.architecture) is not None
        if is_amd != (facts.gpu.vendor == "amd"):
            yield FieldProblem("gpu.architecture", f"is none of {facts.gpu.vendor}", _AGAIN)


_AGAIN = "run `cic_cli here` on that machine, and send all of it unchanged"
_CPU_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "x86_64": ({"vendor_id", "flags"}, {"vendor_id", "flags"}),
    "aarch64": ({"implementer", "features"}, {"implementer", "part", "features"}),
    "ppc64le": ({"model"}, {"model"}),
    "riscv64": (set(), {"uarch"}),
}
"""The fields that a CPU must have, and those that it may have, by family."""
