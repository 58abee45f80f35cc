"""Bound the connections of a server process: their number, and the time for a request to arrive.

A connection *waits* until a whole request has come. Waiting connections hold no thread. When an
address, or the process, has as many connections as it may have, the one that waits longest makes
room; where none waits, the new one is refused.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol, cast

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]

from service.addresses import network_of

Scope = MutableMapping[str, Any]

HEADER_S = 15.0
"""How long the head of a connection's first request may take. Kept-alive connections have
gunicorn's `keepalive`.
"""


class Counted(Protocol):
    """What is counted: a connection, or one that is still at its TLS handshake."""

    network: str
    is_gone: bool
    """Not counted: not yet, or not any more."""

    @property
    def transport(self) -> asyncio.Transport: ...


class Connections:
    """The open connections, by the network that they come from."""

    def __init__(self, *, limit: int, limit_of_network: int | None) -> None:
        """`limit_of_network` None: a proxy in front has all connections, and bounds them."""
        self._limit, self._limit_of_network = limit, limit_of_network or limit
        self._open: collections.Counter[str] = collections.Counter()
        self._waiting: dict[Counted, None] = {}  # in the order in which they began to wait

    def admit(self, connection: Counted) -> bool:
        """Count a new connection, which waits. Returns False when there is no room for it."""
        network = connection.network
        if self._open[network] >= self._limit_of_network and not self._make_room(network):
            return False
        if self._open.total() >= self._limit and not self._make_room(None):
            return False
        self._open[network] += 1
        self._waiting[connection] = None
        return True

    def wait(self, connection: Counted) -> None:
        """Mark the connection as answered: it may send another request."""
        if not connection.is_gone:
            self._waiting[connection] = None

    def serve(self, connection: Counted) -> None:
        """Mark the connection as having sent a whole request."""
        self._waiting.pop(connection, None)

    def forget(self, connection: Counted) -> None:
        """Forget the connection, which is closed."""
        if not connection.is_gone:
            connection.is_gone = True
            self._waiting.pop(connection, None)
            self._open[connection.network] -= 1
            if not self._open[connection.network]:
                del self._open[connection.network]

    def close_waiting(self) -> None:
        """Close all connections on which no request is being answered."""
        for connection in list(self._waiting):
            self._drop(connection)

    def _make_room(self, network: str | None) -> bool:
        for connection in self._waiting:
            if network in (None, connection.network):
                self._drop(connection)
                return True
        return False

    def _drop(self, connection: Counted) -> None:
        connection.transport.abort()
        self.forget(connection)


class Connection(ASGIProtocol):  # type: ignore[misc]
    """Gunicorn's connection, counted, whose first request has to arrive in time."""

    transport: asyncio.Transport

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._connections: Connections = worker.connections
        self._application: Any = worker.asgi
        self.app = self._answer
        self._timer: asyncio.TimerHandle | None = None
        self.network = ""
        self.is_gone = True
        """Not counted: not yet, or not any more."""
        self._is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.network = network_of_peer(transport)
        if not self._connections.admit(self):
            self._is_refused = True
            self.transport.abort()
            return
        self.is_gone = False
        self._timer = asyncio.get_running_loop().call_later(HEADER_S, self.transport.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if not self._is_refused:
            self._connections.forget(self)
            super().connection_lost(exc)

    async def _answer(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """One request whose head has come, by the application; the body is still to come."""
        self._stop_timer()
        scope["cic.received"] = lambda: self._connections.serve(self)
        scope["cic.transport"] = self.transport
        try:
            await self._application(scope, receive, send)
        finally:
            self._connections.wait(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def network_of_peer(transport: asyncio.BaseTransport) -> str:
    """Return the network that a connection comes from."""
    peer = transport.get_extra_info("peername")
    return network_of(str(peer[0])) if isinstance(peer, tuple) else ""
