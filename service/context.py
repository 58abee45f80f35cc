"""Hold the parts that an application is made of, at `app.extensions["cic"]`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flask import current_app
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.request.machines import MachineEntry
from image_builder.store.image_store import Images
from service.fair_use import FairUse
from service.health import Readiness
from service.logs.protocol import Logs
from service.submission import Submission
from service.workers.executors import Executor

if TYPE_CHECKING:
    from service.auth import Authenticator
    from service.oidc.provider import Provider


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """The parts of one application, made once by `create_app`."""

    settings: Settings
    engine: Engine
    images: Images
    logs: Logs
    executor: Executor
    submission: Submission
    authenticator: Authenticator
    provider: Provider | None
    """The OpenID provider that logs users in, where there is one."""
    readiness: Readiness
    fair_use: FairUse
    machines: Mapping[str, MachineEntry]
    """The machine catalogue, by name."""
    streams: threading.BoundedSemaphore
    """Taken by every followed log: threads are left for those who ask short questions."""


def service() -> Service:
    """Return the parts of the present application."""
    parts: Service = current_app.extensions["cic"]
    return parts
