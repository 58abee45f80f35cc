"""Count connections from their first byte on, while they are still at their TLS handshake.

An event loop tells a protocol of a connection when its handshake is done; until then nobody would
count it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from service.serving.connections import Connection, Connections, network_of_peer

HANDSHAKE_S = 10.0
"""How long the TLS handshake of a connection may take."""


class Handshake(asyncio.Protocol):
    """A connection at its handshake, which waits as one without a request does."""

    transport: asyncio.Transport

    def __init__(self, worker: Any, context: ssl.SSLContext) -> None:
        self._worker, self._context = worker, context
        self._connections: Connections = worker.connections
        self._task: asyncio.Task[None] | None = None
        self.network = ""
        self.is_gone = True
        """Not counted: not yet, or not any more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.network = network_of_peer(transport)
        if not self._connections.admit(self):
            self.transport.abort()
            return
        self.is_gone = False
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.forget(self)

    async def _shake_hands(self) -> None:
        """Do the handshake, and hand the connection on."""
        early = _Early()
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.transport,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except OSError:  # also what TLS finds wrong, and a time that is over
            transport = None
        finally:
            self._connections.forget(self)
        if transport is None:
            self.transport.abort()
            return
        early.hand_on(Connection(self._worker), transport)


class _Early(asyncio.Protocol):
    """Keeps what comes between the end of a handshake and the protocol that takes it."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._is_lost = False

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True

    def hand_on(self, protocol: asyncio.Protocol, transport: asyncio.Transport) -> None:
        """Let the protocol have the connection from its first byte on."""
        if self._is_lost:
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for data in self._data:
            protocol.data_received(data)
