"""A site behind a proxy that signs with its own CA: both reach the steps of a build, and neither
stays in the image.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import select
import socket
import subprocess
import sys
import threading
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon_images import remove_images
from tests.support.site import MACHINE, PROJECT, Site, running_service

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
    credentials: str
    """What clients have to send in base64, as `user:password`; empty for none."""

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
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

    def _is_allowed(self) -> bool:
        sent = self.headers.get("Proxy-Authorization", "").removeprefix("Basic ")
        if not self.credentials or b64decode(sent).decode() == self.credentials:
            return True
        self.asked.add("without password")
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self) -> None:
        if not self._is_allowed():
            return
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
def running_proxy(credentials: str = "") -> Iterator[tuple[str, set[str]]]:
    """A proxy on the address at which containers see this machine; yields its URL and what was
    asked of it. The URL has no credentials.
    """
    address = subprocess.run(
        BRIDGE_ADDRESS_COMMAND, check=True, capture_output=True, text=True
    ).stdout.strip()
    asked: set[str] = set()
    handler = type("NotingProxy", (Proxy,), {"asked": asked, "credentials": credentials})
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


class Watcher:
    """Looks at this machine's processes again and again, for a text that none may show."""

    STRANGERS = ("/run/cic/post_install.sh", "/run/cic/pip.sh")

    def __init__(self, canary: str) -> None:
        self._canary = canary.encode()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.shown: list[str] = []
        self.steps: set[str] = set()
        """The steps with a description's code of which a process was seen."""

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            groups: dict[str, str] = {}
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    with contextlib.suppress(OSError):
                        self._look_at(process, groups)

    def _look_at(self, process: Path, groups: dict[str, str]) -> None:
        command = (process / "cmdline").read_bytes()
        if self._canary in command:
            self.shown.append(f"arguments: {command.decode(errors='replace')}")
        group = (process / "cgroup").read_text()
        for script in self.STRANGERS:
            if script.encode() in command and "/buildkit/" in group:
                groups[group] = script
        if group in groups:
            self.steps.add(groups[group])
            if self._canary in (process / "environ").read_bytes():
                self.shown.append(f"environment of {groups[group]}")


SNOOP = """#!/bin/sh
# {nonce}
{{ env; cat /proc/*/environ /proc/*/cmdline; ls /run/cic; cat /run/cic/site; }} >/seen 2>&1
sleep 3
"""


def test_a_proxys_password_is_shown_to_nobody(site: Site) -> None:
    """apt asks through the proxy; no argument, log, image or step of a stranger has the password."""
    canary = f"canary{secrets.token_hex(12)}"
    site.add_step(
        "demo",
        "secretive",
        {
            "eflows4hpc.yaml": "apt:\n  - bc\npip:\n  - six\n",
            "post_inst.sh": SNOOP.format(nonce=secrets.token_hex()),
        },
    )
    request = {
        "machine": {**MACHINE, "container_engine": "docker"},
        "workflow": "demo",
        "step_id": "secretive",
        "force": True,
        "push": False,
    }
    with running_proxy(f"svc:{canary}!") as (url, asked):
        with_password = url.replace("http://", f"http://svc:{canary}%21@")
        configured = site.with_environ(
            CIC_BUILD_HTTP_PROXY=with_password, CIC_BUILD_HTTPS_PROXY=with_password
        )
        with running_service(configured) as service, Watcher(canary) as watcher:
            built = service.build(request)
            log = service.call("GET", f"/build/{built['id']}/log").text
            said = service.log.read_text("utf-8", "replace")
    assert built["status"] == "FINISHED", log[-3000:]
    assert "plain" in asked, "apt asks plainly"
    assert watcher.steps == set(Watcher.STRANGERS)
    assert watcher.shown == []
    image_id = built["image_id"]
    described = "".join(
        subprocess.run(
            ["docker", *command, image_id], check=True, capture_output=True, text=True
        ).stdout
        for command in (("inspect",), ("history", "--no-trunc"))
    )
    for text in (log, said, json.dumps(built), described):
        assert canary not in text
    saved = subprocess.run(["docker", "save", image_id], check=True, capture_output=True).stdout
    assert canary.encode() not in saved
    for path in site.root.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path
    remove_images(site)
