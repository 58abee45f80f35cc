"""Parts of a busy service killed at random moments: what was accepted ends, nothing broken or left over is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import remove_images
from tests.system.kills import chaos, seed
from tests.system.site import Site, make_site

pytestmark = pytest.mark.system


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    remove_images(made)


def storm(site: Site, *, kills: int, steps: int, builds_at_once: int, timeout_s: float) -> dict[str, list[float]]:
    """Kill, and check all that must be true afterwards; returns how long the service was away, by who was killed."""
    with chaos(site, steps=steps, seed=seed()) as storm:
        storm.storm(kills, builds_at_once=builds_at_once)
        ended = storm.all_ended(timeout_s)
        print(storm.figures(ended))
        storm.check_states(ended)
        assert storm.check_downloads(ended, inspected=3) > 0
        storm.check_nothing_left()
    return storm.ready_s


def test_a_few_kills_lose_nothing(site: Site) -> None:
    storm(site, kills=8, steps=2, builds_at_once=2, timeout_s=300)


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_two_hundred_kills_lose_nothing(site: Site) -> None:
    taken = storm(site, kills=200, steps=60, builds_at_once=6, timeout_s=1800)
    assert max(max(times) for times in taken.values()) < 5, taken
