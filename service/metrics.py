"""Count for Prometheus in the database, at each scrape: the same in whichever process is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from flask import Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection, Engine

from image_builder.state import BuildState
from service.db.builds import STATUS
from service.db.database import reading
from service.db.tables import BUILDS, RUNNING, RUNS
from service.workers import registry as workers_registry


def exposition(engine: Engine, *, lost_after_s: float) -> Response:
    """Return the answer to a scrape."""
    registry = CollectorRegistry()
    registry.register(_Database(engine, lost_after_s))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Database(Collector):
    """Counts what the tables hold."""

    def __init__(self, engine: Engine, lost_after_s: float) -> None:
        self._engine, self._lost_after_s = engine, lost_after_s

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with reading(self._engine) as connection:
            yield from (
                _builds(connection),
                _runs(connection),
                *_queue(connection),
                _failures(connection),
                _made(connection),
                *_workers(connection),
                *_durations(connection),
                _stored(connection),
            )
        yield from _registered(
            workers_registry.all_workers(self._engine, lost_after_s=self._lost_after_s)
        )


def _builds(connection: Connection) -> Metric:
    family = GaugeMetricFamily("cic_builds", "Builds by status", labels=["status"])
    rows = connection.execute(
        sa.select(STATUS, sa.func.count())
        .select_from(BUILDS.join(RUNS, RUNS.c.id == BUILDS.c.run_id))
        .group_by(STATUS)
    )
    return _by_state(family, rows)


def _runs(connection: Connection) -> Metric:
    family = GaugeMetricFamily("cic_runs", "Runs by state", labels=["state"])
    return _by_state(
        family, connection.execute(sa.select(RUNS.c.state, sa.func.count()).group_by(RUNS.c.state))
    )


def _by_state(family: GaugeMetricFamily, rows: Any) -> Metric:
    counted = {BuildState(state): count for state, count in rows}
    for state in BuildState:
        family.add_metric([state.value], counted.get(state, 0))
    return family


def _queue(connection: Connection) -> Iterator[Metric]:
    pending = RUNS.c.state == BuildState.PENDING
    length, oldest = connection.execute(
        sa.select(sa.func.count(), sa.func.min(RUNS.c.created_at)).where(pending)
    ).one()
    yield GaugeMetricFamily("cic_queue_length", "Runs that wait for a worker", value=length)
    age_s = 0.0 if oldest is None else max(0.0, time.time() - oldest.timestamp())
    yield GaugeMetricFamily(
        "cic_queue_age_seconds", "How long the oldest of them has waited", value=age_s
    )


def _made(connection: Connection) -> Metric:
    """Count finished builds by origin: their own run, another's run, or what was stored already."""
    family = GaugeMetricFamily(
        "cic_builds_made", "Finished builds by where they came from", labels=["how"]
    )
    finished = (
        sa.select(sa.func.count())
        .select_from(BUILDS.join(RUNS, RUNS.c.id == BUILDS.c.run_id))
        .where(BUILDS.c.state == BuildState.FINISHED)
    )
    total = connection.scalar(finished) or 0
    stored = connection.scalar(finished.where(BUILDS.c.created_at >= RUNS.c.ended_at)) or 0
    built = (
        connection.scalar(
            sa.select(sa.func.count()).where(
                RUNS.c.state == BuildState.FINISHED, RUNS.c.worker.is_not(None)
            )
        )
        or 0
    )
    for how, count in (
        ("built", built),
        ("shared", max(0, total - stored - built)),
        ("stored", stored),
    ):
        family.add_metric([how], count)
    return family


def _failures(connection: Connection) -> Metric:
    family = CounterMetricFamily("cic_builds_failed", "Failed builds by cause", labels=["code"])
    for code, count in connection.execute(
        sa.select(BUILDS.c.error_code, sa.func.count())
        .where(BUILDS.c.error_code.is_not(None))
        .group_by(BUILDS.c.error_code)
    ):
        family.add_metric([code], count)
    return family


def _workers(connection: Connection) -> Iterator[Metric]:
    busy = connection.execute(
        sa.select(RUNS.c.worker, sa.func.count(), sa.func.min(RUNS.c.heartbeat_at))
        .where(RUNS.c.state.in_(RUNNING))
        .group_by(RUNS.c.worker)
    ).all()
    running = GaugeMetricFamily(
        "cic_worker_runs", "Runs that a worker has going on", labels=["worker"]
    )
    silence = GaugeMetricFamily(
        "cic_worker_silence_seconds", "Since a worker was heard of", labels=["worker"]
    )
    for worker, count, heard_at in busy:
        running.add_metric([worker or ""], count)
        if heard_at is not None:
            silence.add_metric([worker or ""], max(0.0, time.time() - heard_at.timestamp()))
    yield running
    yield silence


def _registered(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    """Every worker that is there: what it takes at once, and what it has."""
    there = GaugeMetricFamily("cic_workers", "Workers by what they do", labels=["state"])
    states = [row["state"] for row in rows]
    for state in workers_registry.STATES:
        there.add_metric([state], states.count(state))
    slots = GaugeMetricFamily(
        "cic_worker_slots", "Builds that a worker takes at once", labels=["worker", "platform"]
    )
    for row in rows:
        for platform in (*row["platforms"], *row["emulated"]):
            slots.add_metric([row["name"], platform], row["slots"])
    yield there
    yield slots


def _durations(connection: Connection) -> Iterator[Metric]:
    """Sum and count the stages of finished runs.

    The mean of a stage over any time is the ratio of the two rates.
    """
    rows = connection.execute(
        sa.select(
            RUNS.c.created_at,
            RUNS.c.started_at,
            RUNS.c.building_at,
            RUNS.c.converting_at,
            RUNS.c.ended_at,
        )
        .where(RUNS.c.state == BuildState.FINISHED)
        .order_by(RUNS.c.ended_at.desc())
        .limit(10_000)
    )
    sums: dict[str, float] = {"queue": 0.0, "prepare": 0.0, "build": 0.0, "convert": 0.0}
    counts = dict.fromkeys(sums, 0)
    for row in rows:
        moments = {
            "queue": (row.created_at, row.started_at),
            "prepare": (row.started_at, row.building_at or row.converting_at or row.ended_at),
            "build": (row.building_at, row.converting_at or row.ended_at),
            "convert": (row.converting_at, row.ended_at),
        }
        for stage, (begin, end) in moments.items():
            if begin is not None and end is not None:
                sums[stage] += max(0.0, (end - begin).total_seconds())
                counts[stage] += 1
    total = GaugeMetricFamily(
        "cic_stage_seconds_sum", "Time of finished runs by stage", labels=["stage"]
    )
    count = GaugeMetricFamily("cic_stage_seconds_count", "Finished runs by stage", labels=["stage"])
    for stage in sums:
        total.add_metric([stage], sums[stage])
        count.add_metric([stage], counts[stage])
    yield total
    yield count


def _stored(connection: Connection) -> Metric:
    files = (
        sa.select(BUILDS.c.sha256, sa.func.max(BUILDS.c.size_bytes).label("size_bytes"))
        .where(BUILDS.c.sha256.is_not(None))
        .group_by(BUILDS.c.sha256)
        .subquery()
    )
    size_bytes = (
        connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(files.c.size_bytes), 0))) or 0
    )
    return GaugeMetricFamily(
        "cic_delivered_bytes", "Bytes of the SIFs that builds were given", value=size_bytes
    )
