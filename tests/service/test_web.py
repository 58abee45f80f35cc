"""The pages, through Flask's test client: who sees what, what is refused, and what cannot be
injected.
"""

from __future__ import annotations

import datetime
import html
import re
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.test import TestResponse

from config.settings import Settings
from image_builder.errors import BuildFailed
from service.app import create_app
from service.auth import MAX_FAILURES
from service.db import accounts, audit_trail, tables
from service.db.database import now, reading, writing
from service.errors import TooManyFailures
from service.web import captchas, sign_in
from tests.service.conftest import PASSWORD, REQUEST, ROOT, Api, FakeBuilder, running_app
from tests.support import sights

NEW_BUILD = {
    "workflow": "demo",
    "step_id": "hello",
    "version": "latest",
    "platform": "linux/amd64",
    "architecture": "x86_64",
    "container_engine": "singularity",
    "push": "no",
    "action": "build",
}
OTHERS_PAGES = (
    "/builds/{}",
    "/builds/{}/state",
    "/builds/{}/log",
    "/builds/{}/timeline",
    "/builds/new?from={}",
)
PRIVATE_PAGES = ("/", "/builds", "/builds/new", "/images", "/machines", "/account", "/admin")


class Visitor:
    """A browser without eyes: keeps cookies, and sends the CSRF token of the last page."""

    def __init__(self, app: Flask, user: str | None = None, **environ: Any) -> None:
        self.engine = app.extensions["cic"].engine
        self.client = app.test_client()
        self.environ = environ
        if user is not None:
            assert self.log_in(user).status_code == 302

    def get(self, path: str, **more: Any) -> TestResponse:
        headers = {"Accept": "text/html"} | more.pop("headers", {})
        return self.client.get(
            path if path.startswith(ROOT) else ROOT + path, headers=headers, **self.environ, **more
        )

    def post(
        self,
        path: str,
        data: dict[str, Any] | None = None,
        *,
        token: str | None = None,
        form: str = "/login",
    ) -> TestResponse:
        page = self.get(form)
        if page.status_code == 302:
            page = self.get("/account")
        token = token if token is not None else csrf_token(page)
        return self.client.post(
            ROOT + path,
            data={"csrf_token": token, **(data or {})},
            headers={"Accept": "text/html"},
            **self.environ,
        )

    def log_in(self, user: str, password: str = PASSWORD, path: str = "/login") -> TestResponse:
        return self.post(path, {"name": user, "password": password})

    def sign_up(self, user: str, **changes: str) -> TestResponse:
        """Fill in the form with the right digits, as somebody does who can read them."""
        page = self.get("/signup")
        captcha_id = re.search(r'name="captcha_id"[^>]*value="([^"]+)"', page.text)
        assert captcha_id
        data = {
            "name": user,
            "password": PASSWORD,
            "repeated": PASSWORD,
            "captcha_id": captcha_id[1],
            "answer": answer_of(self.engine, captcha_id[1]),
        }
        return self.post("/signup", data | changes, token=csrf_token(page))


def csrf_token(page: TestResponse) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    assert found, page.text
    return html.unescape(found[1])


def answer_of(engine: sa.Engine, captcha_id: str) -> str:
    with reading(engine) as connection:
        return str(
            connection.scalar(
                sa.select(captchas.CAPTCHAS.c.answer).where(captchas.CAPTCHAS.c.id == captcha_id)
            )
        )


def complaints(page: TestResponse) -> list[str]:
    return [
        html.unescape(text)
        for text in re.findall(r'class="invalid-feedback[^>]*>([^<]*)<', page.text)
    ]


def is_logged_in(visitor: Visitor) -> bool:
    return visitor.get("/builds").status_code == 200


@pytest.fixture
def visitor(app: Flask) -> Visitor:
    return Visitor(app)


