"""Make the application from settings, with every part either handed in or made here."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

import service.db.models  # noqa: F401  the tables register themselves
from config import load_settings
from config.loading import PROJECT
from config.settings import Settings
from image_builder import pipeline
from image_builder.build.signing import beside_sifs
from image_builder.errors import Misconfigured
from image_builder.host.process import Runner
from image_builder.proof.keys import signer_of
from image_builder.request.machines import load_machines
from image_builder.store.image_store import open_images
from service import commands, earlier_images, health, problems, web
from service.api.routes import api
from service.auth import Authenticator
from service.bottleneck import resolving
from service.console import log_to_stderr
from service.context import Service
from service.db import earlier_users
from service.db.database import db, init_database, migrate
from service.fair_use import FairUse
from service.logs.storage import logs_of
from service.memory import share_arenas
from service.oidc.provider import Provider
from service.submission import Submission
from service.uploads import Uploads
from service.workers.executors import Executor, PoolProcess
from service.workers.pool import BuildPool

MAX_BODY_BYTES = 1024**2


def create_app(
    settings: Settings | None = None, executor: Executor | None = None, runner: Runner | None = None
) -> Flask:
    """Return an application for these settings (None: the configured ones), its database migrated.

    `executor` has runs worked on; without one it is the machine's pool process, which the caller
    starts with `start_service`. With a `runner` instead, commands are started by it in threads of
    this process.
    """
    settings = settings or load_settings()
    app = Flask("builder_service", root_path=str(PROJECT), instance_path=str(PROJECT))
    app.config.update(_flask_config(settings))
    app.json.sort_keys = False  # type: ignore[attr-defined]
    init_database(app, settings.service.database)
    tmp_folder = settings.library.build.tmp_folder
    earlier_images.set_aside(tmp_folder)
    (tmp_folder / "images").mkdir(parents=True, exist_ok=True)
    migrate(app, tmp_folder / "run" / "migration.lock")
    with app.app_context():
        engine = db.engine
    earlier_users.take_over_at_first(engine)
    _require_links(settings)
    executor = executor or _default_executor(settings, engine, runner)
    library = settings.library
    signer = signer_of(library.proof)
    images = open_images(library.build, library.registry, beside=beside_sifs(signer))
    kept_logs = logs_of(settings, engine)
    app.extensions["cic"] = Service(
        settings=settings,
        engine=engine,
        images=images,
        logs=kept_logs,
        executor=executor,
        submission=Submission(
            engine=engine,
            settings=settings,
            images=images,
            logs=kept_logs,
            executor=executor,
            uploads=Uploads(engine=engine, settings=settings),
            resolving=resolving(settings.service.web_threads),
        ),
        authenticator=Authenticator(engine, takes_passwords=settings.oidc.local_accounts),
        provider=_provider(settings),
        readiness=health.Readiness(health.checks_of(settings, engine)),
        fair_use=FairUse(settings.service),
        machines=load_machines(settings.library.build.machines),
        streams=threading.BoundedSemaphore(max(1, settings.service.web_threads // 2)),
    )
    problems.install(app)
    commands.install(app)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.register_blueprint(api)
    web.install(app)
    app.wsgi_app = _mounted(app.wsgi_app, settings.service)  # type: ignore[method-assign]
    return app


def start_service(app: Flask) -> None:
    """Start the workers of an application that serves requests, and log to its operator."""
    share_arenas()
    log_to_stderr(app.extensions["cic"].settings.service.log_format)
    executor = app.extensions["cic"].executor
    readiness = app.extensions["cic"].readiness
    if isinstance(executor, (PoolProcess, BuildPool)):
        executor.start()
    if isinstance(executor, PoolProcess):
        readiness.add("pool", health.Check(ask=executor.require_pool))
    if app.extensions["cic"].settings.service.executor == "celery":
        executor.start()
        readiness.add("broker", health.Check(ask=executor.require_broker))
        readiness.add("workers", health.Check(ask=executor.require_worker))


def _flask_config(settings: Settings) -> dict[str, Any]:
    service = settings.service
    return {
        "SECRET_KEY": service.secret_key.get_secret_value(),
        "SECRET_KEY_FALLBACKS": [key.get_secret_value() for key in service.old_secret_keys],
        "MAX_CONTENT_LENGTH": MAX_BODY_BYTES,
        "MAX_FORM_MEMORY_SIZE": MAX_BODY_BYTES,
        # no other site's page may call: OPTIONS is a method that nothing has
        "PROVIDE_AUTOMATIC_OPTIONS": False,
        "APPLICATION_ROOT": f"/{service.application_root}",
        "SESSION_COOKIE_NAME": "cic_session",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": service.tls_certificate is not None,
    }


def _require_links(settings: Settings) -> None:
    """Raise `Misconfigured` when SIFs cannot be linked to where a front server looks for them."""
    build, service = settings.library.build, settings.service
    if build.storage.startswith("/") and (service.download_links or service.public_downloads):
        Path(build.storage).mkdir(parents=True, exist_ok=True, mode=0o700)
        if Path(build.storage).stat().st_dev != (build.tmp_folder / "images").stat().st_dev:
            raise Misconfigured(
                "build_cfg['storage'] and tmp_folder are on different file systems, and download_links "
                "and public_downloads need hard links between them.",
                hint="Put both on one, or leave these two out: the service sends them itself then.",
            )


def _provider(settings: Settings) -> Provider | None:
    if not settings.oidc.is_on:
        return None
    return Provider(settings.oidc, ca_bundle=settings.library.build.ca_bundle)


def _default_executor(settings: Settings, engine: Any, runner: Runner | None) -> Executor:
    if settings.service.executor == "celery":
        try:
            from service.workers.celery_executor import CeleryExecutor
        except ModuleNotFoundError as error:
            raise Misconfigured(
                f"The executor celery needs {error.name}, which is not installed.",
                hint="Install requirements-cluster.txt.",
            ) from None
        return CeleryExecutor(engine, settings)
    if runner is None:
        return PoolProcess(settings.library.build.tmp_folder)
    return BuildPool(
        engine, settings, build_image=functools.partial(pipeline.build_image, runner=runner)
    )


def _mounted(
    application: Callable[..., Iterable[bytes]], service: Any
) -> Callable[..., Iterable[bytes]]:
    """The application under `/<application_root>`, seen through the proxies that are trusted."""
    root = f"/{service.application_root}" if service.application_root else ""

    def mount(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path: str = environ.get("PATH_INFO", "")
        outer: str = environ.get("SCRIPT_NAME", "")
        if path == root or path.startswith(f"{root}/"):
            environ["SCRIPT_NAME"] = outer.removesuffix(root) + root
            environ["PATH_INFO"] = path[len(root) :] or "/"
            return application(environ, start_response)
        if outer.endswith(root):  # the server has mounted it there already
            return application(environ, start_response)
        if path == "/" and environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            start_response("302 Found", [("Location", f"{root}/"), ("Content-Length", "0")])
            return []
        body = (
            b'{"type": "about:blank", "title": "Not Found", "status": 404, "code": "NOT_FOUND", "detail": '
            b'"The service is at ' + root.encode() + b'/."}'
        )
        start_response(
            "404 Not Found",
            [("Content-Type", problems.PROBLEM_TYPE), ("Content-Length", str(len(body)))],
        )
        return [body]

    trusted = service.behind_proxy
    return ProxyFix(mount, x_for=trusted, x_proto=trusted, x_host=trusted) if trusted else mount
