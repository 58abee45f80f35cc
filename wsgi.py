"""For WSGI servers such as mod_wsgi: `application`, mounted under the configured root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from builder_service import create_app
from service.app import start_service

application = create_app()
start_service(application)