@pytest.mark.parametrize("path", PRIVATE_PAGES)
def test_pages_need_a_login(visitor: Visitor, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(f"{ROOT}/login")


def test_programs_without_a_session_are_told_so(visitor: Visitor) -> None:
    assert (
        visitor.get("/builds/new/choices", headers={"Accept": "application/json"}).status_code
        == 401
    )


def test_log_in_leads_back_to_where_one_wanted_to_go(visitor: Visitor) -> None:
    target = visitor.get("/builds?status=FAILED").headers["Location"]
    answer = visitor.log_in("ada", path=target.removeprefix(ROOT))
    assert answer.headers["Location"] == f"{ROOT}/builds?status=FAILED"
    assert is_logged_in(visitor)


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.test/",
        "//evil.test/",
        "/\\evil.test",
        f"{ROOT}/\\evil",
        "javascript:x",
        f"{ROOT}/x\nLocation:y",
        "/elsewhere",
        "///evil.test",
    ],
)
def test_nobody_is_sent_elsewhere(app: Flask, target: str) -> None:
    visitor = Visitor(app)
    token = csrf_token(visitor.get("/login"))
    answer = visitor.client.post(
        f"{ROOT}/login",
        query_string={"next": target},
        data={"name": "ada", "password": PASSWORD, "csrf_token": token},
    )
    assert answer.headers["Location"] == f"{ROOT}/"


def test_unknown_user_and_wrong_password_get_the_same_answer(app: Flask) -> None:
    answers = [Visitor(app).log_in(name, "not the password") for name in ("ada", "nobody")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert complaints(answers[0]) == complaints(answers[1]) != []


def test_a_token_is_no_way_to_log_in(app: Flask, visitor: Visitor) -> None:
    engine = app.extensions["cic"].engine
    token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "mine")
    assert visitor.log_in(token, "anything").status_code == 401


def test_log_in_is_refused_after_many_failures_in_every_process(
    app: Flask, settings: Settings
) -> None:
    for _ in range(MAX_FAILURES):
        assert Visitor(app).log_in("ada", "wrong").status_code == 401
    assert Visitor(app).log_in("ada").status_code == 429
    second = create_app(settings, executor=app.extensions["cic"].executor)
    assert Visitor(second).log_in("ada").status_code == 429
    assert Visitor(second).log_in("bob").status_code == 302
    second.extensions["cic"].engine.dispose()


def test_the_cookie_is_kept_from_scripts_and_other_sites(app: Flask) -> None:
    plain = Visitor(app).log_in("ada").headers["Set-Cookie"]
    secure = Visitor(app, base_url="https://localhost")
    token = csrf_token(secure.get("/login"))
    answer = secure.client.post(
        f"{ROOT}/login",
        data={"name": "ada", "password": PASSWORD, "csrf_token": token},
        headers={"Referer": "https://localhost/"},
        base_url="https://localhost",
    )

    for cookie in (plain, answer.headers["Set-Cookie"]):
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and f"Path={ROOT}" in cookie
    assert "Secure" not in plain
    assert "Secure" in answer.headers["Set-Cookie"]


def test_headers_let_no_foreign_script_in(app: Flask) -> None:
    ada = Visitor(app, "ada")
    for path in ("/builds", "/nowhere", "/builds/nothing"):
        answer = ada.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", answer.text)


@pytest.mark.parametrize(
    "path", ["/logout", "/builds/new", "/account/password", "/account/tokens", "/login", "/signup"]
)
def test_forms_need_their_token(app: Flask, path: str) -> None:
    ada = Visitor(app, "ada")
    assert ada.post(path, token="").status_code == 400
    assert is_logged_in(ada)


def test_changes_are_not_made_by_links(app: Flask, ada: Api) -> None:
    visitor, build_id = Visitor(app, "ada"), ada.submit()
    for path in (
        "/logout",
        f"/builds/{build_id}/cancel",
        f"/builds/{build_id}/delete",
        f"/builds/{build_id}/retry",
        "/account/tokens/1/revoke",
        "/admin/users/1/remove",
    ):
        assert visitor.get(path).status_code in (404, 405), path


def test_log_out(app: Flask) -> None:
    ada = Visitor(app, "ada")
    ada.post("/logout")
    assert not is_logged_in(ada)


def test_another_password_ends_other_sessions(app: Flask) -> None:
    here, there = Visitor(app, "ada"), Visitor(app, "ada")
    form = {"present": PASSWORD, "password": "quite another", "repeated": "quite another"}
    answer = here.post("/account/password", form)
    assert answer.status_code == 302
    assert is_logged_in(here)
    assert not is_logged_in(there)
    assert there.log_in("ada").status_code == 401
    assert there.log_in("ada", "quite another").status_code == 302


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"present": "wrong"}, "present"),
        ({"repeated": "x"}, "repeated"),
        ({"password": "short", "repeated": "short"}, "password"),
    ],
)
def test_a_password_is_not_changed_by_mistake(
    app: Flask, changes: dict[str, str], field: str
) -> None:
    ada = Visitor(app, "ada")
    form = {"present": PASSWORD, "password": "quite another", "repeated": "quite another"}
    answer = ada.post("/account/password", form | changes)
    assert answer.status_code == 400
    assert f'id="{field}-error"' in answer.text
    assert Visitor(app).log_in("ada").status_code == 302


