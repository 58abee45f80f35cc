"""Call a WSGI application, and take its answer piece by piece, in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

PIECE_BYTES = 64 * 1024
"""Small pieces of a body are sent together up to this size."""
FIRST_BYTES = 4 * 1024
"""How much of a file goes with an answer's head, which gunicorn 27 keeps back until then."""


class FileWrapper:
    """WSGI's file wrapper: a file from its position on, which a server may send as it likes."""

    def __init__(self, file: BinaryIO, block_bytes: int = PIECE_BYTES) -> None:
        self.file = file
        self._block_bytes = block_bytes

    def __iter__(self) -> Iterator[bytes]:
        while block := self.file.read(self._block_bytes):
            yield block

    def close(self) -> None:
        self.file.close()


class Answer:
    """One call of an application. `begin` and `go_on` block, so they belong in a thread.

    Each returns whether more follows `piece`, and may raise what the application raises.
    """

    def __init__(self, application: Callable[..., Any], environ: dict[str, Any]) -> None:
        self._application, self._environ = application, environ
        self._lock = threading.Lock()  # who closes waits for who works
        self.is_closed = False
        self._body: Any = None
        self._blocks: Iterator[bytes] = iter(())
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.piece = b""
        self.file: BinaryIO | None = None
        """The file that the body is, where it is one."""

    def begin(self, *, leaves_files: bool = False) -> bool:
        """Call the application, which fills `status`, `headers` and the first `piece`.

        With `leaves_files`, no more than `FIRST_BYTES` of a body that is a file are read, however
        large its blocks are: the rest is `left_of_file`.
        """
        with self._lock:
            if self.is_closed:
                return False
            self._body = self._application(self._environ, self._start)
            if isinstance(self._body, FileWrapper):
                self.file = self._body.file
                if leaves_files:
                    self.piece = self._body.file.read(FIRST_BYTES)
                    return bool(self.piece)
            self._blocks = iter(self._body)
        return self.go_on()

    def go_on(self) -> bool:
        """Fill the next `piece`: empty when the application has nothing yet."""
        with self._lock:
            pieces: list[bytes] = []
            more = not self.is_closed
            while more and sum(map(len, pieces)) < PIECE_BYTES:
                block = next(self._blocks, None)
                more = block is not None
                if not block:
                    break
                pieces.append(block)
            self.piece = b"".join(pieces)
            if not more:
                self._close()
            return more

    @property
    def left_of_file(self) -> tuple[int, int]:
        """Return the first byte of `file` that is still to be sent, and the one after the last."""
        assert self.file is not None
        length = int(dict(self.headers).get(b"content-length", b"0"))
        begin = self.file.tell()
        return begin, begin + length - len(self.piece)

    def close(self) -> None:
        """Let the application clean up, also if its answer was not read to the end."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        was_closed, self.is_closed = self.is_closed, True
        close = getattr(self._body, "close", None)
        if close is not None and not was_closed:
            close()

    def _start(
        self, status: str, headers: list[tuple[str, str]], _: Any = None
    ) -> Callable[[bytes], None]:
        self.status = int(status.split(" ", 1)[0])
        self.headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        return self._blocks_written

    def _blocks_written(self, _: bytes) -> None:
        raise NotImplementedError("this application yields its body")
