"""Clients that send or read slowly, or not at all, hold up nobody.

The server is the real one. No test measures time: whoever waits behind a slow client waits for the
length of a client's timeout, and fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import select
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.followers import going_on
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from service.db.database import make_engine
from service.serving.handshake import HANDSHAKE_S
from service.web import captchas
from tests.support.certificate import make_certificate
from tests.support.memory import steady_memory
from tests.support.site import (
    PASSWORD,
    USER,
    Service,
    free_port,
    listens,
    make_site,
    running_service,
    start_service,
)

SIF_BYTES = 24 * 1024**2
OTHERS_S = 20.0
"""How long one of those others waits for an answer."""
LOGIN = b"Authorization: Basic " + b64encode(f"{USER}:{PASSWORD}".encode())
HALF_SENT = (
    b"",
    b"G",
    b"GET /image_creation/health/live HTTP/1.1\r\nHost: here\r\nX-Slow: ",
    b"POST /image_creation/login HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nname=",
    b"POST /image_creation/build/ HTTP/1.1\r\nHost: here\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
    % LOGIN,
    b"POST /image_creation/build/ HTTP/1.1\r\nHost: here\r\n%s\r\nContent-Length: 999999\r\n"
    b"Expect: 100-continue\r\n\r\n" % LOGIN,
)


@pytest.fixture(scope="module")
def sif() -> bytes:
    return os.urandom(SIF_BYTES)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, sif: bytes) -> Iterator[Service]:
    """One process of few threads."""
    site = make_site(tmp_path_factory.mktemp("site")).with_environ(
        CIC_WEB_PROCESSES="1", CIC_WEB_THREADS="8", CIC_MAX_CONNECTIONS_PER_ADDRESS="300"
    )
    store = ImageStore(site.tmp_folder / "store")
    with store.temporary_path() as temporary:
        temporary.write_bytes(sif)
        record = ImageRecord(
            identity="sha256:" + "1" * 64, image_id="a", platform="linux/amd64", filename="a.sif"
        )
        store.publish(temporary, record)
    with running_service(site) as running:
        others_are_answered(running, 2)
        yield running


def address(service: Service) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


@contextlib.contextmanager
def connections(service: Service, count: int, source: str) -> Iterator[list[socket.socket]]:
    """So many connections from one address, each of which takes in little."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.bind((source, 0))
            one.connect(address(service))
            made.append(stack.enter_context(one))
        yield made


def others_are_answered(service: Service, times: int = 20) -> None:
    for _ in range(times):
        url = f"{service.url}/image_creation"
        assert requests.get(f"{url}/health/live", timeout=OTHERS_S).status_code == 200
        answer = requests.get(f"{url}/build/", auth=(USER, PASSWORD), timeout=OTHERS_S)
        assert answer.status_code == 200


def closed(sockets: list[socket.socket]) -> int:
    """How many of them the server has closed."""
    readable, _, _ = select.select(sockets, [], [], 0)
    count = 0
    for one in readable:
        try:
            count += one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            continue
        except OSError:
            count += 1
    return count


def get(path: str, *headers: bytes) -> bytes:
    lines = [f"GET /image_creation{path} HTTP/1.1".encode(), b"Host: here", LOGIN, *headers]
    return b"\r\n".join([*lines, b"", b""])


def test_half_sent_requests(service: Service) -> None:
    with steady_memory(service), connections(service, 500, "127.0.0.2") as sockets:
        for number, one in enumerate(sockets):
            with contextlib.suppress(OSError):  # those that wait longest make room for the others
                one.sendall(HALF_SENT[number % len(HALF_SENT)])
        others_are_answered(service)
        assert closed(sockets) >= 200


def test_a_request_that_never_comes_is_given_up(service: Service) -> None:
    with connections(service, 20, "127.0.0.2") as sockets:
        for number, one in enumerate(sockets):
            one.sendall(HALF_SENT[number % 3])
        for one in sockets:
            one.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""


