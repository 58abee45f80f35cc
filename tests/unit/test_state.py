"""The life of a build."""

from __future__ import annotations

import itertools

import pytest

from image_builder.state import ACTIVE, ALLOWED_MOVES, TERMINAL, BuildState, may_move


def test_the_six_statuses_that_clients_know() -> None:
    assert [state.value for state in BuildState] == [
        "PENDING",
        "STARTED",
        "BUILDING",
        "CONVERTING",
        "FINISHED",
        "FAILED",
    ]


def test_an_end_is_for_good() -> None:
    assert {"FINISHED", "FAILED"} == TERMINAL
    assert set(BuildState) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    for end, after in itertools.product(TERMINAL, BuildState):
        assert not may_move(end, after)


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_every_active_build_can_end_both_ways(state: BuildState) -> None:
    assert may_move(state, BuildState.FAILED)
    assert may_move(state, BuildState.FINISHED)


def test_nothing_stays_where_it_is_or_goes_back_but_to_the_queue() -> None:
    order = list(BuildState)
    for before, after in itertools.product(order, order):
        if may_move(before, after) and order.index(after) <= order.index(before):
            assert after is BuildState.PENDING
            assert before is not BuildState.PENDING


def test_work_begins_with_a_claim() -> None:
    assert not may_move(BuildState.PENDING, BuildState.BUILDING)
    assert not may_move(BuildState.PENDING, BuildState.CONVERTING)


def test_every_state_has_its_moves() -> None:
    assert set(ALLOWED_MOVES) == set(BuildState)
