"""Limits on calls: by user, by address, for what is costly; on REST and pages, alone and in Redis."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from config.settings import ServiceSettings, Settings
from image_builder.errors import Misconfigured
from service import fair_use
from service.errors import TooOften
from service.fair_use import FairUse, OwnCounts, SharedCounts
from tests.service.conftest import REQUEST, ROOT, Api
from tests.service.test_web import Visitor
from tests.support.site import Site, free_port, listens

OF_USER, COSTLY, OF_ADDRESS = 12, 3, 5


@pytest.fixture
def settings(site: Site) -> Settings:
    return site.with_environ(
        CIC_CALLS_PER_MINUTE_PER_USER=str(OF_USER),
        CIC_COSTLY_CALLS_PER_MINUTE_PER_USER=str(COSTLY),
        CIC_CALLS_PER_MINUTE_PER_ADDRESS=str(OF_ADDRESS),
    ).settings


def test_a_user_has_so_many_calls_in_a_minute_and_is_told_so(ada: Api, bob: Api) -> None:
    for left in range(OF_USER - 1, -1, -1):
        answer = ada("GET", "/build/")
        assert answer.status_code == 200
        assert answer.headers["RateLimit-Limit"] == str(OF_USER)
        assert answer.headers["RateLimit-Remaining"] == str(left)
        assert 0 < int(answer.headers["RateLimit-Reset"]) <= 61
    refused = ada("GET", "/image/")
    assert refused.status_code == 429
    problem = refused.get_json()
    assert problem["code"] == "TOO_MANY_REQUESTS" and str(OF_USER) in problem["detail"]
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
    assert bob("GET", "/build/").status_code == 200  # at the same address


def test_costly_calls_are_fewer_and_others_still_work(ada: Api) -> None:
    answers = [ada("POST", "/build/plan", json=REQUEST) for _ in range(COSTLY + 1)]
    assert [answer.status_code == 429 for answer in answers] == [False] * COSTLY + [True]
    assert answers[0].headers["RateLimit-Limit"] == str(COSTLY)
    assert ada("POST", "/build/", json=REQUEST).status_code == 429
    assert ada("GET", "/build/").status_code == 200


def test_strangers_are_counted_by_address(app: Flask, ada: Api) -> None:
    def ask(path: str, address: str) -> int:
        environ = {"REMOTE_ADDR": address}
        return app.test_client().get(ROOT + path, environ_overrides=environ).status_code

    statuses = [ask("/openapi.json", "2001:db8:1:1::1") for _ in range(OF_ADDRESS - 1)]
    assert statuses == [200] * (OF_ADDRESS - 1)
    assert ask("/build/", "2001:db8:1:1:ffff::2") == 401  # of the same /64
    assert ask("/build/", "2001:db8:1:1::3") == 429
    assert ask("/login", "2001:db8:1:1::3") == 429
    assert ask("/openapi.json", "2001:db8:1:2::1") == 200
    for path in ("/health/live", "/metrics"):
        assert ask(path, "2001:db8:1:1::1") == 200
    logged_in = ada("GET", "/build/", environ_overrides={"REMOTE_ADDR": "2001:db8:1:1::1"})
    assert logged_in.status_code == 200


def test_pages_count_and_answer_with_a_page(app: Flask, ada: Api) -> None:
    there = Visitor(app, "ada")
    page = there.get("/machines")
    assert page.headers["RateLimit-Limit"] == str(OF_USER)
    while page.status_code == 200:
        page = there.get("/machines")
    assert page.status_code == 429
    assert page.mimetype == "text/html" and "are too many" in page.text
    assert int(page.headers["Retry-After"]) > 0
    assert ada("GET", "/build/").status_code == 429  # a user's pages and calls are one count
    style = there.client.get(f"{ROOT}/static/site.css", buffered=True)
    assert style.status_code == 200


def test_none_is_no_limit(site: Site) -> None:
    unlimited = site.with_environ(
        CIC_CALLS_PER_MINUTE_PER_USER="", CIC_COSTLY_CALLS_PER_MINUTE_PER_USER=""
    ).settings
    with Flask("test").app_context():
        use = FairUse(unlimited.service)
        for _ in range(10_000):
            use.count_user(1, is_costly=True)


def test_a_minute_ends_and_another_begins() -> None:
    moment = 100.0
    counts = OwnCounts(clock=lambda: moment)
    assert [counts.add("a")[0] for _ in range(3)] == [1, 2, 3]
    moment += 59
    assert counts.add("a") == (4, 1.0)
    assert counts.add("b") == (1, 60.0)
    moment += 1
    assert counts.add("a") == (1, 60.0)
    assert counts.add("b")[0] == 2


def test_many_addresses_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_use, "MAX_KEYS", 100)
    moment = 0.0
    counts = OwnCounts(clock=lambda: moment)
    for number in range(100):
        counts.add(f"old {number}")
    moment = 61.0
    for number in range(1000):
        counts.add(f"new {number}")
        assert len(counts._counts) <= 100


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis server, and its process."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed: scripts/install_test_parts does that")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not listens(port):
        assert time.monotonic() < end
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0", process
    process.kill()
    process.wait()


def test_processes_count_together_in_redis_and_alone_while_it_is_away(
    redis: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = redis
    service: dict[str, Any] = {"secret_key": "k" * 40, "call_counts_url": url}
    limits = ServiceSettings(**service, calls_per_minute_per_user=4)
    one, other = FairUse(limits), FairUse(limits)
    with Flask("test").app_context():
        for use in (one, other, one, other):
            use.count_user(7, is_costly=False)
        for use in (one, other):
            with pytest.raises(TooOften) as refused:
                use.count_user(7, is_costly=False)
            assert 0 < refused.value.retry_after_s <= 61
        process.kill()
        process.wait()
        for use in (one, other):
            for _ in range(4):
                use.count_user(7, is_costly=False)
            with pytest.raises(TooOften):
                use.count_user(7, is_costly=False)


def test_the_broker_is_counted_in_if_it_is_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(fair_use, "SharedCounts", lambda url: chosen.append(url) or OwnCounts())
    for key, url in (
        ("broker_url", "redis://a/0"),
        ("broker_url", "amqp://b"),
        ("call_counts_url", "rediss://c/1"),
    ):
        FairUse(ServiceSettings(**{"secret_key": "k" * 40, key: url}))  # type: ignore[arg-type]
    assert chosen == ["redis://a/0", "rediss://c/1"]
    with pytest.raises(ValueError, match="redis://"):
        ServiceSettings(secret_key="k" * 40, call_counts_url="http://x")  # type: ignore[arg-type]


def test_redis_without_its_packages_is_told(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(sys.modules, "limits.storage", None)
    with pytest.raises(Misconfigured, match="not installed"):
        SharedCounts("redis://127.0.0.1:1/0")
