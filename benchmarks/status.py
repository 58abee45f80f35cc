"""How many status calls a second: `python3 -m benchmarks.status [--seconds N] [--clients N]`.

Starts a service with its default settings, and beside it a bare Flask route that returns the same JSON under the same
server with the same options. The two are asked in turn, so that whatever else the machine does disturbs both alike. The
clients run on the same cores; what they cost is part of both figures.
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
from service.database import PROJECT
from tests.system.site import PASSWORD, USER, free_port, make_site, running_service

ROUNDS = 3

BARE = """
import json
import sys

from flask import Flask, jsonify
from gunicorn.app.base import BaseApplication

from config import load_settings
from service.server import server_options

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
        return app

server = Server()
sys.argv = sys.argv[:1]
server.run()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once, each over one connection")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, running_service(make_site(Path(root) / "site")) as service:
        build_id, _ = going_on(service)
        answer = service.call("GET", f"/build/{build_id}")
        assert answer.status_code == 200
        port = free_port()
        bare = subprocess.Popen([sys.executable, "-c", BARE, str(port), answer.text], cwd=PROJECT,
                                env=dict(service.site.environ), stderr=subprocess.DEVNULL)
        try:
            _compare(f"{service.url}/image_creation/build/{build_id}", f"http://127.0.0.1:{port}/", options.clients,
                     options.seconds)
        finally:
            bare.terminate()
            bare.wait()


def _compare(status: str, bare: str, clients: int, seconds: float) -> None:
    _wait_for(bare)
    rates: dict[str, list[float]] = {status: [], bare: []}
    for _ in range(ROUNDS):
        for url, found in rates.items():
            found.append(rate(url, clients, seconds))
    ours, theirs = (statistics.median(found) for found in rates.values())
    print(f"authenticated status calls: {ours:.0f} a second")
    print(f"the same JSON from a bare Flask route: {theirs:.0f} a second")
    print(f"ratio: {ours / theirs:.2f}")


def rate(url: str, clients: int, seconds: float) -> float:
    """Answers a second that so many clients get together."""
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
