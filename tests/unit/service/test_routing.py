"""Which worker builds what."""

from __future__ import annotations

import pytest

from service.db.tables import Kind
from service.workers.routing import Abilities, rank, takes, waits_for

AMD, ARM = "linux/amd64", "linux/arm64"
OLD = Abilities(platforms=[AMD], targets=["x86_64", "haswell"])
NEW = Abilities(platforms=[AMD], targets=["x86_64", "haswell", "zen4"])
EMULATES = Abilities(platforms=[AMD], emulated=[ARM], targets=["x86_64"])
NATIVE_ARM = Abilities(platforms=[ARM], targets=["aarch64", "neoverse_n1"])
BOTH = Abilities(platforms=[AMD, ARM], targets=["x86_64"])


@pytest.mark.parametrize(
    ("worker", "kind", "expected"),
    [
        (OLD, (AMD, "haswell"), 0),
        (OLD, (AMD, "zen4"), 1),
        (OLD, (ARM, "aarch64"), None),
        (EMULATES, (ARM, "neoverse_n1"), 2),
        (NATIVE_ARM, (ARM, "neoverse_n1"), 0),
        (NATIVE_ARM, (AMD, "x86_64"), None),
        (OLD, (AMD, ""), 0),
        (Abilities(platforms=[AMD]), (AMD, "zen4"), 0),
        (BOTH, (ARM, "neoverse_n1"), 0),  # a node of another platform: its CPU is not known
    ],
)
def test_how_well_a_worker_suits(worker: Abilities, kind: Kind, expected: int | None) -> None:
    assert rank(worker, kind) == expected


@pytest.mark.parametrize(
    ("me", "others", "kind", "expected"),
    [
        (NATIVE_ARM, [EMULATES], (ARM, "aarch64"), True),
        (EMULATES, [NATIVE_ARM], (ARM, "aarch64"), False),
        (EMULATES, [OLD], (ARM, "aarch64"), True),
        (EMULATES, [EMULATES], (ARM, "aarch64"), True),
        (OLD, [NEW], (AMD, "zen4"), False),
        (NEW, [OLD], (AMD, "zen4"), True),
        (OLD, [], (AMD, "zen4"), True),
        (OLD, [NEW], (AMD, "haswell"), True),
        (OLD, [], (ARM, "aarch64"), False),
    ],
)
def test_the_best_who_is_there_takes_it(
    me: Abilities, others: list[Abilities], kind: Kind, expected: bool
) -> None:
    assert takes(me, others, kind) is expected


def test_a_site_may_insist_that_the_target_is_executed() -> None:
    assert not takes(OLD, [], (AMD, "zen4"), must_execute=True)
    assert takes(NEW, [OLD], (AMD, "zen4"), must_execute=True)
    assert takes(EMULATES, [], (ARM, "aarch64"), must_execute=True)


def test_what_is_waited_for_is_said() -> None:
    assert waits_for((ARM, "aarch64"), [EMULATES]) is None
    assert waits_for((ARM, "aarch64"), []) == "Waits for a worker: none is at work."
    assert (
        waits_for((ARM, "aarch64"), [OLD, NEW])
        == "Waits for a worker that builds for linux/arm64: those at work build for linux/amd64."
    )
    assert "CPU can execute code for zen4" in str(
        waits_for((AMD, "zen4"), [OLD], must_execute=True)
    )
    assert waits_for((AMD, "zen4"), [OLD]) is None
