"""A Docker daemon of a test's own: own data and socket, in a network namespace of its own with a
small world outside.

What is done to its network, or to itself, reaches nobody else. It ends with the block, whatever is
left in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pytest

from tests.support.site import BASE_IMAGE

HOST, GATEWAY = "198.51.100.2", "198.51.100.1"
"""The daemon's host towards the world, and the world's nearest machine."""
METADATA, PRIVATE = "169.254.169.254", "10.9.9.9"
"""Other addresses in the world."""
START_S = 60
AGAIN_AND_AGAIN = """
trap 'kill $pid; wait $pid; exit' TERM
while :; do
    "$@" & pid=$!
    wait $pid
    while test -e "$0"; do sleep 0.1; done
done
"""
"""A shell's program: runs the arguments as a command, again when it has ended, but not while the
file `$0` is there.
"""


@dataclasses.dataclass(frozen=True)
class OwnDocker:
    """A running daemon; `host` and `world` are processes in the network namespaces of its host and
    of the world.
    """

    root: Path
    host: int
    world: int

    @property
    def socket(self) -> Path:
        return self.root / "docker.sock"

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What a process is started with that is to use this daemon."""
        return {**environ, "DOCKER_HOST": f"unix://{self.socket}"}

    def on_host(
        self, *argv: str, environ: Mapping[str, str], timeout_s: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as if on the daemon's host."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.host}/ns/net", *argv],
            env=self.environ(environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            **options,
        )

    @contextlib.contextmanager
    def stopped(self, number: int = signal.SIGTERM) -> Iterator[None]:
        """Without the daemon, which is ended by a signal and is there again after the block; its
        network stays.
        """
        hold = self.root / "hold"
        hold.touch()
        (daemon,) = map(int, _children(self.host))
        os.kill(daemon, number)
        _wait_until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon did not end")
        yield
        hold.unlink()
        _await(self.root, self.socket)


@contextlib.contextmanager
def own_docker(
    *options: str,
    addresses: Sequence[str] = (),
    disk_bytes: int | None = None,
    is_alone: bool = False,
    image: str = BASE_IMAGE,
) -> Iterator[OwnDocker]:
    """A daemon with the base image of the tests in it, or another `image`. It needs root.

    `options` are for the daemon, `addresses` are more of the world's, and with `disk_bytes` its
    data have a disk of their own, of this size. One that `is_alone` has no image, and its host no
    interface but loopback.
    """
    with contextlib.ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="cic-docker-"))  # a socket's path must be short
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        if disk_bytes is not None:
            stack.enter_context(_disk(root / "disk.img", root / "data", disk_bytes))
        world = stack.enter_context(_namespace("sh", "-c", "trap exit TERM; sleep infinity & wait"))
        socket = root / "docker.sock"
        host = stack.enter_context(
            _namespace(
                "sh",
                "-c",
                AGAIN_AND_AGAIN,
                str(root / "hold"),
                "dockerd",
                "--data-root",
                str(root / "data"),
                "--exec-root",
                str(root / "exec"),
                "-H",
                f"unix://{socket}",
                "--pidfile",
                str(root / "docker.pid"),
                *(options or ("--storage-driver", "overlay2")),
                log=root / "dockerd.log",
            )
        )
        if is_alone:
            _ip(host, "link set lo up")
        else:
            _connect(host, world, {METADATA, PRIVATE, *addresses})
        _await(root, socket)
        if is_alone:
            yield OwnDocker(root, host, world)
            return
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                ["docker", "-H", f"unix://{socket}", "load"],
                stdin=saved.stdout,
                check=True,
                capture_output=True,
            )
        yield OwnDocker(root, host, world)


@contextlib.contextmanager
def _disk(image: Path, folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of this size at a folder; a user or container that may not mount skips."""
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk. This user or container may not mount a file system.")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def listening(namespace: int, port: int, folder: str | Path = "/var/empty") -> Iterator[None]:
    """A web server on all addresses of a network namespace, which hands out a folder."""
    argv = [
        "nsenter",
        f"--net=/proc/{namespace}/ns/net",
        sys.executable,
        "-m",
        "http.server",
        "--bind",
        "::",
        "--directory",
        str(folder),
        str(port),
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.kill()


@contextlib.contextmanager
def _namespace(*argv: str, log: Path | None = None) -> Iterator[int]:
    """A program in namespaces of its own, with all that it starts; gives its pid outside."""
    unshare = [
        "unshare",
        "--net",
        "--mount",
        "--propagation=private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        *argv,
    ]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        outer = stack.enter_context(
            subprocess.Popen(unshare, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        )
        stack.callback(outer.kill)
        _wait_until(lambda: _children(outer.pid), "the namespace did not start")
        found = _children(outer.pid)
        try:
            yield int(found[0])
        finally:
            if outer.poll() is None:
                os.kill(int(found[0]), signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                outer.wait(20)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _wait_until(what: Callable[[], object], otherwise: str) -> None:
    end = time.monotonic() + START_S
    while not what():
        assert time.monotonic() < end, otherwise
        time.sleep(0.02)


def _connect(host: int, world: int, addresses: Set[str]) -> None:
    """A cable between the two, with addresses."""
    _ip(host, "link set lo up")
    _ip(host, f"link add out type veth peer name in netns {world}")
    for command in (
        f"addr add {HOST}/24 dev out",
        "link set out up",
        f"route add default via {GATEWAY}",
    ):
        _ip(host, command)
    for address in (f"{GATEWAY}/24", *(f"{address}/32" for address in sorted(addresses))):
        _ip(world, f"addr add {address} dev in")
    _ip(world, "link set in up")


def _ip(namespace: int, command: str) -> None:
    subprocess.run(
        ["nsenter", f"--net=/proc/{namespace}/ns/net", "ip", *command.split()], check=True
    )


def _await(root: Path, socket: Path) -> None:
    end = time.monotonic() + START_S
    while subprocess.run(
        ["docker", "-H", f"unix://{socket}", "version"], capture_output=True
    ).returncode:
        assert time.monotonic() < end, (root / "dockerd.log").read_text("utf-8", "replace")[-2000:]
        time.sleep(0.2)
