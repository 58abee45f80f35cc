"""Tells whether the machine's kernel, C library and engine bear the image. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from image_builder.audit.compatibility.rules import Finding, finding, rule_facts
from image_builder.docker import label_names
from image_builder.launch.facts import NONE, runs_sifs
from image_builder.request.machines import MachineFacts
from image_builder.spack.versions import numbers


def kernel_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield a finding where the image's C library wants a newer Linux than the machine's."""
    wanted, kernel = image.get(label_names.KERNEL_MIN), machine.kernel
    if wanted and kernel and numbers(kernel) < numbers(wanted):
        yield finding("kernel-too-old", image=wanted, machine=machine.name, host=kernel)


def library_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what the image's C and C++ libraries lack.

    Programs of the image want it, or the site's libraries, which are put into the image.
    """
    for offered, needed, called in (
        (label_names.GLIBC_OFFERED, label_names.GLIBC_NEEDED, "GLIBC"),
        (label_names.GLIBCXX, label_names.GLIBCXX_NEEDED, "GLIBCXX"),
    ):
        has, wants = image.get(offered), image.get(needed)
        if has and wants and numbers(has) < numbers(wants):
            yield finding("library-too-old", image=f"{called}_{has}", wanted=f"{called}_{wants}")
    has, host = image.get(label_names.GLIBC), machine.glibc
    if not host or not has or not _is_given_site_libraries(image, machine):
        return
    if has == NONE:
        yield finding("no-glibc-for-site", machine=machine.name)
    elif numbers(has) < numbers(host):
        yield finding("glibc-older-than-site", image=has, machine=machine.name, host=host)


def sif_findings(compressor: str | None, machine: MachineFacts) -> Iterator[Finding]:
    """Yield a finding where the machine's kernel does not read the SIF's compression."""
    if compressor is None or not runs_sifs(machine.engine) or _reads(machine, compressor):
        return
    by_fuse = machine.engine == "apptainer"
    name = "sif-read-by-fuse" if by_fuse else "sif-not-read"
    yield finding(name, image=compressor, machine=machine.name)


def _reads(machine: MachineFacts, compressor: str) -> bool:
    """Return whether a kernel reads a compression; True where that is not known."""
    called = {"gzip": "zlib"}.get(compressor, compressor)
    if machine.squashfs:
        return called in machine.squashfs
    since = rule_facts()["squashfs"].get(called)
    return not (since and machine.kernel) or numbers(machine.kernel) >= numbers(since)


def _is_given_site_libraries(image: Mapping[str, str], machine: MachineFacts) -> bool:
    """Return whether the site puts its MPI and network libraries into such an image."""
    family, fabric = image.get(label_names.MPI_FAMILY), machine.fabric
    if family is None:
        return False
    if fabric is not None:
        return not fabric.families or family in fabric.families
    return family == "mpich" and machine.engine in ("podman-hpc", "shifter", "sarus")