def test_an_address_that_has_all_its_connections_still_gets_one(service: Service) -> None:
    """Those behind one router are not kept out by one of them."""
    with connections(service, 400, "127.0.0.2") as sockets:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendall(HALF_SENT[3])
        for _ in range(10):
            asks = http.client.HTTPConnection(
                *address(service), timeout=OTHERS_S, source_address=("127.0.0.2", 0)
            )
            asks.request("GET", "/image_creation/health/live")
            assert asks.getresponse().status == 200
            asks.close()


def test_slow_readers_of_a_download(service: Service) -> None:
    with steady_memory(service), connections(service, 200, "127.0.0.3") as sockets:
        for one in sockets:
            one.sendall(get("/images/download/a.sif"))
        others_are_answered(service)
        for one in sockets:
            one.settimeout(OTHERS_S)
            assert one.recv(12) == b"HTTP/1.1 200"


def test_slow_readers_of_a_log(service: Service) -> None:
    build_id, log = going_on(service)
    log.write_bytes(b"0123456789abcdef\n" * 200_000)
    with steady_memory(service), connections(service, 100, "127.0.0.3") as sockets:
        for one in sockets:
            one.sendall(get(f"/build/{build_id}/log", b"Accept: text/event-stream"))
        others_are_answered(service)
        for one in sockets:
            one.settimeout(OTHERS_S)
            assert one.recv(12) == b"HTTP/1.1 200"


def test_more_follow_a_log_than_there_are_threads(service: Service) -> None:
    build_id, log = going_on(service)
    log.write_bytes(b"first\n")
    url = f"{service.url}/image_creation/build/{build_id}/log"
    heard: list[bytes] = []

    def follow() -> None:
        headers = {"Accept": "text/event-stream"}
        with requests.get(
            url, headers=headers, auth=(USER, PASSWORD), stream=True, timeout=OTHERS_S
        ) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if line == b"data: last":
                    heard.append(line)
                    return

    threads = [threading.Thread(target=follow) for _ in range(40)]
    for thread in threads:
        thread.start()
    others_are_answered(service, 5)
    with log.open("ab") as file:
        file.write(b"last\n")
    for thread in threads:
        thread.join()
    assert len(heard) == 40


HALF_SHAKEN = (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
"""The beginnings of a ClientHello."""


@contextlib.contextmanager
def serving_over_tls(folder: Path) -> Iterator[tuple[Service, Path]]:
    """A service of one process that takes 40 connections of an address, and its certificate."""
    certificate, key = make_certificate(folder)
    port = free_port()
    site = make_site(folder / "site").with_environ(
        CIC_WEB_PROCESSES="1",
        CIC_MAX_CONNECTIONS_PER_ADDRESS="40",
        CIC_TLS_CERTIFICATE=str(certificate),
        CIC_TLS_KEY=str(key),
        CIC_PORT=str(port),
    )
    log = folder / "service.log"
    process = start_service(site, log)
    service = Service(site, f"https://127.0.0.1:{port}", log, process)
    try:
        end = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < end and process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.1)
        yield service, certificate
    finally:
        process.terminate()
        process.wait(60)


