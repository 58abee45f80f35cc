"""Reads the machine catalogue: machines that a request may name instead of describing them.

The library ships public systems (`data/machines.yaml`); an operator's file of the same form adds to
them.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from image_builder.data import text_of
from image_builder.errors import FieldProblem, InvalidRequest, Misconfigured
from image_builder.request import cpu_targets
from image_builder.request.build_request import Engine, Machine, OptionalSpec
from image_builder.request.parsing import expand, field_problems

__all__ = ["MachineEntry", "expand", "load_machines", "machine_facts"]


SiteEngine = Literal["singularity", "apptainer", "docker", "podman-hpc", "shifter", "sarus", "edf"]
"""The program that runs images on a machine; `edf` is the Container Engine of CSCS."""

PmiName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""A name that `srun --mpi=list` prints, such as pmix_v4."""

Version = Annotated[str, Field(max_length=40, pattern=r"^\d+(\.\d+)*$")]
Provider = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9_;.\-]+$")]
"""A name that `fi_info` or `ucx_info -d` prints, such as cxi, tcp;ofi_rxm or rc_mlx5."""


class Fabric(BaseModel):
    """Describes how a site puts its network under an image.

    `modules` are loaded before the job, `annotations` are those of an EDF file, `advice` is for
    people, and `families` are those of MPI that it serves (empty: all).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./+-]*$")], ...] = ()
    annotations: Mapping[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], str] = Field(
        default_factory=dict
    )
    advice: str = ""
    families: tuple[str, ...] = ()


class MachineEntry(BaseModel):
    """Describes one machine of the catalogue.

    `mpi` is what images are built with; `site_mpi` is the site's own, if it is another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    platform: str = Field(examples=["linux/amd64"])
    architecture: str | None = Field(default=None, examples=["zen2", "rome"])
    container_engine: Engine = Field(default="singularity", examples=["singularity"])
    site_engine: SiteEngine | None = Field(default=None, examples=["podman-hpc"])
    mpi: OptionalSpec = Field(default=None, examples=["openmpi@4"])
    site_mpi: OptionalSpec = Field(default=None, examples=["cray-mpich@8.1"])
    gpu: OptionalSpec = Field(default=None, examples=["cuda@12"])
    gpu_arch: str | None = Field(default=None, examples=["a100"])
    driver: str | None = Field(default=None, pattern=r"^\d+(\.\d+)*$", examples=["570.124.06"])
    launcher: str | None = Field(default=None, examples=["srun --mpi=pmix"])
    pmi: tuple[PmiName, ...] = Field(default=(), examples=[["pmix", "pmi2"]])
    kernel: Version | None = Field(default=None, examples=["5.14.21"])
    glibc: Version | None = Field(default=None, examples=["2.31"])
    squashfs: tuple[Provider, ...] = Field(default=(), examples=[["zlib", "zstd"]])
    pmix: Version | None = Field(default=None, examples=["4.2.9"])
    libfabric: tuple[Provider, ...] = Field(default=(), examples=[["cxi", "tcp"]])
    ucx: tuple[Provider, ...] = Field(default=(), examples=[["rc_mlx5", "tcp"]])
    batch: Literal["slurm", "other"] = "slurm"
    binds: tuple[str, ...] = ()
    fabric: Fabric | None = None
    notes: str = ""
    source: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> MachineEntry:
        """Refuse an entry that no request could use when it is read, not at its first use."""
        Machine.model_validate(self.request_fields())
        return self

    def request_fields(self) -> dict[str, Any]:
        """Return the `machine` of a request that names this entry."""
        fields = {
            "platform": self.platform,
            "architecture": self.architecture,
            "mpi": self.mpi,
            "gpu": self.gpu,
            "container_engine": self.container_engine,
            "gpu_arch": self.gpu_arch,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def facts(self, name: str) -> MachineFacts:
        """Return what a compatibility check needs to know of this machine."""
        return MachineFacts(
            name=name,
            platform=self.platform,
            architecture=self.architecture,
            engine=self.site_engine or self.container_engine,
            mpi=self.site_mpi or self.mpi,
            build_mpi=self.mpi,
            gpu=self.gpu,
            gpu_arch=self.gpu_arch,
            driver=self.driver,
            launcher=self.launcher,
            pmi=self.pmi,
            kernel=self.kernel,
            glibc=self.glibc,
            squashfs=self.squashfs,
            pmix=self.pmix,
            libfabric=self.libfabric,
            ucx=self.ucx,
            batch=self.batch,
            binds=self.binds,
            fabric=self.fabric,
        )


def load_machines(path: Path | None = None) -> Mapping[str, MachineEntry]:
    """Return the shipped machines and those of the operator's file, by name.

    The file holds `machines: {<name>: {<fields>}}`. An entry replaces the shipped one of its name,
    `null` removes it, and `shipped: false` next to `machines` leaves out all that are shipped.
    Raises `Misconfigured` with every problem.
    """
    text = text_of("machines")
    shipped = _entries(text, "machines.yaml")
    if path is None:
        return _present(shipped)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            f"The machine catalogue {path} cannot be read: {error}.",
            hint="Set `machines` to a YAML file, or leave it out.",
        ) from error
    own = _entries(text, str(path))
    return _present(
        own if _content(text, str(path)).get("shipped") is False else {**shipped, **own}
    )


