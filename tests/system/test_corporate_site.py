"""A site behind a proxy that signs with its own CA: both reach the steps of a build, and neither
stays in the image.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import select
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.site import MACHINE, PROJECT, Site

pytestmark = pytest.mark.system

BRIDGE_ADDRESS_COMMAND = (
    "docker",
    "network",
    "inspect",
    "bridge",
    "--format",
    "{{(index .IPAM.Config 0).Gateway}}",
)


class Proxy(http.server.BaseHTTPRequestHandler):
    """A small forward proxy: plain requests are fetched, CONNECT becomes a tunnel. It notes which
    hosts were asked.
    """

    asked: set[str]

    def do_GET(self) -> None:
        self.asked.add("plain")
        try:
            with urllib.request.urlopen(self.path, timeout=60) as answer:
                body, status = answer.read(), answer.status
        except OSError:
            self.send_error(502)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.asked.add("tunnel")
        host, _, port = self.path.rpartition(":")
        try:
            other = socket.create_connection((host, int(port)), timeout=60)
        except OSError:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        pair = {self.connection: other, other: self.connection}
        with other:
            while True:
                readable, _, _ = select.select(list(pair), [], [], 60)
                chunks = [(pair[side], side.recv(65536)) for side in readable]
                if not chunks or any(not chunk for _, chunk in chunks):
                    break
                for side, chunk in chunks:
                    side.sendall(chunk)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def running_proxy() -> Iterator[tuple[str, set[str]]]:
    """A proxy on the address at which containers see this machine; yields its URL and what was
    asked of it.
    """
    address = subprocess.run(
        BRIDGE_ADDRESS_COMMAND, check=True, capture_output=True, text=True
    ).stdout.strip()
    asked: set[str] = set()
    handler = type("NotingProxy", (Proxy,), {"asked": asked})
    with http.server.ThreadingHTTPServer((address, 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_address[1]}", asked
        server.shutdown()


def test_proxy_and_ca_reach_the_steps_and_stay_out_of_the_image(site: Site) -> None:
    site.add_step(
        "demo",
        "proxied",
        {
            "eflows4hpc.yaml": "apt:\n  - bc\npip:\n  - six\n",
            "post_inst.sh": 'test -n "$http_proxy"\ntest -n "$https_proxy"\ntest -s "$SSL_CERT_FILE"\n',
        },
    )
    request = {
        "machine": {**MACHINE, "container_engine": "docker"},
        "workflow": "demo",
        "step_id": "proxied",
        "force": True,
        "push": False,
    }
    with running_proxy() as (url, asked):
        environ = site.with_environ(CIC_BUILD_HTTP_PROXY=url, CIC_BUILD_HTTPS_PROXY=url).environ
        built = subprocess.run(
            [sys.executable, "cic_builder.py", "--request", "-"],
            cwd=PROJECT,
            env=dict(environ),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert built.returncode == 0, built.stderr[-3000:]
    assert asked == {"plain", "tunnel"}, "apt asks plainly, pip through a tunnel"
    image_id = dict(line.split(": ", 1) for line in built.stdout.splitlines())["image_id"]
    inspected = subprocess.run(
        ["docker", "inspect", image_id], check=True, capture_output=True, text=True
    ).stdout
    history = subprocess.run(
        ["docker", "history", "--no-trunc", image_id], check=True, capture_output=True, text=True
    ).stdout
    assert url not in inspected + history
    script = f"env | grep -ci -e proxy -e CERT; ls /run/cic; grep -rlsF {url} /etc /opt /root /tmp /var/lib"
    found = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "/bin/sh", image_id, "-c", script],
        capture_output=True,
        text=True,
    ).stdout
    assert found.split() == ["0"], found
