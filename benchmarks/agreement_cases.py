"""Plan what `benchmarks.agreement` compares with real Spack: machines of the catalogue, and inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from image_builder.docker.base_image import BaseFacts
from image_builder.errors import UserError
from image_builder.recipe.demands import demands_in
from image_builder.recipe.environment import compose
from image_builder.recipe.spack_yaml import Merge, dump
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.machines import load_machines
from image_builder.sources.description import Description, parse_description
from image_builder.sources.spec_lists import roots_in
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.releases import NEWEST_TESTED

PROJECT = Path(__file__).resolve().parents[1]
INPUTS = PROJECT / "tests" / "data" / "inputs.yaml"
CATALOGUE = PROJECT / "tests" / "support" / "real_spack" / "inputs"
FILE = "eflows4hpc.yaml"
SEED = {
    "platform": "linux/amd64",
    "architecture": "rome",
    "container_engine": "singularity",
    "mpi": "openmpi@4",
    "gpu": "cuda@10",
}
"""The machine of the first request in the README."""
PLAIN = {"platform": "linux/amd64", "architecture": "haswell", "container_engine": "singularity"}
"""The machine of inputs that name none."""
STEPS = {"zlib": "[zlib]", "hdf5": "[hdf5+mpi]", "kokkos": "[kokkos]"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A machine and a description: the `spack.yaml` that is planned, or would be if not refused.

    `spack_yaml` None: there is nothing that Spack could be asked. `why_refused` says why something
    is refused that Spack may concretize.
    """

    name: str
    spack_yaml: str | None
    is_accepted: bool = True
    refusal: str = ""
    why_refused: str = ""


def machines(platform: str, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the machines of the catalogue that are of a platform, and the README's first one."""
    known = {name: entry.request_fields() for name, entry in load_machines().items()}
    known = {"seed": SEED, **known}
    return {
        name: fields
        for name, fields in known.items()
        if fields["platform"] == platform and (not names or name in names)
    }


def on_machines(
    wanted: Mapping[str, Mapping[str, Any]], base: BaseFacts, knows: SpackKnowledge | None
) -> Iterator[Case]:
    """Yield what is planned for each machine and step; kokkos for those with a GPU."""
    for name, fields in wanted.items():
        for step, specs in STEPS.items():
            if step != "kokkos" or "gpu" in fields:
                yield _case(f"{name}--{step}", f"spack:\n  specs: {specs}\n", fields, base, knows)


def inputs(base: BaseFacts, knows: SpackKnowledge | None) -> Iterator[Case]:
    """Yield what is planned for each input of the tests that has something for Spack."""
    cases: list[dict[str, Any]] = yaml.safe_load(INPUTS.read_text("utf-8"))
    known = knows.without(["foo"]) if knows is not None else None  # the catalogue has it
    for case in cases:
        text = case["files"][FILE]
        if "specs" in text:
            fields = {**PLAIN, **case.get("machine", {})}
            why = case.get("spack_takes_it", "")
            yield _case(f"input--{case['case']}", text, fields, base, known, why)


def _case(
    name: str,
    text: str,
    fields: Mapping[str, Any],
    base: BaseFacts,
    knows: SpackKnowledge | None,
    why_refused: str = "",
) -> Case:
    try:
        machine = Machine.model_validate(dict(fields))
        description = parse_description(text, FILE)
        planned = compose(description, machine, base=base, knows=knows).spack_yaml
    except UserError as error:
        return Case(
            name=name,
            spack_yaml=_unchecked(text, fields, base),
            is_accepted=False,
            refusal=str(error),
            why_refused=why_refused,
        )
    return Case(name=name, spack_yaml=planned)


def _unchecked(text: str, fields: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Return the `spack.yaml` of what is refused as it would be without any check."""
    try:
        machine = Machine.model_validate(dict(fields))
        return _merged(parse_description(text, FILE), machine, base)
    except UserError:
        return _written(text, fields)


def _merged(description: Description, machine: Machine, base: BaseFacts) -> str:
    release = base.spack_version or NEWEST_TESTED
    body = description.spack or {}
    merge = Merge(
        description,
        machine,
        mpi_gpu.mpi_of(machine, release),
        mpi_gpu.gpu_of(machine),
        release,
        {},
        demands_in(body, roots_in(body, release), release),
    )
    return dump({"spack": merge.body()})


def _written(text: str, fields: Mapping[str, Any]) -> str | None:
    """Return what the description says under `spack`, for the target; None if that cannot be read."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    body = loaded.get("spack")
    if not isinstance(body, dict):
        return None
    packages = body.setdefault("packages", {})
    packages.setdefault("all", {}).setdefault("require", [f"target={fields['architecture']}"])
    return dump({"spack": body})
