"""Report whether the service can do its work, and which part of it cannot.

The parts are checked in the background; a call is answered from memory.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping

from flask import Response, jsonify
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.build.buildcache import stores
from image_builder.docker import base_image as docker_base_image
from image_builder.docker import daemon as docker_daemon
from image_builder.docker.isolation import check as isolation_check
from image_builder.errors import CicError, Misconfigured, ServiceError, ToolMissing
from image_builder.host.process import Command, run
from image_builder.host.workspace import require_free_space
from image_builder.plan import steps
from image_builder.store.image_store import open_images
from service.db import runs
from service.problems import problem

FRESH_S = 10.0
SLOW_S = 120.0
FIRST_ANSWER_S = 8.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One part of the service: `ask` raises what is wrong with it, or returns facts about it.

    It is called every `every_s` at most. Without a part that is not `needed` the service is ready
    all the same, and reports what is wrong as a warning.
    """

    ask: Callable[[], str | None]
    every_s: float = FRESH_S
    needed: bool = True


class Readiness:
    """Remembers the results of its checks.

    A call that finds old results returns them, and has new ones made meanwhile.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        self._found: dict[str, tuple[float, CicError | str | None]] = {}
        self._lock = threading.Lock()
        self._first = threading.Event()

    def add(self, name: str, check: Check) -> None:
        """Add one more part that is needed; call it before the first answer."""
        self._checks[name] = check

    def answer(self) -> Response:
        """Return 200 when every part works, else 503 with what is missing and what to do."""
        self._refresh()
        self._first.wait(FIRST_ANSWER_S)
        outcomes = {name: outcome for name, (_, outcome) in list(self._found.items())}
        checks = {name: self._shown(name, outcome) for name, outcome in outcomes.items()}
        missing = [
            name
            for name, outcome in outcomes.items()
            if isinstance(outcome, CicError) and self._checks[name].needed
        ]
        if not missing and self._first.is_set():
            return jsonify({"status": "ready", "checks": checks})
        detail = (
            f"Not ready: {', '.join(missing)}." if missing else "Not all checks have answered yet."
        )
        return problem(
            503,
            "NOT_READY",
            detail,
            more={"checks": checks},
            headers={"Retry-After": str(int(FRESH_S))},
        )

    def _shown(self, name: str, outcome: CicError | str | None) -> str:
        if not isinstance(outcome, CicError):
            return f"ok: {outcome}" if outcome else "ok"
        return str(outcome) if self._checks[name].needed else f"warning: {outcome}"

    def _refresh(self) -> None:
        due = {
            name: check
            for name, check in self._checks.items()
            if time.monotonic() - self._found.get(name, (-check.every_s, None))[0] >= check.every_s
        }
        if due and self._lock.acquire(blocking=False):
            threading.Thread(target=self._ask, args=(due,), name="readiness", daemon=True).start()

    def _ask(self, due: Mapping[str, Check]) -> None:
        try:
            for name, check in sorted(due.items(), key=lambda item: not item[1].needed):
                if not check.needed:
                    self._first.set()
                self._take(name, _outcome(name, check))
            self._first.set()
        finally:
            self._lock.release()

    def _take(self, name: str, outcome: CicError | str | None) -> None:
        _, before = self._found.get(name, (0.0, None))
        if isinstance(outcome, CicError) and str(outcome) != str(before):
            _log.warning("%s: %s", name, outcome)
        self._found[name] = (time.monotonic(), outcome)


def _outcome(name: str, check: Check) -> CicError | str | None:
    try:
        return check.ask()
    except CicError as error:
        return error
    except Exception as error:
        _log.exception("the check of %s failed", name)
        return ServiceError(f"The check itself failed: {type(error).__name__}.")


def checks_of(settings: Settings, engine: Engine) -> dict[str, Check]:
    """Return what a service on this machine needs: less where builds are made elsewhere."""
    library = settings.library
    build = library.build
    images = open_images(build, library.registry)

    platforms = ["linux/amd64"] if isinstance(build.base_image, str) else list(build.base_image)

    def database() -> None:
        runs.is_idle(engine)

    def storage() -> None:
        images.is_known("0" * 64)

    def workflow_registry() -> None:
        steps.open_registry(library).versions()

    def buildx() -> None:
        run(Command(name="docker buildx", argv=("docker", "buildx", "version"), timeout_s=30))

    def base_image() -> None:
        for platform in platforms:
            reference = build.base_image_for(platform)
            if reference is None:
                raise Misconfigured(f"No base image is configured for {platform}.")
            docker_base_image.resolve_base(reference, platform, library.registry)

    def daemon() -> None:
        with docker_daemon.daemon(5) as client:
            client.ping()

    def isolated() -> None:
        problems = isolation_check.problems(build, base_image=build.base_image_for(platforms[0]))
        if problems:
            raise ServiceError(" ".join(error.message for error in problems), hint=problems[0].hint)

    everywhere = {
        "database": Check(ask=database),
        "disk": Check(ask=lambda: require_free_space(build.tmp_folder, build.min_free_bytes)),
        "git": Check(ask=lambda: _program("git")),
        "storage": Check(ask=storage, every_s=SLOW_S),
        "workflow_registry": Check(ask=workflow_registry, every_s=SLOW_S),
    }
    if settings.service.executor == "celery":
        return everywhere
    return everywhere | {
        "docker": Check(ask=daemon),
        "singularity": Check(ask=_singularity),
        "buildx": Check(ask=buildx, every_s=SLOW_S),
        "base_image": Check(ask=base_image, every_s=SLOW_S),
        "isolation": Check(
            ask=isolated, every_s=isolation_check.REMEMBERED_S, needed=build.require_isolation
        ),
        "package_cache": Check(
            ask=lambda: stores.described(build, library.registry),
            every_s=SLOW_S,
            needed=False,
        ),
    }


def _singularity() -> None:
    if shutil.which("apptainer") is None:
        _program("singularity")


def _program(name: str) -> None:
    if shutil.which(name) is None:
        raise ToolMissing(f"The program {name} is not installed.", hint="Install it.")
