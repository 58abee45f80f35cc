"""Secrets: what they are good for, that keys can change, and that none of them is ever seen."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flask import Flask, Response, request_finished
from pydantic import SecretStr

from builder_service import create_app
from config.settings import Settings
from service.db import accounts
from tests.service.conftest import PASSWORD, REQUEST, ROOT, Api, FakeBuilder, running_app
from tests.service.test_access import routes
from tests.service.test_web import Visitor, csrf_token
from tests.support.postgresql import PostgreSQL
from tests.support.site import Site

BASE_REQUEST = REQUEST | {"workflow": "BASE", "step_id": "BASE"}

Restart = Callable[..., Flask]


class TestAnotherSecretKey:
    """The service is started anew with another `secret_key`."""

    @pytest.fixture
    def restarted(self, app: Flask) -> Iterator[Restart]:
        """Starts the service anew, with another key; the one before it may be kept."""
        with contextlib.ExitStack() as stack:

            def restart(
                before: Flask = app, *, key: SecretStr | None = None, keeps_the_old: bool
            ) -> Flask:
                settings: Settings = before.extensions["cic"].settings
                service = settings.service.model_copy(
                    update={
                        "secret_key": key or SecretStr(secrets.token_hex(32)),
                        "old_secret_keys": (settings.service.secret_key,) if keeps_the_old else (),
                    }
                )
                made = create_app(
                    settings.model_copy(update={"service": service}),
                    executor=app.extensions["cic"].executor,
                )
                stack.callback(made.extensions["cic"].engine.dispose)
                return made

            yield restart

    @staticmethod
    def moved(visitor: Visitor, app: Flask) -> Visitor:
        """The same browser in front of another application."""
        other = Visitor(app)
        cookie = visitor.client.get_cookie("cic_session", path=ROOT)
        assert cookie is not None
        other.client.set_cookie("cic_session", cookie.value, path=ROOT)
        return other

    def test_nobody_is_logged_out_where_the_old_one_is_kept(
        self, app: Flask, restarted: Restart
    ) -> None:
        visitor = Visitor(app, "ada")
        form = csrf_token(visitor.get("/account"))
        after = self.moved(visitor, restarted(keeps_the_old=True))

        assert after.get("/builds").status_code == 200
        made = after.post(
            "/account/tokens", {"name": "laptop", "life": "7", "scopes": "read"}, token=form
        )
        assert made.status_code == 200
        engine = app.extensions["cic"].engine
        assert len(accounts.tokens_of(engine, accounts.by_name(engine, "ada").id)) == 1
        assert after.post("/logout", token=csrf_token(after.get("/account"))).status_code == 302
        assert after.get("/builds").status_code == 302

    def test_without_the_old_one_sessions_end_and_tokens_do_not(
        self, app: Flask, restarted: Restart
    ) -> None:
        visitor = Visitor(app, "ada")
        engine = app.extensions["cic"].engine
        token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "laptop")
        other = restarted(keeps_the_old=False)
        assert self.moved(visitor, other).get("/builds").status_code == 302
        for name in (token, "ada"):
            assert Api(other, name)("GET", "/build/").status_code == 200

    def test_a_new_session_is_not_signed_with_the_old_one(self, restarted: Restart) -> None:
        """Whoever has got hold of the old key opens nothing once it is taken out."""
        between = restarted(keeps_the_old=True)
        begun = Visitor(between, "ada")
        key = between.extensions["cic"].settings.service.secret_key
        last = restarted(between, key=key, keeps_the_old=False)
        assert self.moved(begun, last).get("/builds").status_code == 200


class TestScopes:
    @pytest.mark.parametrize(
        ("scopes", "reads", "plans", "builds_bases"),
        [
            (["read"], 200, 403, 403),
            (["build"], 403, 200, 403),
            (["read", "build"], 200, 200, 403),
            (["read", "build", "admin"], 200, 200, 200),
        ],
    )
    def test_what_a_token_of_an_administrator_may(
        self,
        app: Flask,
        scopes: list[str],
        reads: int,
        plans: int,
        builds_bases: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(
            "service.submission.Submission.submit", lambda *_, is_admin, **__: _base(is_admin)
        )
        engine = app.extensions["cic"].engine
        token = accounts.add_token(engine, accounts.by_name(engine, "root").id, "t", scopes=scopes)
        for caller in (Api(app, token), Api(app, token, token)):
            assert caller("GET", "/build/").status_code == reads
            assert caller("POST", "/build/plan", json=REQUEST).status_code == plans
            assert caller("POST", "/build/", json=BASE_REQUEST).status_code == builds_bases

    def test_a_scope_makes_no_administrator(self, app: Flask, ada: Api) -> None:
        engine = app.extensions["cic"].engine
        token = accounts.add_token(
            engine, accounts.by_name(engine, "ada").id, "t", scopes=accounts.SCOPES
        )
        assert Api(app, token)("POST", "/build/", json=BASE_REQUEST).status_code == 403

    def test_the_page_offers_it_to_administrators_alone(self, app: Flask) -> None:
        for name, is_offered in (("root", True), ("ada", False)):
            visitor = Visitor(app, name)
            assert ('value="read build admin"' in visitor.get("/account").text) is is_offered
            made = visitor.post(
                "/account/tokens", {"name": "t", "life": "7", "scopes": "read build admin"}
            )
            assert made.status_code == (200 if is_offered else 400)


def _base(is_admin: bool) -> str:
    from service.errors import Forbidden

    if not is_admin:
        raise Forbidden("Only administrators may build base images.")
    return "0" * 36


class TestNothingSecretIsSeen:
    CANARIES: ClassVar = {
        name: f"canary-{name}-{secrets.token_hex(8)}"
        for name in (
            "password",
            "other-password",
            "wrong-password",
            "secret-key",
            "old-key",
            "registry",
            "captcha",
        )
    }

    @pytest.fixture
    def site(self, site: Site) -> Site:
        return site.with_environ(
            CIC_SECRET_KEY=self.CANARIES["secret-key"],
            CIC_OLD_SECRET_KEYS=self.CANARIES["old-key"],
            CIC_REGISTRY_URL="localhost:1",
            CIC_REGISTRY_USER="pusher",
            CIC_CAPTCHA_SITE_KEY=self.CANARIES["captcha"],
            CIC_REGISTRY_TOKEN=self.CANARIES["registry"],
        )

    @pytest.fixture
    def answers(self) -> Iterator[list[tuple[str, str]]]:
        """Every answer's end point, headers and body."""
        from flask import request

        heard: list[tuple[str, str]] = []

        def hear(_: Flask, response: Response, **__: Any) -> None:
            body = "" if response.is_streamed else response.get_data(as_text=True)
            heard.append((str(request.endpoint), f"{response.headers} {body}"))

        with request_finished.connected_to(hear):
            yield heard

    def test_in_answers_logs_files_and_arguments(
        self,
        settings: Settings,
        builder: FakeBuilder,
        tmp_path: Path,
        answers: list[tuple[str, str]],
        started_processes: list[str],
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        request: pytest.FixtureRequest,
    ) -> None:
        caplog.set_level("DEBUG")
        builder.lines = [f"docker login -p {self.CANARIES['registry']}"]
        with running_app(settings, builder) as app:
            engine = app.extensions["cic"].engine
            accounts.set_password(engine, "root", self.CANARIES["password"])
            root = Api(app, "root", self.CANARIES["password"])
            token = accounts.add_token(engine, accounts.by_name(engine, "root").id, "laptop")
            build_id = root.submit()
            root.wait(build_id)
            log = root("GET", f"/build/{build_id}/log").text
            assert "docker login -p" in log
            page = self.visit_everything(app, root, token, build_id)
            shown = page.partition("cic_")[2][:20]
            assert len(shown) == 20
        seen = {
            "logs": caplog.text,
            "output": "".join(capfd.readouterr()),
            "arguments": "".join(started_processes),
            "the build's log": log,
        }
        seen |= {
            f"answer of {endpoint} {number}": text
            for number, (endpoint, text) in enumerate(answers)
            if endpoint != "web.add_token"
        }
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        if settings.service.database.startswith("sqlite"):
            assert any(path.name.startswith("db.sqlite") for path in files)
        else:
            server: PostgreSQL = request.getfixturevalue("postgresql")
            seen["the database"] = server.dump(settings.service.database)
            assert build_id in seen["the database"]
        assert any(path.suffix == ".log" for path in files)
        seen |= {str(path): path.read_bytes().decode("latin-1") for path in files}
        assert "git" in seen["arguments"]
        assert "wrong-password" not in seen["logs"]
        for name, secret in {
            **self.CANARIES,
            "token": token,
            "shown token": f"cic_{shown}",
            "usual": PASSWORD,
        }.items():
            assert [where for where, text in seen.items() if secret in text] == [], name

    def visit_everything(self, app: Flask, root: Api, token: str, build_id: str) -> str:
        """Every route, with every kind of credentials, right and wrong. Returns the page that shows
        a new token.
        """
        visitor = Visitor(app)
        visitor.log_in("root", self.CANARIES["password"])
        visitor.log_in("root", self.CANARIES["wrong-password"])
        form = csrf_token(visitor.get("/account"))
        page = visitor.post(
            "/account/tokens", {"name": "new", "life": "7", "scopes": "read"}, token=form
        )
        for route in routes(app):
            path = route.path(build_id=build_id)
            for caller in (
                root,
                Api(app, token),
                Api(app, "root", self.CANARIES["wrong-password"]),
            ):
                if route.endpoint.startswith("api.") and route.method in ("GET", "HEAD"):
                    caller(route.method, path.removeprefix(ROOT))
            if route.method == "GET" and route.endpoint.startswith("web."):
                visitor.get(path)
        visitor.get("/docs")
        root("POST", "/build/", json={self.CANARIES["other-password"]: 1}.fromkeys(["workflow"], 1))
        visitor.post(
            "/account/password",
            {
                "present": self.CANARIES["password"],
                "repeated": "x",
                "password": self.CANARIES["other-password"],
            },
            token=form,
        )
        return page.text
