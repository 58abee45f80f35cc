"""What operators see: numbers for Prometheus, the dashboard that shows them, and the page with
queue and workers.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PROJECT
from tests.service.conftest import Api, FakeBuilder
from tests.service.test_web import Visitor

DASHBOARD = PROJECT / "deploy" / "grafana" / "cic.json"
KINDS = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


def samples(api: Api) -> list[Any]:
    answer = api("GET", "/metrics")
    assert answer.status_code == 200
    return [
        sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    ]


def value(found: list[Any], name: str, **labels: str) -> float:
    (one,) = [sample.value for sample in found if sample.name == name and sample.labels == labels]
    return float(one)


def busy_service(ada: Api, bob: Api, builder: FakeBuilder) -> None:
    """One build that was shared, one found in the store, one that failed, and one going on."""
    builder.hold.clear()
    first, second = ada.submit(), bob.submit()
    ada.wait(first, "BUILDING")
    builder.hold.set()
    ada.wait(first), bob.wait(second)
    assert ada.status(ada.submit())["status"] == "FINISHED"
    builder.error = RuntimeError("no")
    assert ada.wait(ada.submit(step_id="other"))["status"] == "FAILED"
    builder.error = None
    builder.hold.clear()
    ada.wait(ada.submit(force=True), "BUILDING")


@KINDS
def test_numbers_are_those_of_the_records(ada: Api, bob: Api, builder: FakeBuilder) -> None:
    busy_service(ada, bob, builder)
    pool = ada.app.extensions["cic"].executor
    pool._heartbeat()
    found = samples(ada)
    assert value(found, "cic_builds", status="FINISHED") == 3
    assert value(found, "cic_builds", status="FAILED") == 1
    assert value(found, "cic_runs", state="BUILDING") == 1
    assert [value(found, "cic_builds_made", how=how) for how in ("built", "shared", "stored")] == [
        1,
        1,
        1,
    ]
    assert value(found, "cic_builds_failed_total", code="INTERNAL") == 1
    assert [
        value(found, "cic_workers", state=state) for state in ("ready", "stopping", "lost")
    ] == [1, 0, 0]
    assert value(found, "cic_worker_runs", worker=pool.name) == 1
    assert value(found, "cic_stage_seconds_count", stage="build") == 1
    assert value(found, "cic_delivered_bytes") > 0
    builder.hold.set()


def test_every_metric_of_the_dashboard_exists(ada: Api, bob: Api, builder: FakeBuilder) -> None:
    busy_service(ada, bob, builder)
    ada.app.extensions["cic"].executor._heartbeat()
    known = {sample.name: set(sample.labels) for sample in samples(ada)}
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) >= 10
    for expression in expressions:
        names = re.findall(r"\bcic_\w+", expression)
        assert names and set(names) <= set(known), expression
        for label in re.findall(r"by \(([^)]*)\)", expression):
            assert set(re.split(r",\s*", label)) <= set().union(*(known[name] for name in names)), (
                expression
            )
    assert {name for name in known if name.startswith("cic_")} == {
        name for expression in expressions for name in re.findall(r"\bcic_\w+", expression)
    }
    builder.hold.set()


@KINDS
def test_the_operators_page_shows_queue_and_workers(
    ada: Api, bob: Api, builder: FakeBuilder
) -> None:
    busy_service(ada, bob, builder)
    pool = ada.app.extensions["cic"].executor
    pool._heartbeat()
    page = Visitor(ada.app, "root").get("/admin").text
    assert pool.name in page and "1 of 2" in page and "BUILDING on" in page and "demo_hello" in page
    builder.hold.set()
