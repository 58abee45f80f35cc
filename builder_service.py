"""Serves (`python3 builder_service.py`), and is Flask's app for commands.

`flask --app builder_service users add NAME` makes a user. Importing this module creates nothing but
`db`, `create_app` and `main`.
"""

from __future__ import annotations

import sys

from service.app import create_app
from service.db.database import db

__all__ = ["create_app", "db", "main"]


def main() -> int:
    """Serve until a signal stops it, and return the exit code."""
    from config import ConfigError, load_settings
    from service.server import serve

    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
