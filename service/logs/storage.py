"""Choose the way to keep logs that the settings name."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from config.settings import Settings
from service.logs.folder import FolderLogs
from service.logs.protocol import Logs


def logs_of(settings: Settings, engine: Engine) -> Logs:
    """Return where these settings keep logs."""
    if settings.service.keeps_logs_in_database:
        from service.logs.database import DatabaseLogs

        return DatabaseLogs(engine)
    return FolderLogs(settings.library.build.tmp_folder / "logs")