def test_a_blocked_user_is_out_at_once(app: Flask) -> None:
    ada, root = Visitor(app, "ada"), Visitor(app, "root")
    user_id = accounts.by_name(ada.engine, "ada").id
    root.post(f"/admin/users/{user_id}/block")
    assert not is_logged_in(ada)
    root.post(f"/admin/users/{user_id}/unblock")
    assert Visitor(app).log_in("ada").status_code == 302


def test_a_token_is_shown_once(app: Flask) -> None:
    ada = Visitor(app, "ada")
    shown = ada.post("/account/tokens", {"name": "laptop", "life": "7", "scopes": "read"})
    token = re.search(r"cic_[\w-]{20,}", shown.text)
    assert token
    (row,) = accounts.tokens_of(ada.engine, accounts.by_name(ada.engine, "ada").id)
    assert row.scopes == ["read"]
    assert datetime.timedelta(days=6) < row.expires_at - now() <= datetime.timedelta(days=7)
    assert token[0] not in ada.get("/account").text
    Visitor(app, "bob").post(f"/account/tokens/{row.id}/revoke")
    assert accounts.by_token(ada.engine, token[0]) is not None
    ada.post(f"/account/tokens/{row.id}/revoke")
    assert accounts.by_token(ada.engine, token[0]) is None


def test_sign_up_with_the_captcha(visitor: Visitor, app: Flask) -> None:
    assert visitor.sign_up("mary").status_code == 302
    assert is_logged_in(visitor)
    assert Visitor(app).log_in("mary").status_code == 302


def test_a_captcha_works_once_and_not_for_ever(app: Flask) -> None:
    engine = app.extensions["cic"].engine
    wrong, right, late = (captchas.ask(engine, "here") for _ in range(3))
    answers = {captcha_id: answer_of(engine, captcha_id) for captcha_id in (wrong, right, late)}
    with writing(engine) as connection:
        connection.execute(
            captchas.CAPTCHAS.update().where(captchas.CAPTCHAS.c.id == late).values(until=now())
        )

    assert not captchas.is_answered(engine, wrong, "x")
    assert not captchas.is_answered(engine, wrong, answers[wrong])
    assert captchas.is_answered(engine, right, answers[right])
    assert not captchas.is_answered(engine, right, answers[right])
    assert not captchas.is_answered(engine, late, answers[late])
    assert not captchas.is_answered(engine, "unknown", "")


def test_who_collects_questions_is_told_when_the_first_ends(app: Flask) -> None:
    engine = app.extensions["cic"].engine
    for _ in range(captchas.MAX_OPEN):
        captchas.ask(engine, "here")
    captchas.ask(engine, "elsewhere")
    with pytest.raises(TooManyFailures) as caught:
        captchas.ask(engine, "here")
    life_s = captchas.LIFE.total_seconds()
    assert life_s - 300 < (caught.value.retry_after_s or 0) <= life_s


def test_a_captcha_is_seen_and_heard(visitor: Visitor) -> None:
    captcha_id = captchas.ask(visitor.engine, "here")
    picture, sound = (visitor.get(f"/captchas/{captcha_id}.{ending}") for ending in ("png", "wav"))
    assert picture.data.startswith(b"\x89PNG")
    with wave.open(BytesIO(sound.data)) as audio:
        assert audio.getnframes() / audio.getframerate() > 1
    assert visitor.get("/captchas/unknown.png").status_code == 404


