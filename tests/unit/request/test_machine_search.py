"""Machines are found by words of their names, sites, CPUs and GPUs."""

from __future__ import annotations

import pytest

from image_builder.request.machine_search import found, words_of
from image_builder.request.machines import MachineEntry, load_machines

MACHINES = load_machines()
OURS = {
    "one": MachineEntry(title="One (BSC)", platform="linux/amd64", architecture="rome"),
    "two": MachineEntry(platform="linux/arm64", architecture="neoverse_v2", gpu="cuda@12"),
}


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("", {"one", "two"}),
        ("bsc", {"one"}),
        ("ZEN2", {"one"}),  # rome is one
        ("amd", {"one"}),
        ("nvidia arm64", {"two"}),
        ("grace", {"two"}),
        ("one two", set()),
    ],
)
def test_every_word_has_to_be_found(search: str, names: set[str]) -> None:
    assert set(found(OURS, search)) == names


def test_the_catalogues_machines_are_found_by_what_people_call_them() -> None:
    assert "lumi-g" in found(MACHINES, "lumi amd")
    assert set(found(MACHINES, "")) == set(MACHINES)
    assert all(
        words_of(name, entry) == words_of(name, entry).lower() for name, entry in MACHINES.items()
    )