def test_half_a_handshake_counts_as_a_connection(tmp_path: Path) -> None:
    """It is closed for the next one of its address long before its own time is over."""
    with serving_over_tls(tmp_path) as (service, certificate):
        port = int(service.url.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            made = []
            for number in range(200):
                one = stack.enter_context(socket.socket())
                one.bind(("127.0.0.2", 0))
                one.connect(("127.0.0.1", port))
                with contextlib.suppress(OSError):
                    one.sendall(HALF_SHAKEN[number % 3])
                made.append(one)
            for one in made[:160]:
                one.settimeout(HANDSHAKE_S / 2)
                with contextlib.suppress(ConnectionResetError):
                    assert one.recv(1) == b""
            for _ in range(5):
                answer = requests.get(
                    f"{service.url}/image_creation/health/live",
                    verify=str(certificate),
                    timeout=OTHERS_S,
                )
                assert answer.status_code == 200


def test_what_a_log_says_comes_as_it_is_said(service: Service) -> None:
    """An event that is there is not kept back until there are more."""
    build_id, log = going_on(service)
    log.write_bytes(b"")
    with requests.get(
        f"{service.url}/image_creation/build/{build_id}/log",
        headers={"Accept": "text/event-stream"},
        auth=(USER, PASSWORD),
        stream=True,
        timeout=OTHERS_S,
    ) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert next(lines) == b"retry: 3000"
        for number in range(3):
            with log.open("ab") as file:
                file.write(b"line %d\n" % number)
            while (line := next(lines)) != b"data: line %d" % number:
                assert not line.startswith(b"data: ")


def test_many_who_listen_to_captchas(service: Service) -> None:
    engine = make_engine(service.site.settings.service.database)
    ids = [captchas.ask(engine, "198.51.100.7") for _ in range(20)]
    engine.dispose()
    statuses: list[int] = []

    def listen(captcha_id: str) -> None:
        url = f"{service.url}/image_creation/captchas/{captcha_id}.wav"
        for _ in range(captchas.MAX_SHOWN):
            statuses.append(requests.get(url, timeout=120).status_code)

    threads = [threading.Thread(target=listen, args=(each,)) for each in ids]
    for thread in threads:
        thread.start()
    others_are_answered(service)
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429} and statuses.count(200) >= captchas.MAX_SHOWN


@pytest.mark.parametrize(
    ("range_", "begin", "end"),
    [
        (None, 0, SIF_BYTES),
        ("bytes=0-9", 0, 10),
        ("bytes=65530-65545", 65530, 65546),
        (f"bytes={SIF_BYTES - 100000}-", SIF_BYTES - 100000, SIF_BYTES),
        ("bytes=-5000000", SIF_BYTES - 5000000, SIF_BYTES),
    ],
)
def test_downloads_are_whole(
    service: Service, sif: bytes, range_: str | None, begin: int, end: int
) -> None:
    headers = {} if range_ is None else {"Range": range_}
    answer = service.call("GET", "/images/download/a.sif", headers=headers)
    assert answer.status_code == (200 if range_ is None else 206)
    assert int(answer.headers["Content-Length"]) == end - begin
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(sif[begin:end]).digest()


def test_a_connection_takes_many_requests(service: Service) -> None:
    with requests.Session() as session:
        session.auth = (USER, PASSWORD)
        url = f"{service.url}/image_creation"
        for _ in range(3):
            assert session.head(f"{url}/images/download/a.sif", timeout=OTHERS_S).ok
            whole = session.get(f"{url}/images/download/a.sif", timeout=OTHERS_S)
            assert len(whole.content) == SIF_BYTES
            assert session.get(f"{url}/build/", timeout=OTHERS_S).ok
            assert session.post(f"{url}/build/", data=b"{", timeout=OTHERS_S).status_code == 400


def test_bodies_in_chunks_and_bodies_that_are_too_large(service: Service) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b" " * 65536

    url = "/build/"
    assert service.call("POST", url, data=pieces(3)).status_code == 400
    for body in (pieces(40), b" " * (1024**2 + 1)):
        refused = service.call("POST", url, data=body)
        assert (refused.status_code, refused.json()["code"]) == (413, "TOO_LARGE")


def test_no_connection_is_left(service: Service) -> None:
    """What the tests before have left ends, and its files with it."""
    pid = int(Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text())
    end = time.monotonic() + 60
    while True:
        names = [os.readlink(path) for path in _descriptors(pid)]
        left = [name for name in names if name.endswith(".sif")]
        if not left and sum(name.startswith("socket:") for name in names) < 20:
            return
        assert time.monotonic() < end, left
        time.sleep(0.2)


def _descriptors(pid: int) -> list[Path]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            os.readlink(path)
            found.append(path)
    return found