def test_a_captcha_is_not_drawn_for_ever(visitor: Visitor) -> None:
    captcha_id = captchas.ask(visitor.engine, "here")
    found = [
        visitor.get(f"/captchas/{captcha_id}.png").status_code
        for _ in range(captchas.MAX_SHOWN + 1)
    ]
    assert found == [200] * captchas.MAX_SHOWN + [404]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer": "12"}, "answer"),
        ({"name": "ADA"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "cic_x"}, "name"),
        ({"password": "short", "repeated": "short"}, "password"),
        ({"repeated": "another"}, "repeated"),
    ],
)
def test_a_wrong_sign_up_is_told_beside_the_field(
    visitor: Visitor, changes: dict[str, str], field: str
) -> None:
    before = len(accounts.users(visitor.engine))
    answer = visitor.sign_up("mary", **changes)
    assert answer.status_code == 400
    assert f'id="{field}-error"' in answer.text
    assert PASSWORD not in answer.text
    assert len(accounts.users(visitor.engine)) == before


def test_sign_up_has_a_limit(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "MAX_SIGNUPS", 2)
    assert [visitor.sign_up("mary", answer="no").status_code for _ in range(3)] == [400, 400, 429]


def test_closed_sign_up(settings: Settings, builder: FakeBuilder) -> None:
    with running_app(with_service(settings, signup_open=False), builder) as app:
        visitor = Visitor(app)
        assert visitor.get("/signup").status_code == 403
        assert (
            visitor.post(
                "/signup", {"name": "mary", "password": PASSWORD, "repeated": PASSWORD}
            ).status_code
            == 403
        )
        assert "/signup" not in visitor.get("/login").text


def test_who_signs_up_waits_where_users_are_confirmed(
    settings: Settings, builder: FakeBuilder
) -> None:
    with running_app(with_service(settings, confirm_users=True), builder) as app:
        mary, root = Visitor(app), Visitor(app, "root")
        assert mary.sign_up("mary").headers["Location"] == f"{ROOT}/login"
        assert mary.log_in("mary").status_code == 401
        assert "waits for confirmation" in root.get("/admin").text
        root.post(f"/admin/users/{accounts.by_name(mary.engine, 'mary').id}/confirm")
        assert mary.log_in("mary").status_code == 302


