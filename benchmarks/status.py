"""Measure status calls a second: `python3 -m benchmarks.status [--seconds N] [--clients N]`.

Starts a service with its default settings, and a bare Flask route that returns the same JSON under
the same server with the same options. The two are asked in turn, so that whatever else the machine
does disturbs both alike. The clients run on the same cores; what they cost is part of both figures.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.followers import going_on
from benchmarks.rows import Row, show
from service.db.database import PROJECT
from tests.support.site import PASSWORD, USER, free_port, make_site, running_service

ROUNDS = 3

BARE = """
import json
import sys

from flask import Flask, jsonify
from gunicorn.app.base import BaseApplication

from config import load_settings
from service.server import bridged, server_options

answer = json.loads(sys.argv[2])
app = Flask("bare")

@app.get("/")
def status():
    return jsonify(answer)

class Server(BaseApplication):
    def load_config(self):
        for key, value in server_options(load_settings()).items():
            if key != "on_exit":
                self.cfg.set(key, value)
        self.cfg.set("bind", f"127.0.0.1:{sys.argv[1]}")

    def load(self):
        app.config["MAX_CONTENT_LENGTH"] = 1024
        return bridged(app, load_settings())

server = Server()
sys.argv = sys.argv[:1]
server.run()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument(
        "--clients", type=int, default=4, help="that ask at once, each over one connection"
    )
    options = parser.parse_args()
    show(rows(options.seconds, options.clients))


def rows(seconds: float = 4.0, clients: int = 4) -> list[Row]:
    """Return our rate, and its ratio to the bare route's; medians of the rounds."""
    with (
        tempfile.TemporaryDirectory() as root,
        running_service(make_site(Path(root) / "site")) as service,
    ):
        build_id, _ = going_on(service)
        answer = service.call("GET", f"/build/{build_id}")
        assert answer.status_code == 200
        port = free_port()
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE, str(port), answer.text],
            cwd=PROJECT,
            env=dict(service.site.environ),
            stderr=subprocess.DEVNULL,
        )
        try:
            ours, theirs = _compare(
                f"{service.url}/image_creation/build/{build_id}",
                f"http://127.0.0.1:{port}/",
                clients,
                seconds,
            )
        finally:
            bare.terminate()
            bare.wait()
    return [
        Row("authenticated status calls", ours, 1000, "/s", at_least=True),
        Row(
            "authenticated status calls against a bare Flask route",
            ours / theirs,
            0.4,
            at_least=True,
            note=f"which answers {theirs:.0f}/s",
        ),
    ]


def _compare(status: str, bare: str, clients: int, seconds: float) -> tuple[float, float]:
    _wait_for(bare)
    rates: dict[str, list[float]] = {status: [], bare: []}
    for _ in range(ROUNDS):
        for url, found in rates.items():
            found.append(rate(url, clients, seconds))
    return statistics.median(rates[status]), statistics.median(rates[bare])


def rate(url: str, clients: int, seconds: float) -> float:
    """Return the answers a second that so many clients get together."""
    with multiprocessing.Pool(clients) as pool:
        return sum(pool.starmap(_ask, [(url, seconds)] * clients))


def _ask(url: str, seconds: float) -> float:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    headers = {"Authorization": "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    answers = 0
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        answers += 1
    return answers / (time.monotonic() - begun)


def _wait_for(url: str) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            _ask(url, 0.05)
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


if __name__ == "__main__":
    main()
