"""Decide where webhooks may go: addresses of strangers must not lead into the site's own network.

A name is looked up anew at each try, and the connection goes to the very address that was judged.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import queue
import socket
import threading
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from config.settings import Settings
from image_builder.errors import FieldProblem, InvalidRequest, UserError
from service.db.webhooks import MAX_URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""What reaches an IPv4 address through a translator, which may be this site's own."""
METADATA = ("168.63.129.16/32", "fd00:ec2::/32")
"""Where clouds tell their machines secrets, beside link-local and shared addresses."""
_PORTS = {"https": 443, "http": 80}


class NotAllowed(UserError):
    """A webhook's address is none that this service calls."""


class Unresolved(UserError):
    """A webhook's name leads to no address now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows."""

    schemes: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        return cls(
            schemes=settings.service.allowed_webhook_schemes,
            allowed=settings.service.allowed_webhook_networks,
            blocked=(*settings.library.build.blocked_networks, *METADATA),
        )


def require_url(url: str, policy: Policy) -> None:
    """Raise `InvalidRequest` for a text that cannot be the address of a webhook here."""
    problem = _problem_of(url, policy)
    if problem is not None:
        raise InvalidRequest([FieldProblem("url", *problem)])


def _problem_of(url: str, policy: Policy) -> tuple[str, str] | None:
    example = "write an address such as https://ci.example.org/hook"
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return f"is no address of up to {MAX_URL} ASCII characters", example
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "cannot be read", example
    if parts.scheme not in policy.schemes:
        return "begins with what this site does not allow", f"write {' or '.join(policy.schemes)}"
    if not parts.hostname or port == 0 or "\\" in url:
        return "names no host", example
    if parts.username is not None or parts.password is not None:
        return "holds a user or password", "the signature shows who sends; leave them out"
    if parts.fragment:
        return "has a part behind '#', which is never sent", "leave it out"
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return None
    reason = refusal(literal, policy)
    return (reason, "write an address that everybody reaches") if reason else None


def target_of(url: str) -> tuple[str, int]:
    """Return the host and the port of a checked address."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS[parts.scheme]


def checked_addresses(host: str, port: int, policy: Policy, *, timeout_s: float) -> list[str]:
    """Return the addresses of a host, all of which may be called.

    Raises `NotAllowed` when one of them may not, and `Unresolved`.
    """
    found = resolve(host, port, timeout_s)
    for address in found:
        if reason := refusal(ipaddress.ip_address(address.partition("%")[0]), policy):
            # Which address it is, users need not learn: the site's own names may stay its own.
            raise NotAllowed(f"{host[:100]} leads to an address that {reason}.")
    return found


def refusal(address: Address, policy: Policy) -> str | None:
    """Return why an address may not be called, or None if it may."""
    for inner in _meant_by(address):
        if _is_in(inner, policy.allowed):
            continue
        if _is_in(inner, policy.blocked):
            return "is in a network that this site blocks"
        is_site_local = isinstance(inner, ipaddress.IPv6Address) and inner.is_site_local
        if inner.is_multicast or not inner.is_global or inner.is_reserved or is_site_local:
            return "is not an address of the public network"
        if _is_own(inner):
            return "is an address of this machine"
    return None


def resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """Return the addresses of a host, each once. Raises `Unresolved`, also when it takes too long.

    The system's look-up cannot be interrupted: it goes on in a thread that nobody waits for.
    """
    answers: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([str(entry[4][0]) for entry in entries])
        except (OSError, UnicodeError) as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise Unresolved(f"{host[:100]} was not found in time.") from None
    if isinstance(answer, OSError) or not answer:
        raise Unresolved(f"{host[:100]} is not known.")
    return list(dict.fromkeys(answer))


def _meant_by(address: Address) -> Iterable[Address]:
    """The address itself, and the IPv4 addresses that it stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    inner: list[Address] = [address]
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if address.teredo is not None:
        inner += address.teredo
    if address in NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inner


def _is_in(address: Address, networks: Iterable[str]) -> bool:
    return any(address in ipaddress.ip_network(network) for network in networks)


def _is_own(address: Address) -> bool:
    """Whether this machine has an address: then what listens at it may be for this machine alone."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