class FakeProvider(BaseHTTPRequestHandler):
    """Stands in for a captcha provider: whoever sends `good` is a person."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = (
            b'{"success": true}'
            if "response=good" in body and "secret=private" in body
            else b'{"success": false}'
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def provider_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), FakeProvider) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/verify"
        server.shutdown()


def test_sign_up_with_a_captcha_provider(
    settings: Settings, builder: FakeBuilder, provider_url: str
) -> None:
    own = with_service(
        settings,
        captcha_web_site_key="public",
        captcha_site_key="private",
        captcha_verify_url=provider_url,
        captcha_script_url="https://captcha.test/api.js",
        captcha_hosts=("https://captcha.test",),
    )
    with running_app(own, builder) as app:
        visitor = Visitor(app)
        page = visitor.get("/signup")
        form = {"name": "mary", "password": PASSWORD, "repeated": PASSWORD}
        assert 'data-sitekey="public"' in page.text and "private" not in page.text
        assert "script-src 'self' https://captcha.test;" in page.headers["Content-Security-Policy"]
        assert (
            "https://captcha.test" not in visitor.get("/login").headers["Content-Security-Policy"]
        )
        assert visitor.post("/signup", form | {"g-recaptcha-response": "bad"}).status_code == 400
        assert visitor.post("/signup", form).status_code == 400
        assert visitor.post("/signup", form | {"g-recaptcha-response": "good"}).status_code == 302


def test_request_a_build(app: Flask, ada: Api) -> None:
    visitor = Visitor(app, "ada")
    answer = visitor.post("/builds/new", NEW_BUILD)
    build_id = answer.headers["Location"].removeprefix(f"{ROOT}/builds/")
    status = ada.wait(build_id)

    assert status["status"] == "FINISHED"
    assert status["request"]["machine"] == REQUEST["machine"] | {
        "architecture": "x86_64",
        "mpi": None,
        "gpu": None,
        "gpu_arch": None,
    }
    assert build_id in visitor.get("/builds").text
    page = visitor.get(f"/builds/{build_id}").text
    assert status["sha256"] in page and "FINISHED" in page
    assert visitor.get(f"/builds/{build_id}/log").text == ada("GET", f"/build/{build_id}/log").text
    state = visitor.get(f"/builds/{build_id}/state").get_json()
    assert state["ended"] is True and state["status"] == "FINISHED"


def test_every_wrong_field_is_told_and_what_was_typed_is_kept(app: Flask) -> None:
    visitor = Visitor(app, "ada")
    wrong = {"workflow": "", "architecture": "romee", "mpi": "<script>alert(1)</script>"}
    answer = visitor.post("/builds/new", NEW_BUILD | wrong)

    assert answer.status_code == 400
    assert set(re.findall(r'id="(\w+)-error"', answer.text)) == set(wrong)
    assert "<script>alert" not in answer.text
    assert 'value="&lt;script&gt;alert(1)&lt;/script&gt;"' in answer.text
    assert 'value="romee"' in answer.text
    assert any("rome" in text and "GET /" not in text for text in complaints(answer))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"workflow": "dem"}, "workflow"),
        ({"step_id": "helo"}, "step_id"),
        ({"version": "v99"}, "version"),
        ({"machine": "nowhere"}, "machine"),
    ],
)
def test_names_that_are_not_there(app: Flask, changes: dict[str, str], field: str) -> None:
    answer = Visitor(app, "ada").post("/builds/new", NEW_BUILD | changes)
    assert answer.status_code == 400
    assert f'id="{field}-error"' in answer.text


def test_a_machine_of_the_catalogue_needs_no_script(app: Flask, ada: Api) -> None:
    """Without one, its fields are not filled in; what is typed beside the name goes before it."""
    visitor = Visitor(app, "ada")
    blank = {"architecture": "", "platform": "linux/amd64", "machine": "lumi-c"}
    answer = visitor.post("/builds/new", NEW_BUILD | blank | {"mpi": "openmpi@5"})
    machine = ada.status(answer.headers["Location"].rpartition("/")[2])["request"]["machine"]
    assert machine["architecture"] == "milan"
    assert machine["mpi"] == "openmpi@5"


def test_plan_builds_nothing(app: Flask, ada: Api, builder: FakeBuilder) -> None:
    answer = Visitor(app, "ada").post("/builds/new", NEW_BUILD | {"action": "plan"})
    assert answer.status_code == 200
    assert "FROM" in answer.text
    assert ada("GET", "/build/").get_json()["total"] == 0
    assert builder.calls == []


def test_build_again_with_changes(app: Flask, ada: Api) -> None:
    build_id = ada.submit(machine=REQUEST["machine"] | {"architecture": "rome", "mpi": "openmpi@4"})
    page = Visitor(app, "ada").get(f"/builds/new?from={build_id}").text
    for text in ('value="demo"', 'value="hello"', 'value="rome"', 'value="openmpi@4"'):
        assert text in page


def test_the_form_is_offered_names(app: Flask) -> None:
    visitor = Visitor(app, "ada")
    assert visitor.get("/builds/new/workflows").get_json()["names"] == ["demo"]
    assert visitor.get("/builds/new/workflows?workflow=demo").get_json()["names"] == [
        "hello",
        "other",
    ]
    assert "latest" in visitor.get("/builds/new/workflows?versions=1").get_json()["names"]
    assert visitor.get("/builds/new/workflows?version=v99").get_json()["names"] == []
    assert "lumi-c" in visitor.get("/builds/new/choices").get_json()["machines"]


def test_base_images_are_for_administrators(app: Flask) -> None:
    answer = Visitor(app, "ada").post(
        "/builds/new", NEW_BUILD | {"workflow": "BASE", "step_id": "BASE"}
    )
    assert answer.status_code == 400
    assert "Only administrators" in answer.text


def test_what_is_anothers_is_not_there(app: Flask, ada: Api) -> None:
    build_id, bob = ada.submit(), Visitor(app, "bob")
    ada.wait(build_id)
    for path in OTHERS_PAGES:
        assert bob.get(path.format(build_id)).status_code == 404, path
    for action in ("cancel", "retry", "delete"):
        assert bob.post(f"/builds/{build_id}/{action}").status_code == 404
    assert build_id not in bob.get("/builds").text
    assert bob.get("/admin").status_code == 404
    assert bob.post("/admin/users/1/remove").status_code == 404
    assert ada.status(build_id)["status"] == "FINISHED"


def test_cancel_and_delete(app: Flask, ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    visitor, build_id = Visitor(app, "ada"), ada.submit()
    visitor.post(f"/builds/{build_id}/delete")
    assert ada.status(build_id)["status"] != "FAILED"
    visitor.post(f"/builds/{build_id}/cancel")
    assert ada.wait(build_id)["error_code"] == "CANCELLED"
    assert visitor.post(f"/builds/{build_id}/delete").headers["Location"] == f"{ROOT}/builds"
    assert visitor.get(f"/builds/{build_id}").status_code == 404


def test_the_cause_of_a_failure_is_told_and_it_can_be_tried_again(
    app: Flask, ada: Api, builder: FakeBuilder
) -> None:
    builder.error = BuildFailed(
        "The <b>step</b> failed.", hint="Mend it.", excerpt=["E: <script>x</script>"]
    )
    build_id, visitor = ada.submit(), Visitor(app, "ada")
    ada.wait(build_id)
    page = visitor.get(f"/builds/{build_id}").text

    assert (
        "The &lt;b&gt;step&lt;/b&gt; failed." in page
        and "Mend it." in page
        and "<script>x" not in page
    )
    builder.error = None
    answer = visitor.post(f"/builds/{build_id}/retry")
    again = answer.headers["Location"].rpartition("/")[2]
    assert again != build_id
    assert ada.wait(again)["status"] == "FINISHED"


def test_a_log_is_followed_from_where_one_was(app: Flask, ada: Api, builder: FakeBuilder) -> None:
    builder.lines = ["<script>alert(1)</script>", "second"]
    build_id, visitor = ada.submit(), Visitor(app, "ada")
    ada.wait(build_id)
    whole = ada("GET", f"/build/{build_id}/log").data
    place = whole.index(b"second")
    came_back = {"Accept": "text/event-stream", "Last-Event-ID": str(place)}
    answer = visitor.get(f"/builds/{build_id}/log", headers=came_back)

    assert answer.mimetype == "text/event-stream"
    assert "data: second\n" in answer.text and "alert" not in answer.text
    assert f"event: end\nid: {len(whole)}" in answer.text
    saved = visitor.get(f"/builds/{build_id}/log")
    assert saved.mimetype == "text/plain" and saved.data == whole
    assert saved.headers["Content-Disposition"].startswith("attachment")


def test_what_a_scanner_found_is_shown(app: Flask, ada: Api, builder: FakeBuilder) -> None:
    """On the image's page and by REST, in short; the record of an image without a scan has none."""
    visitor = Visitor(app, "ada")
    unscanned = ada.wait(ada.submit())["filename"]
    assert "Known vulnerabilities" not in visitor.get(f"/images/{unscanned}").text

    counts = {"critical": 0, "high": 2, "medium": 1, "low": 5, "none": 0}
    builder.details = {"scan": {"scanner": "grype <1>", "fail_on": None, "counts": counts}}
    filename = ada.wait(ada.submit(force=True, step_id="hello", version="latest"))["filename"]
    page = visitor.get(f"/images/{filename}").text
    assert "grype &lt;1&gt; found" in page and "critical" not in page
    assert page.index("2 high") < page.index("1 medium") < page.index("5 low")
    answer = ada("GET", f"/image/{filename}").get_json()
    assert answer["scan"] == {"scanner": "grype <1>", "fail_on": None, "counts": counts}


