"""Maps the MPI and GPU runtime that a machine names to Spack's packages. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request import gpu_arch, machine_spec
from image_builder.request.build_request import Machine
from image_builder.request.cpu_targets import nearest
from image_builder.request.facts import gpu_facts, mpi_facts, mpi_names
from image_builder.spack import spec as spack_spec
from image_builder.spack.versions import numbers


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

    `called` is its vendor's word (`CUDA`), `variant` is what packages are built with (`+cuda`), and
    `arch` the architecture's value (`90`) or None.
    """

    name: str
    spec: str
    called: str
    version: str
    variant: str
    arch_variant: str
    arch: str | None

    @property
    def settings(self) -> str:
        """Return the variants of a package that uses the GPU: `+cuda cuda_arch=90`."""
        return f"+{self.variant}" + (f" {self.arch_variant}={self.arch}" if self.arch else "")


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
        raise _refused(
            "machine.mpi",
            f"{asked!r} is not a known MPI",
            f"write {machine_spec.glued(asked) or ' or '.join(_close_mpis(asked))}",
        )
    facts = known[name]
    if (
        release is not None
        and "last_release" in facts
        and release[:2] > numbers(facts["last_release"])
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
    if name not in gpu_facts()["runtimes"]:
        raise _unknown_runtime(asked)
    facts = gpu_facts()["runtimes"][name]
    return Gpu(
        name=facts["package"],
        spec=facts["package"] + rest,
        called=facts["called"],
        variant=facts["variant"],
        version=spack_spec.nodes(facts["package"] + rest)[0].version,
        arch_variant=facts["arch_variant"],
        arch=_gpu_arch(machine.gpu_arch, name),
    )


def gpu_problem(gpu: Gpu) -> FieldProblem | None:
    """Return why no release of the runtime that is asked for makes code for the architecture."""
    needed = gpu_arch.needed_versions(gpu.arch) if gpu.arch else ""
    problem = gpu.arch and gpu_arch.version_problem(gpu.arch, needed, gpu.version, gpu.called)
    if not problem:
        return None
    wanted = gpu_arch.nearest_version(needed, gpu.version)
    return FieldProblem("machine.gpu", problem, f"write {gpu.name}@{wanted}")


def _close_mpis(asked: str) -> Sequence[str]:
    """Return the MPIs that look most like a name, without those that no Spack builds."""
    built = [name for name in mpi_names() if not _is_vendors(name)]
    close = nearest(asked, sorted(built))
    return tuple(dict.fromkeys(map(_package_of, close))) or ("openmpi", "mpich")


def _package_of(name: str) -> str:
    """Return the package of an MPI's name, or what is there in the place of one that is gone."""
    package = mpi_facts()["aliases"].get(name, name)
    known = mpi_facts()["implementations"][package]
    return str(known["instead"] if "last_release" in known else package)


def _is_vendors(name: str) -> bool:
    package = mpi_facts()["aliases"].get(name, name)
    return bool(mpi_facts()["implementations"][package].get("vendor"))


def _unknown_runtime(asked: str) -> InvalidRequest:
    if vendor := gpu_facts()["vendors"].get(asked):
        return _refused("machine.gpu", f"{asked!r} is not a known GPU runtime", f"write {vendor}")
    if gpu_arch.is_gpu(asked):
        architecture = gpu_arch.product_architecture(asked) or asked
        runtime = (architecture and gpu_arch.runtime_of(architecture)) or "cuda"
        called = "rocm" if runtime == "hip" else runtime
        hint = f'write "gpu": "{called}", "gpu_arch": "{asked}"'
        return _refused("machine.gpu", f"{asked!r} is a GPU, not a runtime", hint)
    known = " or ".join([*gpu_facts()["runtimes"], "rocm"])
    meant = machine_spec.glued(asked)
    hint = f"write {meant or f'{known}, perhaps with a version such as cuda@12'}"
    return _refused("machine.gpu", f"{asked!r} is not a known GPU runtime", hint)


def is_mpi(name: str) -> bool:
    """Return whether a package is an MPI."""
    return name in mpi_facts()["implementations"]


def _gpu_arch(asked: str | None, runtime: str) -> str | None:
    if asked is None:
        return None
    try:
        return gpu_arch.architecture_of(asked, runtime)
    except gpu_arch.UnknownArchitecture as error:
        raise _refused("machine.gpu_arch", error.problem, error.hint) from None


def _name_and_rest(spec: str, field: str, example: str) -> tuple[str, str]:
    if wrong := machine_spec.problem(spec):
        raise _refused(field, *wrong)
    if wrong := spack_spec.problem(spec):
        raise _refused(field, wrong[0], f"write a Spack spec such as {example}")
    name = spack_spec.nodes(spec)[0].name
    return name.lower(), spec[len(name) :]


def _refused(field: str, problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest([FieldProblem(field, problem, hint)])
