"""A WSGI application in an event loop: a thread is taken only while the application works.

The whole request is read before a thread is taken, each piece of an answer is asked for when the
client has taken the one before, and the kernel sends files. So a client that is slow at either
costs a socket and some kilobytes. A body that yields an empty piece has nothing yet (PEP 3333 says
so for servers like this one) and is asked again after `WAIT_S`: `WAITS` in the environment tells
the application that it need not wait itself.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import IO, Any

from service.addresses import network_of
from service.serving.answer import Answer
from service.serving.connections import Connections
from service.serving.environ import Scope, environ_of

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_S = 60.0
"""How long a body may take to come, and a second more for each `BODY_BYTES_PER_S`."""
BODY_BYTES_PER_S = 16 * 1024
DRAIN_BYTES = 64 * 1024**2
"""How much of a body that is too large is read and dropped, so that its sender gets the answer."""
MEMORY_BYTES = 64 * 1024
"""How much of a body is kept in memory; what is larger goes to a temporary file."""
STALL_S = 120.0
"""How long a client may take for one piece of an answer: below 10 KB a second it is given up."""
PIECE_BYTES = 1024**2
MAX_PIECE_BYTES = 64 * 1024**2
"""How much of a file the kernel is asked to send at a time; more for those who are quick."""
SMALL_BYTES = 16 * 1024
"""Pieces up to this size wait for no client: the buffers of its connection take them."""
WAIT_S = 0.5
UPLOADS, UPLOADS_OF_NETWORK = 8, 2
"""How many large bodies may come at a time, in all and from one network."""
UPLOAD_BYTES_PER_S = 64 * 1024

_log = logging.getLogger(__name__)


class Bridge:
    """An ASGI application that is a WSGI application."""

    def __init__(
        self,
        application: Callable[..., Any],
        *,
        threads: int,
        max_body_bytes: int,
        max_upload_bytes: int = 0,
        connections: Connections,
    ) -> None:
        """Bodies have `max_body_bytes`, those of `is_upload` as many as `max_upload_bytes`."""
        self.connections = connections
        self._max_upload_bytes = max(max_upload_bytes, max_body_bytes)
        self._uploads: collections.Counter[str] = collections.Counter()
        self._application = application
        self._max_body_bytes = max_body_bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as body:
            with self._room_for(scope) as max_bytes:
                if max_bytes is None:
                    await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE)
                    return
                size_bytes = await self._received(scope, receive, body, max_bytes)
            if size_bytes is None:
                await _refuse(send, HTTPStatus.REQUEST_TIMEOUT)
                return
            scope["cic.received"]()
            body.seek(0)
            answer = Answer(self._application, environ_of(scope, body, size_bytes))
            try:
                await self._send(answer, scope, send)
            except TimeoutError:
                scope["cic.transport"].abort()
            finally:
                if not answer.is_closed:
                    self._threads.submit(answer.close)

    @contextlib.contextmanager
    def _room_for(self, scope: Scope) -> Iterator[int | None]:
        """Yield how large a body may be; None while as many large ones come as may come."""
        if not is_upload(scope):
            yield self._max_body_bytes
            return
        network = network_of(str((scope.get("client") or ("",))[0]))
        if self._uploads.total() >= UPLOADS or self._uploads[network] >= UPLOADS_OF_NETWORK:
            yield None
            return
        self._uploads[network] += 1
        try:
            yield self._max_upload_bytes
        finally:
            self._uploads[network] -= 1
            self._uploads += collections.Counter()  # forgets who has none

    async def _received(
        self, scope: Scope, receive: Receive, body: IO[bytes], max_bytes: int
    ) -> int | None:
        """Read the request's body; return its size, or None where it does not come in time."""
        headers = dict(scope["headers"])
        declared = int(headers.get(b"content-length", b"0"))
        if not declared and b"transfer-encoding" not in headers:
            return 0
        is_large = max_bytes > self._max_body_bytes
        rate, most = (
            (UPLOAD_BYTES_PER_S, max_bytes) if is_large else (BODY_BYTES_PER_S, DRAIN_BYTES)
        )
        patience_s = BODY_S + min(declared, most) / rate
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._read(receive, body, max_bytes), patience_s)
        return None

    async def _read(self, receive: Receive, body: IO[bytes], max_bytes: int) -> int | None:
        size_bytes, more = 0, True
        while more and size_bytes <= max(DRAIN_BYTES, max_bytes):
            message = await receive()
            if message["type"] != "http.request":
                return None
            piece = message.get("body", b"")
            size_bytes += len(piece)
            if size_bytes <= max_bytes:
                body.write(piece)
            more = message.get("more_body", False)
        return size_bytes

    async def _send(self, answer: Answer, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        kernel_sends = scope["scheme"] == "http"
        begin = functools.partial(answer.begin, leaves_files=kernel_sends)
        more = await loop.run_in_executor(self._threads, begin)
        is_sent_by_kernel = more and kernel_sends and answer.file is not None
        headers = [*answer.headers, *([(b"connection", b"close")] if is_sent_by_kernel else ())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        while True:
            sending = send({"type": "http.response.body", "body": answer.piece, "more_body": more})
            await (sending if len(answer.piece) <= SMALL_BYTES else _in_time(sending))
            if not more:
                return
            if is_sent_by_kernel:
                await _send_file(answer, scope["cic.transport"])
                await send({"type": "http.response.body", "body": b""})
                return
            if not answer.piece:
                await asyncio.sleep(WAIT_S)
            more = await loop.run_in_executor(self._threads, answer.go_on)


def is_upload(scope: Scope) -> bool:
    """Return whether a request may have a large body: `POST /build/` with a folder, and a log-in."""
    headers = dict(scope["headers"])
    return (
        scope["method"] == "POST"
        and str(scope["path"]).rstrip("/").endswith("/build")
        and headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        and b"authorization" in headers
    )


async def _send_file(answer: Answer, transport: asyncio.Transport) -> None:
    """Let the kernel send what is left of a file's part; the connection ends with it."""
    loop = asyncio.get_running_loop()
    offset, end = answer.left_of_file
    piece_bytes = PIECE_BYTES
    while offset < end:
        begun = loop.time()
        count = min(piece_bytes, end - offset)
        sent = await _in_time(loop.sendfile(transport, answer.file, offset, count))  # type: ignore[arg-type]
        if not sent:
            return
        offset += sent
        is_quick = loop.time() - begun < 1.0
        piece_bytes = min(2 * piece_bytes, MAX_PIECE_BYTES) if is_quick else PIECE_BYTES


async def _in_time(work: Awaitable[Any]) -> Any:
    """The outcome of sending. Raises `TimeoutError` for a client that does not take it."""
    try:
        return await asyncio.wait_for(work, STALL_S)
    except asyncio.TimeoutError:
        raise TimeoutError from None


async def _refuse(send: Send, status: HTTPStatus) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
