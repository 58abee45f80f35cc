"""Tells whether the image's MPI works with the machine's own MPI and its launcher. Pure.

The launcher's interface decides first: without a common one each rank runs alone. Then the two
MPIs' binary interfaces, since a site puts its own libraries in place of the image's, and where the
launcher's interface is not known they have to be of one family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from image_builder.audit.compatibility.network import network_findings
from image_builder.audit.compatibility.rules import Finding, finding, rule_facts, rules
from image_builder.docker import label_names
from image_builder.errors import InvalidRequest
from image_builder.launch.facts import (
    ANY_MPI,
    NONE,
    chosen_pmi,
    has_standard_abi,
    offered_pmi,
    programs_have_standard_abi,
    spoken_pmi,
    takes_site_mpi,
)
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.facts import mpi_facts
from image_builder.request.machines import MachineFacts
from image_builder.spack.versions import numbers


def mpi_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what is to be known of an image's MPI on a machine.

    It is at most one finding on starting it, and one on the network.
    """
    family = image.get(label_names.MPI_FAMILY)
    if family is None:
        return
    host = _host_mpi(machine)
    words = {
        "image": _spec(image),
        "machine": machine.name,
        "host": host.spec if host else "",
        "and_has": f" ({host.spec} is there)" if host else "",
        "wanted": _wanted(machine, host),
    }
    name, more = _verdict(image, machine, host)
    if name:
        yield finding(name, **words, **more)
    fabric = machine.fabric
    if name and rules()[name].answer == "does_not_run":
        return
    if fabric and fabric.families and family not in fabric.families:
        if not name:
            yield finding("fabric-not-for-this-mpi", **words, families=", ".join(fabric.families))
    elif fabric is None:
        yield from network_findings(image, machine)


def _verdict(
    image: Mapping[str, str], machine: MachineFacts, host: mpi_gpu.Mpi | None
) -> tuple[str | None, dict[str, str]]:
    """Return the rule that applies, or None, and the words that its message needs.

    The names of the two MPIs are added to these.
    """
    family, offered = image[label_names.MPI_FAMILY], offered_pmi(machine)
    spoken = spoken_pmi(image, machine)
    if image.get(label_names.MPI_PMI) == NONE and not spoken and _starts_ranks(machine):
        if takes_site_mpi(image, machine):
            return "mpi-site-by-standard-abi", {}
        return ("mpi-not-in-image" if family == ANY_MPI else "mpi-finds-none"), {}
    starts = chosen_pmi(image, machine) is not None if offered and spoken else None
    if starts is False and takes_site_mpi(image, machine):
        return "mpi-site-by-standard-abi", {}
    if starts is False:
        more = {"speaks": " or ".join(spoken), "offers": " or ".join(offered)}
        return "mpi-launcher-speaks-other", more
    if host is None:
        return (None, {}) if starts else ("mpi-unknown", {})
    if starts and (rule := _pmix(image, machine)):
        return rule, {"image_pmix": image[label_names.PMIX], "host_pmix": machine.pmix or ""}
    if host.family != family:
        return _other_family(image, machine, host, starts=bool(starts)), {}
    if family == "mpich":
        return _mpich(image, host)
    if family == "openmpi" and image.get(label_names.MPI_NAME) == host.name:
        return _openmpi(image, host, starts=bool(starts)), {}
    return None, {}


def _starts_ranks(machine: MachineFacts) -> bool:
    """Return whether the machine's launcher starts the ranks, not a program of the image's MPI."""
    return machine.engine != "docker" and (machine.launcher or "srun").startswith("srun")


def _pmix(image: Mapping[str, str], machine: MachineFacts) -> str | None:
    """Return the rule for a launcher's PMIx and the image's, where both releases are known."""
    if "pmix" not in spoken_pmi(image, machine) or not machine.pmix:
        return None
    ours = image.get(label_names.PMIX)
    if ours and not (_meets_others(ours) and _meets_others(machine.pmix)):
        return None if major(ours) == major(machine.pmix) else "pmix-does-not-meet"
    return None


