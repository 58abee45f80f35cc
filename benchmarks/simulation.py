"""Simulate how many workers a site needs: `python3 -m benchmarks.simulation [--write]`.

A day of requests meets a number of workers, in simulated time. What a stage takes is measured
(`MEASURED`); how many people ask for what is assumed (`SITES`). Same seed, same figures. `--write`
puts the table into docs/sizing.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import simpy

from benchmarks.docs import DOCS, replace_table

DAY_S = 86_400.0
WORKING_S = 10 * 3600.0
WORKING_SHARE = 0.8
"""So much of a day's requests comes within its working hours."""
GB = 1e9
DAYS = 5
SEED = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages of one build take, in seconds; sizes in bytes."""

    begin_s: float
    """From the request until a worker that is free begins."""
    cached_build_s: float
    """All packages are in the binary cache, or none are needed: concretization, layers, checks."""
    cold_build_s: float
    """The median of builds with packages to compile."""
    cold_spread: float
    """Sigma of the logarithm: with 1.2, one of twenty takes seven times the median."""
    convert_s_per_gb: float
    image_bytes: float
    sif_bytes: float


MEASURED = Stages(
    begin_s=0.2,
    cached_build_s=30.0,
    cold_build_s=1200.0,
    cold_spread=1.2,
    convert_s_per_gb=8.0,
    image_bytes=1.5 * GB,
    sif_bytes=0.5 * GB,
)
"""`begin_s`, `cached_build_s` and `convert_s_per_gb` as benchmarks/ measured them on two cores.
What is compiled differs more between workflows than between machines: 20 minutes is an assumption,
like the sizes.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """Who asks for how much. The rest of the requests compiles something."""

    name: str
    requests_per_day: float
    same_image_share: float
    """Of the requests, those whose image exists already: answered at once, nothing is built."""
    cached_share: float
    """Of the builds, those whose packages all come from the cache."""


SITES = (
    Site(name="a group", requests_per_day=20, same_image_share=0.3, cached_share=0.4),
    Site(name="a site", requests_per_day=200, same_image_share=0.4, cached_share=0.6),
    Site(name="a national centre", requests_per_day=2_000, same_image_share=0.5, cached_share=0.7),
    Site(
        name="a federation of ten centres",
        requests_per_day=20_000,
        same_image_share=0.6,
        cached_share=0.8,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulation found."""

    builds_per_day: float
    stored_bytes_per_day: float
    wait_median_s: float
    wait_p95_s: float
    busy: float
    """Of all slots' time, the part in which something was built."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/sizing.md")
    options = parser.parse_args()
    text = table(SITES, MEASURED)
    print(text)
    if options.write:
        replace_table(DOCS / "sizing.md", text)


def table(sites: Sequence[Site], stages: Stages) -> str:
    """Return what each site needs, in Markdown."""
    lines = [
        "| | requests a day | builds a day | new SIFs a day | workers of 2 slots | slots busy | wait, median "
        "| wait, 95 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for site in sites:
        workers, outcome = workers_needed(site, stages)
        lines.append(
            f"| {site.name} | {site.requests_per_day:,.0f} | {outcome.builds_per_day:,.0f} "
            f"| {outcome.stored_bytes_per_day / GB:,.0f} GB | {workers} | {outcome.busy:.0%} "
            f"| {_time(outcome.wait_median_s)} | {_time(outcome.wait_p95_s)} |"
        )
    return "\n".join(lines) + "\n"


def workers_needed(
    site: Site, stages: Stages, *, slots: int = 2, wait_p95_s: float = 300.0
) -> tuple[int, Outcome]:
    """Return the fewest workers with which 95 % of the builds begin in time."""
    workers = 1 + int(simulate(site, stages, workers=1, slots=slots, days=1).busy)
    while (outcome := simulate(site, stages, workers=workers, slots=slots)).wait_p95_s > wait_p95_s:
        workers = max(workers + 1, round(workers * 1.05))
    return workers, outcome


def simulate(site: Site, stages: Stages, *, workers: int, slots: int, days: int = DAYS) -> Outcome:
    """Simulate so many days of a site.

    Builds begin in the order of their requests, wherever a slot is free.
    """
    chance = random.Random(SEED)
    works = [
        (moment, work_s(site, stages, chance))
        for moment in requests(site, chance, days)
        if chance.random() >= site.same_image_share
    ]
    waits, _ = run(works, slots=workers * slots, begin_s=stages.begin_s)
    return Outcome(
        builds_per_day=len(works) / days,
        stored_bytes_per_day=len(works) * stages.sif_bytes / days,
        wait_median_s=statistics.median(waits),
        wait_p95_s=statistics.quantiles(waits, n=20)[-1],
        busy=sum(seconds for _, seconds in works) / (workers * slots * days * DAY_S),
    )


def requests(site: Site, chance: random.Random, days: int) -> Iterator[float]:
    """Yield when requests come: by chance, more of them within working hours."""
    for day in range(days):
        for share, begin_s, end_s in (
            (WORKING_SHARE, 0.0, WORKING_S),
            (1 - WORKING_SHARE, WORKING_S, DAY_S),
        ):
            rate = site.requests_per_day * share / (end_s - begin_s)
            moment_s = begin_s
            while (moment_s := moment_s + chance.expovariate(rate)) < end_s:
                yield day * DAY_S + moment_s


def work_s(site: Site, stages: Stages, chance: random.Random) -> float:
    """Return what one build takes from its beginning to its end."""
    if chance.random() < site.cached_share:
        build_s = stages.cached_build_s
    else:
        build_s = stages.cold_build_s * chance.lognormvariate(0, stages.cold_spread)
    return build_s + stages.convert_s_per_gb * stages.image_bytes / GB


def run(
    works: Sequence[tuple[float, float]], *, slots: int, begin_s: float
) -> tuple[list[float], float]:
    """Return the waiting times of builds, and when the last one ends.

    Given are when each build comes and how long it takes.
    """
    environment = simpy.Environment()
    free = simpy.Resource(environment, capacity=slots)
    waits: list[float] = []

    def build(comes_s: float, takes_s: float) -> Iterator[Any]:
        yield environment.timeout(comes_s)
        with free.request() as slot:
            yield slot
            yield environment.timeout(begin_s)
            waits.append(environment.now - comes_s)
            yield environment.timeout(takes_s)

    for comes_s, takes_s in works:
        environment.process(build(comes_s, takes_s))
    environment.run()
    return waits, environment.now


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    main()
