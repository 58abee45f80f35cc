"""Tells whether the image's MPI can use the machine's fast network with its own libraries. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from image_builder.audit.compatibility.rules import Finding, finding, rule_facts
from image_builder.docker import label_names
from image_builder.launch.facts import NONE
from image_builder.request.machines import MachineFacts


def network_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield a finding where no library of the image knows any of the machine's fast networks.

    Nothing is said of an image whose files were not looked at, nor of a machine where no fast
    network was seen.
    """
    theirs = _fast(*machine.libfabric, *machine.ucx)
    if label_names.FACTS not in image or not theirs:
        return
    ours = _fast(*_listed(image, label_names.LIBFABRIC), *_listed(image, label_names.UCX))
    if not ours & theirs:
        first = sorted(theirs)[0]
        yield finding(
            "network-not-known-to-image",
            image=", ".join(sorted(ours)) or NONE,
            machine=machine.name,
            host=", ".join(sorted(theirs)),
            wanted=rule_facts()["networks"][first]["request"],
        )


def _listed(image: Mapping[str, str], label: str) -> list[str]:
    return image.get(label, "").split(",")


def _fast(*providers: str) -> set[str]:
    """Return the fast networks that some providers and transports are for: `rc_mlx5` is for ib."""
    networks = rule_facts()["networks"]
    parts = {part for one in providers for part in one.split(";")}
    return {
        network
        for network, known in networks.items()
        if any(part.startswith(tuple(known["providers"])) for part in parts)
    }