def _meets_others(release: str) -> bool:
    """Return whether a PMIx works with those of other major releases.

    A first number alone is taken for its newest release.
    """
    since = rule_facts()["pmix"].get(major(release))
    return since is None or not _is_before(release, since)


def _other_family(
    image: Mapping[str, str], machine: MachineFacts, host: mpi_gpu.Mpi, *, starts: bool
) -> str:
    if starts:
        return "mpi-own-beside-site"
    if takes_site_mpi(image, machine):
        return "mpi-site-by-standard-abi"
    image_mpi = image.get(label_names.MPI_NAME, ""), _plain(image.get(label_names.MPI_VERSION, ""))
    if has_standard_abi(*image_mpi) and has_standard_abi(host.name, _plain(host.version)):
        is_known = programs_have_standard_abi(image) is not None
        return "mpi-programs-without-abi" if is_known else "mpi-other-family-standard-abi"
    return "mpi-other-family"


def _openmpi(image: Mapping[str, str], host: mpi_gpu.Mpi, *, starts: bool) -> str | None:
    """Return the rule for two Open MPIs, or None.

    Within a major release all is well; to the next one Open MPI promises C programs that.
    """
    ours, theirs = major(image.get(label_names.MPI_VERSION)), major(host.version)
    if not ours or not theirs or ours == theirs:
        return None
    if theirs in rule_facts()["openmpi"].get(ours, ()):
        return "openmpi-next-major"
    return "mpi-own-beside-site" if starts else "openmpi-other-major"


def _mpich(image: Mapping[str, str], host: mpi_gpu.Mpi) -> tuple[str | None, dict[str, str]]:
    """Return the rule for MPICH and its kin.

    They share a binary interface, from certain releases on.
    """
    name, version = image.get(label_names.MPI_NAME, ""), image.get(label_names.MPI_VERSION, "")
    since = rule_facts()["mpich"]["since"]
    if _is_before(version, since.get(name)) or _is_before(host.version, since.get(host.name)):
        return "mpich-before-abi", {}
    base = rule_facts()["mpich"]["made_of"].get(host.name, {}).get(major(host.version))
    if base and name == "mpich" and int(major(version) or 0) > int(major(base)):
        return "mpich-newer-than-site", {"base": base}
    return None, {}


def _is_before(version: str, since: str | None) -> bool:
    """Return whether a version is older than another; False where one is not known.

    `5` may be any 5.x, and so is not before 5.1.
    """
    if since is None or not _plain(version):
        return False
    own, limit = numbers(_plain(version)), numbers(since)
    return own < limit[: len(own)]


def major(version: str | None) -> str:
    """Return the first number of a version, or nothing."""
    first = _plain(version or "").split(".")[0]
    return first if first.isdigit() else ""


def _plain(version: str) -> str:
    return version.lstrip("=")


def _spec(image: Mapping[str, str]) -> str:
    name = image.get(label_names.MPI_NAME, image[label_names.MPI_FAMILY])
    return f"{name} {image.get(label_names.MPI_VERSION, '')}".strip()


def _host_mpi(machine: MachineFacts) -> mpi_gpu.Mpi | None:
    try:
        return mpi_gpu.mpi_of(as_request(machine), None)
    except InvalidRequest:
        return None


def _wanted(machine: MachineFacts, host: mpi_gpu.Mpi | None) -> str:
    """Return the MPI to ask for instead.

    It is what the catalogue builds with, or the site's own, or, of one that no Spack builds, one of
    its family.
    """
    if machine.build_mpi:
        return machine.build_mpi
    if host is None:
        spoken = next(iter(offered_pmi(machine)), "")
        return "openmpi" if spoken.startswith("pmix") else "mpich"
    facts = mpi_facts()["implementations"][host.name]
    if facts.get("vendor"):
        return str(facts.get("instead", host.family))
    return f"{host.name}@{major(host.version)}" if major(host.version) else host.name


def as_request(machine: MachineFacts) -> Machine:
    """Return the machine as a request names it, so that names mean the same here and there."""
    return Machine.model_construct(
        platform=machine.platform,
        architecture=None,
        container_engine="singularity",
        mpi=machine.mpi,
        gpu=machine.gpu,
        gpu_arch=machine.gpu_arch,
    )
