"""Measure what slow clients cost others: `python3 -m benchmarks.slow_clients [--seconds N]`.

Starts a service with its default settings. One address holds 500 connections with half a request on
each, another one has 200 downloads that it takes in slowly. Meanwhile somebody else asks short
questions.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import requests

from benchmarks.followers import going_on
from benchmarks.rows import Row, show
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from tests.support.memory import MOST_GROWTH_BYTES, memory_bytes
from tests.support.site import PASSWORD, USER, Service, make_site, running_service

HALF_OPEN, READERS = 500, 200
SIF_BYTES = 24 * 1024**2
READ_BYTES = 512
LOGIN = b"Authorization: Basic " + b64encode(f"{USER}:{PASSWORD}".encode())
HALF = (
    b"GET /image_creation/health/live HTTP/1.1\r\nHost: here\r\nX-Slow: ",
    b"POST /image_creation/login HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nname=",
)
DOWNLOAD = b"GET /image_creation/images/download/a.sif HTTP/1.1\r\nHost: here\r\n%s\r\n\r\n" % LOGIN
GOAL_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    show(rows(parser.parse_args().seconds))


def rows(seconds: float = 20.0) -> list[Row]:
    """Return the 95th percentile of others' questions, and the growth of the service's memory."""
    with tempfile.TemporaryDirectory() as root:
        site = make_site(Path(root) / "site")
        _store(ImageStore(site.tmp_folder / "store"))
        with running_service(site) as service:
            build_id, _ = going_on(service)
            _asked(service, build_id, 2.0)
            before = memory_bytes(service)
            with _slow_clients(service):
                taken = _asked(service, build_id, seconds)
                after = memory_bytes(service)
    grown = max(after[pid] - before[pid] for pid in before.keys() & after.keys())
    what = f"short questions beside {HALF_OPEN} half-open connections and {READERS} slow readers"
    return [
        Row(f"{what}, 95 %", statistics.quantiles(taken, n=20)[-1], GOAL_S, " s"),
        Row(
            "... growth of the process that grew most", grown / 1e6, MOST_GROWTH_BYTES / 1e6, " MB"
        ),
    ]


def _store(store: ImageStore) -> None:
    record = ImageRecord(
        identity="sha256:" + "1" * 64, image_id="a", platform="linux/amd64", filename="a.sif"
    )
    with store.temporary_path() as temporary:
        temporary.write_bytes(os.urandom(SIF_BYTES))
        store.publish(temporary, record)


def _asked(service: Service, build_id: str, seconds: float) -> list[float]:
    """Ask for a build's status again and again; return how long each answer took."""
    taken = []
    url = f"{service.url}/image_creation/build/{build_id}"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        answer = requests.get(url, auth=(USER, PASSWORD), timeout=60)
        taken.append(time.monotonic() - begun)
        assert answer.status_code == 200
        time.sleep(0.02)
    return taken


@contextlib.contextmanager
def _slow_clients(service: Service) -> Iterator[None]:
    """Keep the connections; those that the server closes are opened again."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    stop = threading.Event()
    threads = [
        threading.Thread(target=_keep_half_open, args=((host, int(port)), stop)),
        threading.Thread(target=_read_slowly, args=((host, int(port)), stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _connected(address: tuple[str, int], source: str, sent: bytes) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.bind((source, 0))
    one.connect(address)
    with contextlib.suppress(OSError):
        one.sendall(sent)
    one.setblocking(False)
    return one


def _is_closed(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _keep_half_open(address: tuple[str, int], stop: threading.Event) -> None:
    kept = [_connected(address, "127.0.0.2", HALF[number % 2]) for number in range(HALF_OPEN)]
    while not stop.wait(0.5):
        for index, one in enumerate(kept):
            if _is_closed(one):
                one.close()
                kept[index] = _connected(address, "127.0.0.2", HALF[index % 2])
    for one in kept:
        one.close()


def _read_slowly(address: tuple[str, int], stop: threading.Event) -> None:
    kept = [_connected(address, "127.0.0.3", DOWNLOAD) for _ in range(READERS)]
    while not stop.wait(0.5):
        for one in kept:
            with contextlib.suppress(OSError):
                one.recv(READ_BYTES)
    for one in kept:
        one.close()


if __name__ == "__main__":
    main()
