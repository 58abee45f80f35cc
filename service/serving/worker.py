"""Read requests and write answers in an event loop, as a worker of gunicorn."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from typing import Any

from gunicorn import sock  # type: ignore[import-untyped]
from gunicorn.workers.gasgi import ASGIWorker  # type: ignore[import-untyped]

from service.serving.connections import Connection, Connections
from service.serving.handshake import Handshake

LISTEN_EVERY_S = 1.0
SWITCH_S = 0.001
"""After how long a thread lets another one go on: the event loop, which has little to do, would
wait 5 ms for each of the threads that compute.
"""
MAX_FILES = 8192
"""Open files that a process asks for; the usual bound of 1024 would be the first to be reached."""


def most_files() -> int:
    """Return how many files a process of the service may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)


class Worker(ASGIWorker):  # type: ignore[misc]
    """Gunicorn's worker for event loops, with connections that are bounded (`Connections`)."""

    def init_process(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < most_files():
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files(), hard))
        sys.setswitchinterval(SWITCH_S)
        super().init_process()

    async def _serve(self) -> None:
        self.connections: Connections = self.asgi.connections
        context = self._get_ssl_context()
        for listener in self.sockets:
            self.servers.append(
                await self.loop.create_server(
                    lambda: Connection(self) if context is None else Handshake(self, context),
                    sock=listener.sock,
                )
            )
        while self.alive and self.ppid == os.getppid():
            self.notify()
            await asyncio.sleep(LISTEN_EVERY_S)
        self.connections.close_waiting()
        await self._shutdown()

    def _get_ssl_context(self) -> Any:
        """Raise what is wrong with the certificate: gunicorn's own would serve without TLS."""
        return sock.ssl_context(self.cfg) if self.cfg.is_ssl else None
