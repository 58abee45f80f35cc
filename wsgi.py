"""Serves through WSGI servers such as mod_wsgi: `application`, under the configured root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from builder_service import create_app
from config import Settings, load_settings
from service.app import start_service


def configured() -> Settings:
    """Return the settings, with the number of threads that Apache gives to each process.

    Only some of the threads may follow logs, so the service has to know how many there are.
    """
    settings = load_settings()
    try:
        import mod_wsgi
    except ImportError:
        return settings
    threads = getattr(mod_wsgi, "threads_per_process", 0) or settings.service.web_threads
    service = settings.service.model_copy(update={"web_threads": threads})
    return settings.model_copy(update={"service": service})


application = create_app(configured())
start_service(application)
