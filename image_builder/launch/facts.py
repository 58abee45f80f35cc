"""Reads the data file about launchers and engines, and what it means for one image. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.data import facts_of
from image_builder.docker import label_names
from image_builder.request.machines import MachineFacts


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
    return [
        name
        for name in spoken
        if name not in vendors or (machine.mpi or "").startswith(vendors[name])
    ]


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
    chosen = chosen_pmi(image, machine)
    return {**known["any"], **known.get(pmi_flavour(chosen or ""), {})}
