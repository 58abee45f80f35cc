"""Holds what is known of an image from its files, as labels and as a document. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping

from image_builder.docker import label_names
from image_builder.launch.facts import ANY_MPI, NONE, STANDARD_ABI
from image_builder.request.facts import mpi_facts
from image_builder.spack.versions import numbers

FORM = "1"
"""The version of the labels' form; its label says that the files were looked at."""
DOCUMENT = "facts.json"
MAX_PROGRAMS = 300
"""Programs that a label names; the document has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MpiLibrary:
    """Describes one MPI of an image: its files' names, and how its ranks find each other."""

    name: str
    version: str | None
    path: str
    sonames: tuple[str, ...]
    pmi: tuple[str, ...]

    @property
    def family(self) -> str:
        return str(mpi_facts()["implementations"].get(self.name, {}).get("family", self.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CudaCode:
    """Lists the GPU architectures of a file's machine code and PTX, such as 80."""

    path: str
    machine_code: tuple[int, ...]
    ptx: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Holds the facts of an image; a None or an empty tuple is what is not there.

    `glibc` is the release, and `glibc_symbols` and `glibcxx` are the highest symbols that are
    offered. `needs` are those of what was added to the distribution, with the file that needs them.
    `mpi_needed` are the MPI libraries that its programs ask for, `machine_code` and `ptx` what the
    files of `cuda_code` hold together, and `programs` those that were added to the distribution.
    `incomplete` says why not every file was looked at, if so.
    """

    libc: str | None = None
    glibc: str | None = None
    glibc_symbols: str | None = None
    glibcxx: str | None = None
    kernel: str | None = None
    needs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    mpis: tuple[MpiLibrary, ...] = ()
    mpi_needed: tuple[str, ...] = ()
    pmix: str | None = None
    libfabric: tuple[str, ...] | None = None
    ucx: tuple[str, ...] | None = None
    cuda_runtime: str | None = None
    cuda_code: tuple[CudaCode, ...] = ()
    machine_code: tuple[int, ...] = ()
    ptx: tuple[int, ...] = ()
    amd_code: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    incomplete: str = ""

    def labels(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of an image that has the labels `given` already, without these.

        Which MPI is meant is `given`, or found: the only one, or the one that the programs need.
        """
        mpi = self._mpi_meant(given.get(label_names.MPI_NAME))
        labels = {
            label_names.FACTS: FORM,
            label_names.GLIBC: self.glibc or NONE,
            label_names.GLIBC_OFFERED: self.glibc_symbols,
            label_names.GLIBC_NEEDED: self.needs.get("GLIBC", (None,))[0],
            label_names.GLIBCXX: self.glibcxx,
            label_names.GLIBCXX_NEEDED: self.needs.get("GLIBCXX", (None,))[0],
            label_names.KERNEL_MIN: self.kernel,
            label_names.MPI_NEEDED: _listed(self.mpi_needed),
            label_names.LIBFABRIC: _listed_or_none(self.libfabric),
            label_names.UCX: _listed_or_none(self.ucx),
            label_names.CUDA_RUNTIME: self.cuda_runtime,
            label_names.CUDA_CODE: _listed(map(str, self.machine_code)),
            label_names.CUDA_PTX: _listed(map(str, self.ptx)),
            label_names.ROCM_CODE: _listed(self.amd_code),
            label_names.PROGRAMS: ",".join(self.programs[:MAX_PROGRAMS]),
        }
        if mpi is not None:
            labels |= self._mpi_labels(mpi)
        elif not self.mpis and self._need_the_standard_abi_alone():
            labels |= dict.fromkeys((label_names.MPI_NAME, label_names.MPI_FAMILY), ANY_MPI)
            labels[label_names.MPI_PMI] = NONE
        return {key: value for key, value in labels.items() if value and key not in given}

    def document(self) -> str:
        """Return everything that was found, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    def _need_the_standard_abi_alone(self) -> bool:
        needed = self.mpi_needed
        return bool(needed) and all(name.startswith(STANDARD_ABI) for name in needed)

    def _mpi_meant(self, name: str | None) -> MpiLibrary | None:
        found = [mpi for mpi in self.mpis if name is None or mpi.name == name]
        needed = [mpi for mpi in found if set(mpi.sonames) & set(self.mpi_needed)]
        chosen = needed or found
        return chosen[0] if len({(mpi.name, mpi.version) for mpi in chosen}) == 1 else None

    def _mpi_labels(self, mpi: MpiLibrary) -> dict[str, str | None]:
        speaks_pmix = "pmix" in mpi.pmi
        return {
            label_names.MPI_NAME: mpi.name,
            label_names.MPI_FAMILY: mpi.family,
            label_names.MPI_VERSION: mpi.version,
            label_names.MPI_ABI: _listed(mpi.sonames),
            label_names.MPI_PMI: _listed(mpi.pmi) or NONE,
            label_names.PMIX: self.pmix if speaks_pmix else None,
        }


def _listed(names: Iterable[str]) -> str:
    return ",".join(sorted(names, key=lambda name: (numbers(name), name)))


def _listed_or_none(names: Iterable[str] | None) -> str | None:
    """Return a list for a library that is there, if it has no network at all, and None for none."""
    return None if names is None else _listed(names) or NONE
