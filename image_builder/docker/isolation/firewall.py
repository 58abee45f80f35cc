"""Keeps build steps from this host's services, by rules for traffic from Docker's default bridge.

With Docker's own builder, build steps are on that bridge, as are containers that name no other
network. What they send to this host itself, to each other and to blocked networks is refused;
answers and questions to the host's resolvers pass. The rules are in two chains of their own, which
`apply` makes or updates and `remove` removes.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from image_builder.errors import Misconfigured
from image_builder.host.process import Command, ProcessFailed, run
from image_builder.settings import BuildSettings

TO_HOST, ONWARD = "CIC-BUILDS-HOST", "CIC-BUILDS-NET"
RESOLV_CONF = Path("/etc/resolv.conf")
BRIDGED_PACKETS = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
TIMEOUT_S = 30
NEIGHBOURS = (133, 134, 135, 136)
"""Types of ICMPv6 without which an IPv6 network does not work."""

Family = Literal[4, 6]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Says what is refused to everything on the interface `bridge`, and what is let through."""

    bridge: str
    resolvers: tuple[str, ...] = ()
    reachable: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: BuildSettings, bridge: str) -> Policy:
        """Return what the settings and this machine say."""
        return cls(
            bridge=bridge,
            resolvers=_resolvers(),
            reachable=settings.reachable_networks,
            blocked=settings.blocked_networks,
        )


def rules(policy: Policy, family: Family) -> list[tuple[str, ...]]:
    """Return the rules of both chains, as arguments of iptables behind `-A`."""
    made: list[tuple[str, ...]] = []
    for chain in (TO_HOST, ONWARD):
        made.append((chain, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "RETURN"))
        if family == 6:
            made += [
                (
                    chain,
                    "-p",
                    "ipv6-icmp",
                    "-m",
                    "icmp6",
                    "--icmpv6-type",
                    str(kind),
                    "-j",
                    "RETURN",
                )
                for kind in NEIGHBOURS
            ]
        made += [
            (chain, "-d", network, "-p", protocol, "-m", protocol, "--dport", "53", "-j", "RETURN")
            for network in _of(family, policy.resolvers)
            for protocol in ("udp", "tcp")
        ]
        made += [
            (chain, "-d", network, "-j", "RETURN") for network in _of(family, policy.reachable)
        ]
    made.append((TO_HOST, "-j", "REJECT"))
    made.append((ONWARD, "-o", policy.bridge, "-j", "REJECT"))
    made += [(ONWARD, "-d", network, "-j", "REJECT") for network in _of(family, policy.blocked)]
    return made


def apply(policy: Policy) -> list[str]:
    """Put the rules in force instead of earlier ones, and return the warnings.

    Raises `Misconfigured`.
    """
    for family in _families():
        script = [
            "*filter",
            f":{TO_HOST} - [0:0]",
            f":{ONWARD} - [0:0]",
            *(f"-A {' '.join(rule)}" for rule in rules(policy, family)),
            "COMMIT",
            "",
        ]
        _iptables(family, "-restore", "-w", "--noflush", stdin="\n".join(script))
        for parent, chain in ((_INPUT, TO_HOST), (_onward_parent(family), ONWARD)):
            jump = (parent, "-i", policy.bridge, "-j", chain)
            earlier = _jumps(family, chain)
            if earlier != [
                jump
            ]:  # put first what is new, then take away what is old: never without
                _iptables(family, "", "-w", "-I", parent, "1", *jump[1:])
                for old in earlier:
                    _iptables(family, "", "-w", "-D", *old)
    return _see_bridged_packets()


def remove() -> None:
    """Remove all of the rules. Raises `Misconfigured`."""
    for family in _families():
        listed = _listed(family)
        for chain in (TO_HOST, ONWARD):
            for old in _jumps(family, chain):
                _iptables(family, "", "-w", "-D", *old)
            if f"-N {chain}" in listed:
                _iptables(family, "", "-w", "-F", chain)
                _iptables(family, "", "-w", "-X", chain)


def show() -> list[str]:
    """Return the rules in force, as iptables shows them; empty when there are none.

    Raises `Misconfigured`.
    """
    return [
        f"{_PROGRAMS[family]} {line}"
        for family in _families()
        for line in _listed(family)
        if TO_HOST in line or ONWARD in line
    ]


_INPUT, _DOCKER_USER, _FORWARD = "INPUT", "DOCKER-USER", "FORWARD"
_PROGRAMS: dict[Family, str] = {4: "iptables", 6: "ip6tables"}


def _of(family: Family, networks: Sequence[str]) -> Iterator[str]:
    return (
        str(parsed)
        for network in networks
        if (parsed := ipaddress.ip_network(network)).version == family
    )


def _families() -> list[Family]:
    return [4, 6] if Path("/proc/net/if_inet6").exists() else [4]


def _onward_parent(family: Family) -> str:
    """Return Docker's chain for rules like these, which it never flushes.

    Where that is absent, return the chain that would lead to it.
    """
    return _DOCKER_USER if f"-N {_DOCKER_USER}" in _listed(family) else _FORWARD


def _jumps(family: Family, chain: str) -> list[tuple[str, ...]]:
    """Return the rules that lead to a chain, as arguments behind `-D`."""
    listed = (tuple(line.split()[1:]) for line in _listed(family) if line.startswith("-A "))
    return [rule for rule in listed if rule[-2:] == ("-j", chain)]


def _listed(family: Family) -> list[str]:
    return _iptables(family, "", "-w", "-S").splitlines()


def _iptables(family: Family, suffix: str, *arguments: str, stdin: str | None = None) -> str:
    program = _PROGRAMS[family] + suffix
    command = Command(
        name=program,
        argv=(program, *arguments),
        stdin=None if stdin is None else stdin.encode(),
        env={"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        timeout_s=TIMEOUT_S,
    )
    heard: list[str] = []
    try:
        return run(command, on_line=heard.append, capture_stdout=True).stdout.decode(
            "utf-8", "replace"
        )
    except ProcessFailed as error:
        raise Misconfigured(
            f"{error} {' '.join(heard[-3:])}".strip(), hint="It needs root."
        ) from error


def _resolvers() -> tuple[str, ...]:
    """Return the name servers that containers get: the host's, except those on its loopback."""
    try:
        text = RESOLV_CONF.read_text("utf-8", "replace")
    except OSError:
        return ()
    named = re.findall(r"^nameserver\s+([0-9a-fA-F.:]+)\s*$", text, re.MULTILINE)
    return tuple(name for name in named if not ipaddress.ip_address(name).is_loopback)


def _see_bridged_packets() -> list[str]:
    """Have the kernel show iptables what goes from one container to another on the same bridge."""
    try:
        BRIDGED_PACKETS.write_text("1")
    except OSError as error:
        return [
            f"Build steps may reach other containers on their bridge: {BRIDGED_PACKETS} cannot be set "
            f"({error.strerror}); load the kernel module br_netfilter."
        ]
    return []
