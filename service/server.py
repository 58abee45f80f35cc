"""Run the production server of `python3 builder_service.py`.

It is gunicorn, with the workers of `service.serving`, started from here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from config.settings import Settings
from service.app import MAX_BODY_BYTES, create_app, start_service
from service.serving.bridge import Bridge
from service.serving.connections import Connections
from service.serving.worker import most_files
from service.workers.executors import stop_pool_if_last

PR_SET_PDEATHSIG = 1
MAX_CONNECTIONS = 4000
"""Open connections of one process, all addresses together; less where it may not open as many."""
MARGIN_S = 20.0
"""What the pool may need beyond `stop_timeout_s` to hand builds back."""


class _Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn, configured by our settings alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        for key, value in server_options(self._settings).items():
            self.cfg.set(key, value)

    def load(self) -> Bridge:
        """The application of one worker process."""
        app = create_app(self._settings)
        start_service(app)
        return bridged(app, self._settings)


def bridged(app: Flask, settings: Settings) -> Bridge:
    """Return the application as the workers of `server_options` serve it."""
    service = settings.service
    return Bridge(
        app,
        threads=service.web_threads,
        max_body_bytes=int(app.config["MAX_CONTENT_LENGTH"] or MAX_BODY_BYTES),
        max_upload_bytes=service.max_upload_bytes,
        connections=Connections(
            limit=min(MAX_CONNECTIONS, most_files() // 2),
            limit_of_network=None if service.behind_proxy else service.max_connections_per_address,
        ),
    )


def server_options(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's options."""
    service = settings.service
    host = f"[{service.host}]" if ":" in service.host else service.host
    options: dict[str, Any] = {
        "bind": f"{host}:{service.port}",
        "workers": service.web_processes,
        "worker_class": "service.serving.worker.Worker",
        "asgi_loop": "asyncio",
        "asgi_lifespan": "off",
        "timeout": 120,
        "graceful_timeout": 10,
        "keepalive": 15,
        "proc_name": "cic",
        "control_socket_disable": True,
        "post_fork": _end_with_master,
        "on_exit": lambda _: _stop_pool(settings),
    }
    if service.tls_certificate is not None:
        options["certfile"] = str(service.tls_certificate)
        options["keyfile"] = str(service.tls_key or service.tls_certificate)
    return options


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; then running builds end, or return to the queue."""
    create_app(settings)  # what cannot work says so here, once, before any worker begins
    try:
        _Server(settings).run()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _end_with_master(master: Any, _: Any) -> None:
    """A web process whose master was killed must not keep the port from the next one."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != master.pid:  # it went before that
        os._exit(1)


def _stop_pool(settings: Settings) -> None:
    if settings.service.executor == "celery":
        return
    timeout_s = settings.service.stop_timeout_s + MARGIN_S
    if not stop_pool_if_last(settings.library.build.tmp_folder, timeout_s):
        print("The build pool goes on: it serves others, or takes its time.", file=sys.stderr)