def test_images(app: Flask, ada: Api) -> None:
    visitor = Visitor(app, "ada")
    assert "There are no images yet" in visitor.get("/images").text
    status = ada.wait(ada.submit())
    filename = status["filename"]
    page = visitor.get(f"/images/{filename}")

    assert filename in visitor.get("/images").text
    assert filename in visitor.get("/images?search=demo+hello").text
    assert filename not in visitor.get("/images?search=nothing").text
    assert status["sha256"] in page.text
    assert f"{ROOT}/images/download/{filename}" in page.text
    assert "Run it there" in visitor.get(f"/images/{filename}?machine=lumi-c").text
    assert (
        visitor.get(f"/images/{filename}/download").data
        == ada("GET", f"/images/download/{filename}").data
    )
    for path in (
        "/images/nothing.sif",
        "/images/nothing.sif/download",
        f"/images/{filename}/documents/passwd",
    ):
        assert visitor.get(path).status_code == 404


def test_machines_are_found_by_words(app: Flask, ada: Api) -> None:
    """All are sent, so that a script can show them; those that are not meant are hidden."""
    visitor = Visitor(app, "ada")

    def rows(search: str) -> dict[str, bool]:
        page = visitor.get(f"/machines?search={search}").text
        found = re.findall(
            r'<tr data-words="[^"]*"( hidden)?>.*?<code[^>]*>([^<]+)</code>', page, re.S
        )
        return {name: not hidden for hidden, name in found}

    assert all(rows("").values()) and rows("")["lumi-g"]
    shown = {name for name, is_shown in rows("lumi+amd").items() if is_shown}
    assert "lumi-g" in shown and len(shown) < len(rows(""))
    listed = ada("GET", "/machine/?search=lumi%20amd").get_json()["machines"]
    assert {one["name"] for one in listed} == shown
    assert not any(rows("nothing+of+that").values())
    assert "&lt;b&gt;" in visitor.get("/machines?search=<b>").text
    assert ada("GET", "/machine/?search=" + "x" * 201).status_code == 400


