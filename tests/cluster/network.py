"""Hosts in miniature: network namespaces on one bridge, each with an address of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """What this machine lacks for network namespaces; None when they can be made."""
    name = f"cic-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        ip("link", "add", f"{name}-b", "type", "bridge")
        ip("link", "del", f"{name}-b")
        ip("netns", "del", name)
    except FileNotFoundError:
        return "iproute2 is not installed"
    except subprocess.CalledProcessError as error:
        return f"no right to make network namespaces: {error.stderr.strip()}"
    return None


class Host:
    """A namespace; `prefix` runs a command in it."""

    def __init__(self, name: str, address: str, switch: str, port: str) -> None:
        self.name, self.address, self._switch, self._port = name, address, switch, port

    @property
    def prefix(self) -> Sequence[str]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull its cable."""
        ip("-n", self._switch, "link", "set", self._port, "down")

    def join(self) -> None:
        ip("-n", self._switch, "link", "set", self._port, "up")


class Network:
    """A switch with hosts. This machine has the first of the addresses.

    The switch is a bridge in a namespace of its own, where none of this machine's packet filters
    are.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(3)
        self._net = f"10.{200 + os.getpid() % 50}.{secrets.randbelow(250)}"
        self._switch = f"cic{self._mark}s"
        self._count = 1
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _build(self) -> None:
        ours = f"cic{self._mark}u"
        self._namespace(self._switch)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        ip("link", "add", ours, "type", "veth", "peer", "name", "uplink", "netns", self._switch)
        ip("-n", self._switch, "link", "set", "uplink", "master", "bridge", "up")
        ip("addr", "add", f"{self._net}.1/24", "dev", ours)
        ip("link", "set", ours, "up")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self) -> Host:
        """One more host."""
        self._count += 1
        name, port = f"cic{self._mark}h{self._count}", f"port{self._count}"
        address = f"{self._net}.{self._count}"
        self._namespace(name)
        ip(
            "-n",
            name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            self._switch,
        )
        ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        for arguments in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *arguments)
        return Host(name, address, self._switch, port)

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(ip, "netns", "del", name)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    with Network() as made:
        yield made