FACTS = (
    "platform",
    "architecture",
    "engine",
    "mpi",
    "gpu",
    "gpu_arch",
    "driver",
    "launcher",
    "pmi",
    "kernel",
    "glibc",
    "squashfs",
    "pmix",
    "libfabric",
    "ucx",
)
"""The facts that may be given of a machine, with its name or without."""

MAX_FACT = 200
"""The most characters of one fact."""

_LISTS = {
    "pmi": (r"[a-z0-9_, ]*", "write what `srun --mpi=list` prints: pmix,pmi2"),
    "squashfs": (r"[a-z0-9, ]*", "write the kernel's compressors: zlib,zstd"),
    "libfabric": (r"[A-Za-z0-9_;.\-, ]*", "write the providers that `fi_info` prints: cxi,tcp"),
    "ucx": (r"[A-Za-z0-9_;.\-, ]*", "write what `ucx_info -d` prints: rc_mlx5,tcp"),
}
"""Facts that are lists: their characters, and how to write them."""
_VERSIONS = {"kernel": "5.14", "glibc": "2.31", "pmix": "4.2"}
"""Facts that are versions, each with an example."""


def machine_facts(given: Mapping[str, str], machines: Mapping[str, MachineEntry]) -> MachineFacts:
    """Return the machine that `given` names (`machine`) or describes (`FACTS`).

    What is described takes precedence over the catalogue. Raises `InvalidRequest` with every
    problem.
    """
    name = given.get("machine", "").strip().lower()
    entry = machines.get(name)
    fields = {key: given[key] for key in FACTS if given.get(key)}
    problems = [*_unknown_names(given, machines), *_unusable_facts(fields)]
    if entry is None and not problems and "platform" not in fields:
        problems.append(
            FieldProblem("machine", "is missing", "name a machine, or say its platform, mpi …")
        )
    if problems:
        raise InvalidRequest(problems)
    facts = entry.facts(name) if entry is not None else MachineFacts(platform=fields["platform"])
    return _described(facts, fields)


def _described(facts: MachineFacts, fields: Mapping[str, str]) -> MachineFacts:
    """Return `facts` with those of `fields`, and without what followed from replaced ones."""
    described = {**vars(facts), **fields}
    asked = {key: described[key] for key in ("platform", "architecture", "mpi", "gpu", "gpu_arch")}
    try:
        known = Machine.model_validate({**asked, "container_engine": "singularity"})
    except ValidationError as error:
        raise InvalidRequest(field_problems(error, Machine)) from None
    changes: dict[str, Any] = {**fields, "platform": known.platform}
    if "launcher" in fields:
        changes["pmi"] = ()
    if "mpi" in fields:
        changes |= {"build_mpi": None, "fabric": None}
    for key in fields.keys() & _LISTS:
        changes[key] = tuple(name for name in re.split(r"[\s,]+", fields[key]) if name)
    return dataclasses.replace(facts, **changes)