def test_images_that_docker_uses(app: Flask, ada: Api) -> None:
    """What was not pushed has no command that fetches it; what was is pulled by name, or by what it
    is.
    """
    status = ada.wait(ada.submit(machine={**REQUEST["machine"], "container_engine": "docker"}))
    image_id, visitor = status["image_id"], Visitor(app, "bob")
    page = visitor.get(f"/images/docker/{image_id}")
    assert f"docker run --rm {image_id}" in page.text and "docker pull" not in page.text
    assert image_id in visitor.get("/images").text
    assert visitor.get("/images/docker/nothing:latest").status_code == 404

    pushed = "sha256:" + "1" * 64
    with writing(visitor.engine) as connection:
        connection.execute(
            tables.BUILDS.update()
            .where(tables.BUILDS.c.id == status["id"])
            .values(pushed_digest=pushed)
        )
    page = visitor.get(f"/images/docker/{image_id}")
    assert f"docker pull {image_id}" in page.text
    assert f"docker pull {image_id.rpartition(':')[0]}@{pushed}" in page.text
    assert "1" * 12 in visitor.get("/images?search=hello").text


def test_an_image_may_be_a_sif_and_docker_s(app: Flask, ada: Api) -> None:
    status, visitor = ada.wait(ada.submit()), Visitor(app, "ada")
    with writing(visitor.engine) as connection:
        connection.execute(tables.BUILDS.update().values(pushed_digest="sha256:" + "2" * 64))
    page = visitor.get(f"/images/{status['filename']}")
    assert (
        f"singularity run {status['filename']}" in page.text
        and f"docker pull {status['image_id']}" in page.text
    )
    assert visitor.get("/images").text.count("<tr>") == 2


@pytest.mark.parametrize(
    ("runtime", "singularity", "docker"),
    [
        ("cuda", "exec --nv ", "--gpus all "),
        ("hip", "exec --rocm ", "--device /dev/kfd --device /dev/dri "),
        ("", "exec ", ""),
    ],
)
def test_pages_and_rest_give_the_same_line_for_a_gpu(
    app: Flask, ada: Api, builder: FakeBuilder, runtime: str, singularity: str, docker: str
) -> None:
    builder.labels = {"cic.gpu.runtime": runtime} if runtime else {}
    visitor, filename = Visitor(app, "ada"), ada.wait(ada.submit())["filename"]
    line = f"singularity {singularity}{filename} <program>"
    assert ada("GET", f"/image/{filename}/check?platform=linux/amd64").json["run_command"] == line
    page = html.unescape(visitor.get(f"/images/{filename}").text)
    assert line in page and line.replace("exec", "run").replace("program", "command") in page

    machine = {**REQUEST["machine"], "container_engine": "docker"}
    image_id = ada.wait(ada.submit(machine=machine, force=True))["image_id"]
    page = html.unescape(visitor.get(f"/images/docker/{image_id}").text)
    assert f"docker run --rm {docker}{image_id} <program>" in page


