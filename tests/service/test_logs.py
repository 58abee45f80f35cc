"""Logs: appended by one process, read and followed by others without a gap or a repeat."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from image_builder.host.secrets import Secret
from service.db.database import db, init_database, migrate
from service.logs import follow as logs_follow
from service.logs import protocol
from service.logs.database import DatabaseLogs
from service.logs.folder import FolderLogs
from service.logs.protocol import Log
from service.logs.run_log import RunLog
from tests.service.conftest import Api, FakeBuilder
from tests.service.test_web import Visitor


def events_of(text: str) -> list[dict[str, list[str]]]:
    """Server-sent events, each as its fields."""
    events = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        events.append(fields)
    return events


def data_of(text: str) -> list[str]:
    return [
        line for event in events_of(text) if "event" not in event for line in event.get("data", [])
    ]


@pytest.fixture(params=["folder", "sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A log of each kind, which nobody has written to."""
    if request.param == "folder":
        yield FolderLogs(tmp_path / "logs").of("run")
        return
    server = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    url = server.database() if server else f"sqlite:///{tmp_path / 'db.sqlite'}"
    app = Flask("test")
    init_database(app, url)
    migrate(app, tmp_path / "lock")
    with app.app_context():
        engine = db.engine
    yield DatabaseLogs(engine).of("run")
    engine.dispose()
    if server:
        server.drop(url)


def write(kept: Log, raw: bytes) -> None:
    appender = kept.appender()
    appender.append(raw)
    appender.close()


def test_a_line_is_there_at_once_and_without_secrets(kept: Log) -> None:
    with RunLog(kept, max_bytes=1000, secrets=[Secret("hunter2")]) as log:
        log.line("token hunter2 é")
        assert log.size_bytes == 18
        assert kept.read(0).decode() == "token [hidden] é\n"
        log.line("two\nlines")
    assert kept.read(18).decode() == "two lines\n"
    assert kept.size_bytes() == 28


def test_a_log_is_bounded_and_says_so(kept: Log) -> None:
    with RunLog(kept, max_bytes=1000) as log:
        for _ in range(100):
            log.line("x" * 99)
    text = kept.read(0).decode()
    assert len(text) < 1100
    assert text.endswith("the log is full; what follows is not kept]\n")
    with RunLog(kept, max_bytes=1000) as log:
        log.line("more")
    assert kept.read(0).decode() == text


def test_a_follower_that_comes_back_sees_every_byte_once(kept: Log) -> None:
    ended = threading.Event()
    lines = [f"line {n} é \r<b>" for n in range(200)]

    def write() -> None:
        with RunLog(kept, max_bytes=10**6) as log:
            for line in lines:
                log.line(line)
                time.sleep(0.002)
        ended.set()

    threading.Thread(target=write).start()

    def ends_at() -> int | None:
        return logs_follow.WHOLE if ended.is_set() else None

    seen: list[str] = []
    offset = 0
    for _ in itertools.count():
        text = "".join(logs_follow.follow(kept, offset, ends_at=ends_at, seconds=0.1, tick_s=0.01))
        seen += data_of(text)
        ids = [int(event["id"][0]) for event in events_of(text) if "id" in event]
        offset = ids[-1] if ids else offset
        if "event: end" in text:
            break
    assert seen == [line.replace("\r", " ") for line in lines]
    assert offset == kept.size_bytes()


def test_a_follower_hears_that_somebody_is_there(kept: Log) -> None:
    text = "".join(
        logs_follow.follow(
            kept, 0, ends_at=lambda: None, seconds=0.2, keep_alive_s=0.05, tick_s=0.02
        )
    )
    assert text.count(": still here\n\n") >= 2


def test_a_last_line_without_an_end_is_kept_until_the_build_has_ended(kept: Log) -> None:
    write(kept, b"one\ntw")

    def follow(ended: bool) -> list[str]:
        return data_of(
            "".join(
                logs_follow.follow(
                    kept, 0, ends_at=lambda: logs_follow.WHOLE if ended else None, seconds=0
                )
            )
        )

    assert follow(False) == ["one"]
    assert follow(True) == ["one", "tw"]


def test_a_log_ends_where_its_build_ended(kept: Log) -> None:
    write(kept, b"mine\ntheirs\n")
    for offset, seen in ((0, ["mine"]), (5, []), (9, [])):
        text = "".join(logs_follow.follow(kept, offset, ends_at=lambda: 5, seconds=0))
        assert data_of(text) == seen
        assert "event: end" in text
    assert (kept.read(0, 5), kept.read(7, 5)) == (b"mine\n", b"")


def test_a_line_longer_than_a_piece_comes_through(kept: Log) -> None:
    write(kept, b"x" * (protocol.CHUNK_BYTES + 10) + b"\nend\n")
    text = "".join(logs_follow.follow(kept, 0, ends_at=lambda: logs_follow.WHOLE, seconds=0))
    assert "".join(data_of(text)) == "x" * (protocol.CHUNK_BYTES + 10) + "end"


