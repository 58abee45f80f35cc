"""Readiness: what is needed, and what is only warned of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from flask import Flask

from image_builder.errors import Misconfigured
from service.health import Check, Readiness


def fail() -> None:
    raise Misconfigured("Build steps have no limits.", hint="Do this.")


@pytest.fixture(autouse=True)
def app_context() -> Iterator[None]:
    with Flask("test").test_request_context():
        yield


def settled(readiness: Readiness) -> tuple[int, dict[str, str]]:
    """The answer when every check has been asked."""
    readiness.answer()
    for thread in threading.enumerate():
        if thread.name == "readiness":
            thread.join()
    answer = readiness.answer()
    return answer.status_code, answer.get_json()["checks"]


def test_what_is_needed_and_missing_is_not_ready() -> None:
    status, checks = settled(
        Readiness({"disk": Check(ask=lambda: None), "isolation": Check(ask=fail)})
    )
    assert (status, checks) == (
        503,
        {"disk": "ok", "isolation": "Build steps have no limits. Do this."},
    )


def test_what_is_not_needed_is_a_warning_there_and_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    readiness = Readiness(
        {"isolation": Check(ask=fail, every_s=0, needed=False), "disk": Check(ask=lambda: None)}
    )
    with caplog.at_level(logging.WARNING):
        status, checks = settled(readiness)
        settled(readiness)
    assert (status, checks) == (
        200,
        {"disk": "ok", "isolation": "warning: Build steps have no limits. Do this."},
    )
    assert [record.getMessage() for record in caplog.records] == [
        "isolation: Build steps have no limits. Do this."
    ]


def test_what_is_not_needed_holds_nobody_up() -> None:
    """And is asked last, wherever it stands."""
    go_on = threading.Event()
    readiness = Readiness(
        {"isolation": Check(ask=go_on.wait, needed=False), "disk": Check(ask=lambda: None)}
    )
    try:
        answer = readiness.answer()
        assert (answer.status_code, answer.get_json()["checks"]) == (200, {"disk": "ok"})
    finally:
        go_on.set()
