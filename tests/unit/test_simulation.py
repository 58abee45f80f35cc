"""The simulation of a site's load, against what can be worked out by hand."""

from __future__ import annotations

import dataclasses
import random
import statistics

import pytest

from benchmarks.simulation import (
    DAY_S,
    MEASURED,
    SITES,
    WORKING_S,
    Site,
    requests,
    run,
    simulate,
    workers_needed,
)


@pytest.mark.parametrize(
    ("builds", "slots", "ends_s"), [(60, 1, 660), (60, 4, 165), (61, 4, 176), (3, 4, 11)]
)
def test_equal_builds_fill_the_slots_in_turn(builds: int, slots: int, ends_s: float) -> None:
    waits, end = run([(0.0, 10.0)] * builds, slots=slots, begin_s=1.0)
    assert end == pytest.approx(ends_s)
    assert sorted(waits) == pytest.approx(
        [1.0 + 11.0 * (index // slots) for index in range(builds)]
    )


def test_who_comes_first_is_served_first() -> None:
    waits, _ = run([(0.0, 100.0), (1.0, 1.0), (2.0, 1.0)], slots=1, begin_s=0.0)
    assert waits == pytest.approx([0.0, 99.0, 99.0])


@pytest.mark.slow
def test_a_queue_of_chance_waits_as_theory_says() -> None:
    """One slot that is busy two thirds of the time, all by chance: the mean wait is two builds."""
    chance = random.Random(7)
    moment, works = 0.0, []
    for _ in range(60_000):
        moment += chance.expovariate(1 / 15)
        works.append((moment, chance.expovariate(1 / 10)))
    waits, _ = run(works, slots=1, begin_s=0.0)
    assert statistics.mean(waits) == pytest.approx(20, rel=0.15)


def test_requests_come_by_day_as_many_as_said() -> None:
    site = dataclasses.replace(SITES[1], requests_per_day=1000)
    moments = list(requests(site, random.Random(3), 50))
    assert len(moments) / 50 == pytest.approx(1000, rel=0.03)
    assert sum(moment % DAY_S < WORKING_S for moment in moments) / len(moments) == pytest.approx(
        0.8, abs=0.02
    )
    assert moments == sorted(moments)


def test_more_workers_wait_less_and_the_smallest_number_is_found() -> None:
    site = Site(name="x", requests_per_day=400, same_image_share=0.25, cached_share=0.5)
    workers, outcome = workers_needed(site, MEASURED, wait_p95_s=60)
    assert outcome.wait_p95_s <= 60
    assert simulate(site, MEASURED, workers=workers - 1, slots=2).wait_p95_s > 60
    assert outcome.builds_per_day == pytest.approx(300, rel=0.1)