def test_two_writers_at_once_lose_nothing(kept: Log) -> None:
    def lines(name: str) -> None:
        with RunLog(kept, max_bytes=10**6) as log:
            for number in range(40):
                log.line(f"{name} {number}")
                assert log.size_bytes

    threads = [threading.Thread(target=lines, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = kept.read(0).decode()
    assert kept.size_bytes() == len(text)
    for name in "ab":
        assert [line for line in text.splitlines() if line[0] == name] == [
            f"{name} {n}" for n in range(40)
        ]


def test_a_log_is_read_from_any_byte_on_and_removed(kept: Log) -> None:
    raw = bytes(range(256)) * 1000
    for begin in range(0, len(raw), 50_000):
        write(kept, raw[begin : begin + 50_000])
    for offset, end in (
        (0, 10),
        (49_999, 50_001),
        (100_001, 130_000),
        (255_999, None),
        (256_000, None),
        (10**9, None),
    ):
        assert kept.read(offset, end) == raw[offset:end]
    assert len(kept.read(0)) == protocol.CHUNK_BYTES
    assert b"".join(protocol.blocks(kept, 50_001, 250_000)) == raw[50_001:250_000]
    assert kept.remove() and kept.size_bytes() == 0 and kept.read(0) == b""


def test_the_log_in_pieces_is_the_log(ada: Api, builder: FakeBuilder) -> None:
    builder.lines = [f"line {n}" for n in range(50)]
    build_id = ada.submit()
    text, offset, complete = "", 0, "false"
    while complete != "true":
        answer = ada("GET", f"/build/{build_id}/log?offset={offset}")
        text += answer.text
        offset, complete = int(answer.headers["X-Log-Offset"]), answer.headers["X-Log-Complete"]
        assert offset == len(text.encode())
    assert [line for line in text.splitlines() if line.startswith("line ")] == builder.lines
    assert ada("GET", f"/build/{build_id}/log").text == text
    assert ada("GET", f"/build/{build_id}/log?offset=99999999").text == ""
    streamed = ada("GET", f"/build/{build_id}/log", headers={"Accept": "text/event-stream"})
    assert streamed.content_type.startswith("text/event-stream")
    assert "".join(f"{line}\n" for line in data_of(streamed.text)) == text
    assert "event: end" in streamed.text
    resumed = ada(
        "GET",
        f"/build/{build_id}/log",
        headers={"Accept": "text/event-stream", "Last-Event-ID": str(offset)},
    )
    assert data_of(resumed.text) == []


@pytest.mark.parametrize("offset", ["-1", "x", "9" * 30, "1.5", "٣"])
def test_a_bad_offset_is_refused(ada: Api, offset: str) -> None:
    build_id = ada.submit()
    assert ada("GET", f"/build/{build_id}/log?offset={offset}").status_code == 400
    assert (
        ada(
            "GET",
            f"/build/{build_id}/log",
            headers={
                "Accept": "text/event-stream",
                "Last-Event-ID": offset.encode("ascii", "replace").decode(),
            },
        ).status_code
        == 400
    )


def test_followers_beyond_the_bound_are_told_what_there_is(ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    build_id = ada.submit()
    ada.wait(build_id, "BUILDING")
    streams = ada.app.extensions["cic"].streams
    while streams.acquire(blocking=False):
        pass
    answer = ada("GET", f"/build/{build_id}/log", headers={"Accept": "text/event-stream"})
    assert answer.text.startswith("retry: ")
    assert "building" in data_of(answer.text)
    assert "event: end" not in answer.text
    builder.hold.set()


class TalkingBuilder(FakeBuilder):
    """Writes another line for everybody who is built for."""

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.lines = [f"for {arguments[0].version}"]
        return super().__call__(*arguments, **more)


class TestWhatIsWrittenForOthers:
    @pytest.fixture
    def builder(self) -> TalkingBuilder:
        return TalkingBuilder()

    def test_whoever_cancels_keeps_the_log_up_to_then(
        self, ada: Api, bob: Api, builder: FakeBuilder
    ) -> None:
        builder.hold.clear()
        hers, his = ada.submit(), bob.submit(version="main")
        ada.wait(hers, "BUILDING")
        while "for latest" not in bob("GET", f"/build/{his}/log").text:
            time.sleep(0.02)
        before = bob("GET", f"/build/{his}/log").text
        assert bob("POST", f"/build/{his}/cancel").get_json()["error_code"] == "CANCELLED"
        builder.hold.set()
        assert ada.wait(hers)["status"] == "FINISHED"

        whole = ada("GET", f"/build/{hers}/log").text
        kept = bob("GET", f"/build/{his}/log")
        assert (kept.text, kept.headers["X-Log-Complete"]) == (before, "true")
        assert len(whole) > len(kept.text) and whole.startswith(kept.text)
        followed = bob("GET", f"/build/{his}/log", headers={"Accept": "text/event-stream"}).text
        assert "".join(f"{line}\n" for line in data_of(followed)) == kept.text
        assert "CONVERTING" in whole and "CONVERTING" not in followed
        page = Visitor(bob.app, "bob").get(f"/builds/{his}/log").text
        assert page == kept.text

    def test_whoever_has_what_they_wanted_reads_no_further(
        self, ada: Api, bob: Api, builder: FakeBuilder
    ) -> None:
        builder.hold.clear()
        hers, his = ada.submit(), bob.submit(version="main")
        builder.hold.set()
        ada.wait(hers)
        bob.wait(his)
        assert "for main" not in ada("GET", f"/build/{hers}/log").text
        assert "for latest" in ada("GET", f"/build/{hers}/log").text
        assert "for main" in bob("GET", f"/build/{his}/log").text

    def test_who_is_alone_keeps_all_of_it(self, ada: Api, builder: FakeBuilder) -> None:
        builder.hold.clear()
        build_id = ada.submit()
        ada.wait(build_id, "BUILDING")
        ada("POST", f"/build/{build_id}/cancel")
        while "cancelled" not in (text := ada("GET", f"/build/{build_id}/log").text):
            time.sleep(0.02)
        assert "for latest" in text
