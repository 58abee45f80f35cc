"""Where a workflow and a machine cannot both have their way: said before anything is built. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.errors import BadDescription, ErrorCode
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.mpi_gpu import Gpu, Mpi
from image_builder.sources.description import Description
from image_builder.sources.safe_yaml import Path
from image_builder.spack import spec


def refuse(description: Description, machine: Machine, mpi: Mpi | None, gpu: Gpu | None) -> None:
    """Raises `BadDescription` (`CONFLICT`) for the first thing that the workflow wants and the
    machine forbids.
    """
    body = description.spack or {}
    for path, text in [*_wanted(body), *_preferred_targets(body)]:
        for asked in [text] if path[-2] == "target" else spec.targets_of(spec.nodes(text)):
            if not spec.target_allows(asked, machine.target.name):
                raise _conflict(
                    description,
                    path,
                    f"asks for the target {asked}, the request for {machine.target.name}",
                    f'Remove it, or request "architecture": "{asked}".',
                )
    for path, node in _nodes(body):
        if mpi is not None:
            _refuse_other_mpi(description, path, node, mpi)
        if (
            gpu is not None
            and node.name == gpu.name
            and spec.disjoint_versions(node.version, gpu.version)
        ):
            raise _conflict(
                description,
                path,
                f"names {node.name}@{node.version}, the request {gpu.spec}",
                "Remove the version there, or request that one.",
            )


def compilers_named(body: Mapping[str, Any]) -> list[str]:
    """The compilers that `packages: all: compiler` names."""
    everywhere = (body.get("packages") or {}).get("all") or {}
    return [str(text) for text in everywhere.get("compiler") or ()]


def _refuse_other_mpi(description: Description, path: Path, node: spec.Node, mpi: Mpi) -> None:
    if not mpi_gpu.is_mpi(node.name):
        return
    if node.name != mpi.name:
        raise _conflict(
            description,
            path,
            f"names the MPI {node.name}, the request {mpi.spec}",
            f'Remove {node.name} there, or request "mpi": "{node.name}".',
        )
    if spec.disjoint_versions(node.version, mpi.version):
        raise _conflict(
            description,
            path,
            f"names {node.name}@{node.version}, the request {mpi.spec}",
            "Remove the version there, or request that one.",
        )


def _conflict(description: Description, path: Path, problem: str, hint: str) -> BadDescription:
    where = ": ".join(str(part) for part in path if isinstance(part, str))
    return BadDescription(
        f"{where} {problem}: both cannot hold",
        file=description.file,
        line=description.line("spack", *path),
        hint=hint,
        code=ErrorCode.CONFLICT,
    )


def _nodes(body: Mapping[str, Any]) -> Iterator[tuple[Path, spec.Node]]:
    for path, text in [*_wanted(body), *_providers(body)]:
        for node in spec.nodes(text):
            yield path, node


def _wanted(body: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every spec that the description asks for, with its place."""
    yield from _strings(body.get("specs"), ("specs",))
    yield from _strings(body.get("definitions"), ("definitions",))
    for name, fields in (body.get("packages") or {}).items():
        for key in ("require", "prefer", "variants"):
            yield from _strings(
                (fields or {}).get(key), ("packages", name, key), skip=("when", "message")
            )


def _providers(body: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The first choice for MPI: those that follow it do no harm."""
    for name, fields in (body.get("packages") or {}).items():
        chosen = ((fields or {}).get("providers") or {}).get("mpi") or ()
        yield from (
            (("packages", name, "providers", "mpi", at), text) for at, text in enumerate(chosen[:1])
        )


def _preferred_targets(body: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """A list of preferred targets, as one text in which each of them is enough."""
    for name, fields in (body.get("packages") or {}).items():
        wanted = (fields or {}).get("target")
        if wanted:
            yield ("packages", name, "target", 0), ",".join(map(str, wanted))


def _strings(value: Any, path: Path, skip: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            if key not in (*skip, "exclude"):
                yield from _strings(entry, (*path, key), skip)
    elif isinstance(value, list):
        for at, entry in enumerate(value):
            yield from _strings(entry, (*path, at), skip)