def _unknown_names(
    given: Mapping[str, str], machines: Mapping[str, MachineEntry]
) -> Iterator[FieldProblem]:
    for key in given:
        if key not in (*FACTS, "machine"):
            known = f"known fields: machine, {', '.join(FACTS)}"
            yield FieldProblem(key[:60], "is not a known field", known)
    name = given.get("machine", "").strip().lower()
    if name and name not in machines:
        close = cpu_targets.nearest(name, machines) or tuple(machines)[:3]
        yield FieldProblem(
            "machine", f"unknown machine {name[:60]!r}", f"known are {', '.join(close)}, …"
        )


def _unusable_facts(fields: Mapping[str, str]) -> Iterator[FieldProblem]:
    """Yield what no machine has, before anything is made of it: a fact may end in a script."""
    for key, value in fields.items():
        if len(value) > MAX_FACT or not value.isprintable():
            hint = f"write up to {MAX_FACT} characters in one line"
            yield FieldProblem(key, "is too long or has control characters", hint)
    engine, launcher = fields.get("engine"), fields.get("launcher", "")
    if engine is not None and engine not in get_args(SiteEngine):
        hint = f"write one of {', '.join(get_args(SiteEngine))}"
        yield FieldProblem("engine", f"unknown engine {engine[:60]!r}", hint)
    for key, (pattern, hint) in _LISTS.items():
        if not re.fullmatch(pattern, fields.get(key, "")):
            yield FieldProblem(key, "is no list of names", hint)
    for key, example in _VERSIONS.items():
        if not re.fullmatch(r"\d+(\.\d+)*", fields.get(key, example)):
            yield FieldProblem(key, "is no version", f"write it like {example}")
    if not _is_a_command(launcher):
        hint = "write it like srun --mpi=pmix"
        yield FieldProblem("launcher", "is no command: a quote is not closed", hint)


def _is_a_command(text: str) -> bool:
    try:
        return bool(shlex.split(text)) or not text
    except ValueError:
        return False


def _present(entries: Mapping[str, MachineEntry | None]) -> dict[str, MachineEntry]:
    return {name: entry for name, entry in sorted(entries.items()) if entry is not None}


def _content(text: str, file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misconfigured(f"The machine catalogue {file} is not valid YAML: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("machines"), dict):
        raise Misconfigured(
            f"The machine catalogue {file} has no `machines`.",
            hint="Write `machines:` and below it a block for each machine, beginning with its name.",
        )
    return content


def _entries(text: str, file: str) -> dict[str, MachineEntry | None]:
    problems: list[FieldProblem] = []
    entries: dict[str, MachineEntry | None] = {}
    for name, fields in _content(text, file)["machines"].items():
        try:
            entries[str(name).lower()] = (
                None if fields is None else MachineEntry.model_validate(fields)
            )
        except ValidationError as error:
            problems += [
                FieldProblem(f"machines.{name}.{problem.field}", problem.problem, problem.hint)
                for problem in field_problems(error, MachineEntry)
            ]
    if problems:
        raise Misconfigured(
            f"The machine catalogue {file} is wrong: " + "; ".join(map(str, problems))
        )
    return entries


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """Holds what is known of a machine; a None is not known.

    `mpi` is the MPI that the site has, `gpu` the newest runtime that its driver serves
    (`cuda@12.2`), `driver` the GPU driver's version. `launcher` starts a parallel job (`srun
    --mpi=pmix`), `pmi` is what `srun --mpi=` takes there, and `binds` are the host's folders that a
    container needs there. `build_mpi` is what the catalogue builds images for it with. `squashfs`
    are the compressors that its kernel reads, `libfabric` and `ucx` what these can use there.
    """

    name: str = "this machine"
    platform: str
    architecture: str | None = None
    engine: str = "singularity"
    mpi: str | None = None
    build_mpi: str | None = None
    gpu: str | None = None
    gpu_arch: str | None = None
    driver: str | None = None
    launcher: str | None = None
    pmi: tuple[str, ...] = ()
    kernel: str | None = None
    glibc: str | None = None
    squashfs: tuple[str, ...] = ()
    pmix: str | None = None
    libfabric: tuple[str, ...] = ()
    ucx: tuple[str, ...] = ()
    batch: str = "slurm"
    binds: tuple[str, ...] = ()
    fabric: Fabric | None = None
