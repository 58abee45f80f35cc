"""A fake service for what no real one does when it is wanted: to break, to be busy, to lie."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Script = Callable[[BaseHTTPRequestHandler, int], None]


class FakeService:
    """A fake: a server that answers by a script, which gets the number of the request.

    With a certificate and its key, it speaks TLS.
    """

    def __init__(self, script: Script, tls: tuple[Path, Path] | None = None) -> None:
        requests = self.requests = []  # type: list[tuple[str, str, dict[str, str]]]

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                requests.append((self.command, self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.close_connection = True
                script(self, len(requests))

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def serving_script(script: Script, tls: tuple[Path, Path] | None = None) -> Iterator[FakeService]:
    """Run such a server."""
    service = FakeService(script, tls)
    threading.Thread(target=service.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client may have gone
        handler.wfile.write(body)


Scripted = Callable[[Script], FakeService]
