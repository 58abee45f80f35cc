"""Addresses of clients, as they are counted."""

from __future__ import annotations

import ipaddress

IPV6_PREFIX = 64
"""What one customer of a provider has at least: each of its 2^64 addresses is as easily had as the
next.
"""


def network_of(address: str) -> str:
    """Return what a client is counted by: its IPv4 address, or the /64 of its IPv6 address.

    A text that is no address stands for itself.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
