"""Turn a request into WSGI's environment (PEP 3333)."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from service.serving.answer import FileWrapper

Scope = MutableMapping[str, Any]

WAITS = "cic.waits"
"""In the environment: the server waits after an empty piece of a body."""


def environ_of(scope: Scope, body: IO[bytes], size_bytes: int) -> dict[str, Any]:
    """Return the environment of a request whose body, of this size, is in `body`."""
    server, client = scope.get("server") or ("", 0), scope.get("client") or ("", 0)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        WAITS: True,
    }
    for name, value in scope["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    if size_bytes or "CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = str(size_bytes)  # also of a body that came in chunks
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    key = name.upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    between = "; " if key == "HTTP_COOKIE" else ","
    environ[key] = f"{environ[key]}{between}{value}" if key in environ else value