def test_pages_and_rest_give_the_three_answers_with_their_sources(
    app: Flask, ada: Api, builder: FakeBuilder
) -> None:
    mpi = {"cic.mpi.name": "openmpi", "cic.mpi.family": "openmpi", "cic.mpi.version": "4.1.6"}
    builder.labels = {"cic.platform": "linux/amd64", "cic.target": "x86_64", **mpi}
    visitor, filename = Visitor(app, "ada"), ada.wait(ada.submit())["filename"]
    answers = {
        "karolina-cpu": ("runs", "It should run there."),
        "marenostrum5-gpp": ("runs_but", "It should run there, but:"),
        "alps-eiger": ("does_not_run", "It does not run there."),
    }
    for machine, (answer, says) in answers.items():
        report = ada("GET", f"/image/{filename}/check?machine={machine}").json
        page = html.unescape(visitor.get(f"/images/{filename}?machine={machine}").text)
        assert report["answer"] == answer and says in page
        assert all(one["source"][0] in page for one in report["findings"])
    assert [one["rule"] for one in report["findings"]] == [
        "engine-needs-registry",
        "mpi-own-beside-site",
    ]
    with writing(visitor.engine) as connection:
        connection.execute(tables.BUILDS.update().values(pushed_digest="sha256:" + "2" * 64))
    pushed = ada("GET", f"/image/{filename}/check?machine=alps-eiger").json
    assert pushed["answer"] == "runs_but"
    assert "It should run there, but:" in visitor.get(f"/images/{filename}?machine=alps-eiger").text


def test_paging_and_filters(app: Flask, ada: Api, builder: FakeBuilder) -> None:
    visitor = Visitor(app, "ada")
    assert "You have no builds yet" in visitor.get("/builds").text
    ada.wait(ada.submit())
    for query in ("?page=x", "?page=0", "?page=99999999999", "?status=NOTHING", "?status=finished"):
        assert visitor.get(f"/builds{query}").status_code == 200
    assert "No builds here" in visitor.get("/builds?status=FAILED").text


def test_an_administrator_sees_to_users(app: Flask) -> None:
    root = Visitor(app, "root")
    ids = {row.name: row.id for row in accounts.users(root.engine)}
    root.post(f"/admin/users/{ids['ada']}/promote")
    assert Visitor(app, "ada").get("/admin").status_code == 200
    root.post(f"/admin/users/{ids['ada']}/demote")
    root.post(f"/admin/users/{ids['bob']}/remove")
    root.post(f"/admin/users/{ids['root']}/remove")

    assert {row.name: row.is_admin for row in accounts.users(root.engine)} == {
        "ada": False,
        "root": True,
    }
    with reading(root.engine) as connection:
        noted = connection.execute(
            sa.select(audit_trail.AUDIT.c.action, audit_trail.AUDIT.c.subject)
        ).all()
    assert ("user remove", "bob") in [tuple(row) for row in noted]


def test_the_command_line_does_the_same(app: Flask) -> None:
    def user(command: str) -> Any:
        ended = app.test_cli_runner().invoke(args=["users", command, "ada"])
        assert ended.exit_code == 0, ended.output
        return accounts.by_name(app.extensions["cic"].engine, "ada")

    ada = Visitor(app, "ada")
    assert user("promote").is_admin and not user("demote").is_admin
    assert not user("block").is_active
    assert not is_logged_in(ada)
    assert user("confirm").is_active
    assert Visitor(app).log_in("ada").status_code == 302


def test_an_answer_on_its_way_does_not_undo_a_log_out(app: Flask) -> None:
    ada = Visitor(app, "ada")
    assert "Set-Cookie" not in ada.get("/builds/new/choices").headers


def test_every_page_is_looked_at(app: Flask) -> None:
    """No page can be forgotten where browsers look at all of them: each route is one, or says that
    it is none.
    """
    facts = sights.Facts(
        finished="",
        failed="",
        going_on="",
        filename="",
        identity="",
        image_id="",
        mail_link="",
    )
    looked_at = {sight.endpoint for sight in sights.sights(facts)} - {"404"}
    routes = {
        rule.endpoint.removeprefix("web.")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("web.")
    }
    assert looked_at & sights.NOT_PAGES == set()
    assert routes == looked_at | sights.NOT_PAGES


def test_no_page_names_another_host(app: Flask, ada: Api) -> None:
    status, visitor = ada.wait(ada.submit()), Visitor(app, "ada")
    for path in (*PRIVATE_PAGES[1:-1], f"/builds/{status['id']}", f"/images/{status['filename']}"):
        page = visitor.get(path)
        assert page.status_code == 200
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page.text), path


def with_service(settings: Settings, **changes: Any) -> Settings:
    """The settings with some of the service's changed."""
    service = type(settings.service).model_validate(settings.service.model_dump() | changes)
    return settings.model_copy(update={"service": service})
