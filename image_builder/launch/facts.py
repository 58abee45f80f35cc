"""Reads the data file about launchers and engines, and what it means for one image. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.data import facts_of
from image_builder.docker import label_names
from image_builder.request.facts import mpi_facts
from image_builder.request.machines import MachineFacts
from image_builder.spack.versions import numbers

NONE = "none"
"""A label's value for what was looked for, and is not there."""
STANDARD_ABI = "libmpi_abi.so."
ANY_MPI = "mpi-abi"
"""The MPI of an image without one, whose programs need the MPI-5 ABI alone."""


def launch_facts() -> Mapping[str, Any]:
    """Return the data file: `pmi`, `environment`, `sif_engines`."""
    return facts_of("launch")


def runs_sifs(engine: str) -> bool:
    """Return whether an engine runs SIF files; the others take images by their reference."""
    return engine in launch_facts()["sif_engines"]


def spoken_pmi(image: Mapping[str, str], machine: MachineFacts) -> Sequence[str]:
    """Return the interfaces by which the ranks of an image's MPI find each other, best first.

    A vendor's own interface is spoken by the vendor's MPI alone, which a site puts in the place of
    the image's.
    """
    spoken = launch_facts()["pmi"].get(image.get(label_names.MPI_FAMILY, ""), ())
    vendors: Mapping[str, str] = launch_facts()["vendor_pmi"]
    fitting = [
        name
        for name in spoken
        if name not in vendors or (machine.mpi or "").startswith(vendors[name])
    ]
    told = image.get(label_names.MPI_PMI)
    if told is None:
        return fitting
    own = [name for name in told.split(",") if name != NONE]
    return [*own, *(name for name in fitting if name in vendors)]


def offered_pmi(machine: MachineFacts) -> Sequence[str]:
    """Return what `srun --mpi=` takes on a machine, as far as that is known."""
    return machine.pmi or tuple(filter(None, (asked_pmi(machine.launcher),)))


def asked_pmi(launcher: str | None) -> str | None:
    """Return the interface that a launcher's `--mpi=` names, or None."""
    for word in shlex.split(launcher or ""):
        if word.startswith("--mpi="):
            return word.partition("=")[2]
    return None


def pmi_flavour(name: str) -> str:
    """Return the interface of a release of it: `pmix_v4` is `pmix`."""
    return name.partition("_v")[0]


def chosen_pmi(image: Mapping[str, str], machine: MachineFacts) -> str | None:
    """Return what to write after `srun --mpi=`; None leaves the site's default.

    Where nothing is known of the machine's launcher, it is what the image's MPI speaks best.
    """
    spoken, offered = spoken_pmi(image, machine), offered_pmi(machine)
    if not offered and machine.launcher is None:
        return spoken[0] if spoken else None
    for wanted in spoken:
        for name in offered:
            if pmi_flavour(name) == wanted:
                return name
    return None


def rank_environment(image: Mapping[str, str], machine: MachineFacts) -> Mapping[str, str]:
    """Return the variables that the ranks need to find each other from inside containers."""
    if label_names.MPI_FAMILY not in image:
        return {}
    known: Mapping[str, Mapping[str, str]] = launch_facts()["environment"]
    chosen = launcher_pmi(image, machine)
    return {**known["any"], **known.get(pmi_flavour(chosen or ""), {})}


def has_standard_abi(name: str, version: str) -> bool:
    """Return whether an MPI has the MPI-5 ABI; False where its release is not known."""
    since = facts_of("rules")["standard_abi"].get(name)
    if since is None or not version:
        return False
    known, first = numbers(version), numbers(since)
    return known + (0,) * (len(first) - len(known)) >= first


def programs_have_standard_abi(image: Mapping[str, str]) -> bool | None:
    """Return whether all programs of an image were built with the MPI-5 ABI; None: not known."""
    if label_names.FACTS not in image:
        return None
    needed = [name for name in image.get(label_names.MPI_NEEDED, "").split(",") if name]
    return bool(needed) and all(name.startswith(STANDARD_ABI) for name in needed)


def takes_site_mpi(image: Mapping[str, str], machine: MachineFacts) -> bool:
    """Return whether the image's programs run with the site's MPI, and not with the image's.

    That is so by the MPI-5 ABI, where Slurm starts the site's MPI and not the image's, and
    Singularity binds the site's folder.
    """
    name, version = _site_mpi(machine)
    offered, family = offered_pmi(machine), _family(name)
    own_starts = (
        chosen_pmi(image, machine) is not None
        if offered
        else image.get(label_names.MPI_FAMILY) == family
    )
    return (
        not own_starts
        and (not offered or _site_pmi(machine) is not None)
        and runs_sifs(machine.engine)
        and bool(programs_have_standard_abi(image))
        and has_standard_abi(name, version)
    )


def launcher_pmi(image: Mapping[str, str], machine: MachineFacts) -> str | None:
    """Return what to write after `srun --mpi=`, for the image's MPI or the site's in its place."""
    if takes_site_mpi(image, machine):
        return _site_pmi(machine)
    return chosen_pmi(image, machine)


def _site_mpi(machine: MachineFacts) -> tuple[str, str]:
    """Return the name and the release of the site's MPI."""
    asked, _, version = (machine.mpi or "").partition("@")
    return mpi_facts()["aliases"].get(asked, asked), version.lstrip("=")


def _site_pmi(machine: MachineFacts) -> str | None:
    spoken = launch_facts()["pmi"].get(_family(_site_mpi(machine)[0]), ())
    matching = (one for one in offered_pmi(machine) if pmi_flavour(one) in spoken)
    return next(matching, None)


def _family(name: str) -> str:
    return str(mpi_facts()["implementations"].get(name, {}).get("family", name))
