"""Attacks on the service that once went through, each by an ordinary user or a stranger.

The numbers are those of the review; slow clients are in `test_slow_clients`, the power cut is in
`test_power_cut`.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_migrate import upgrade

from config.settings import Settings
from image_builder.errors import NotFound
from image_builder.host import files
from image_builder.plan.resolve import resolve
from image_builder.request.parsing import parse_request
from image_builder.sources.git.mirror import Mirror
from image_builder.sources.workflow_registry import MISSES
from image_builder.store.folder import ImageStore
from service import auth, downloads
from service.addresses import network_of
from service.bottleneck import Bottleneck
from service.db import accounts, builds
from service.db.database import MIGRATIONS, db, init_database, reading
from service.errors import Busy
from service.submission import new_build
from service.web import captchas
from tests.service.conftest import PASSWORD, REQUEST, ROOT, Api, FakeBuilder, running_app
from tests.service.test_web import Visitor, csrf_token

HTML = {"Accept": "text/html"}


class TestSessions:
    """L1: a copied cookie outlives no log-out."""

    def test_a_copied_cookie_ends_with_the_log_out(self, app: Flask) -> None:
        ada, thief = Visitor(app, "ada"), Visitor(app)
        stolen = ada.client.get_cookie("cic_session", path=ROOT)
        assert stolen is not None
        thief.client.set_cookie("cic_session", stolen.value, path=ROOT)
        assert thief.get("/account").status_code == 200
        assert ada.post("/logout", form="/account").status_code == 302
        assert thief.get("/account").status_code == 302

    def test_other_sessions_of_the_user_stay(self, app: Flask) -> None:
        here, there = Visitor(app, "ada"), Visitor(app, "ada")
        here.post("/logout", form="/account")
        assert (here.get("/account").status_code, there.get("/account").status_code) == (302, 200)

    def test_a_log_in_ends_the_session_before_it(self, app: Flask) -> None:
        visitor = Visitor(app, "ada")
        cookie = visitor.client.get_cookie("cic_session", path=ROOT)
        assert cookie is not None
        changed = visitor.post(
            "/account/password",
            {"present": PASSWORD, "password": "another horse", "repeated": "another horse"},
            form="/account",
        )
        assert changed.status_code == 302
        before = Visitor(app)
        before.client.set_cookie("cic_session", cookie.value, path=ROOT)
        assert before.get("/account").status_code == 302
        assert visitor.get("/account").status_code == 200

    def test_the_database_holds_no_cookie(self, app: Flask) -> None:
        Visitor(app, "ada")
        with reading(app.extensions["cic"].engine) as connection:
            rows = connection.execute(sa.text("SELECT digest FROM sessions")).all()
        assert len(rows) == 1 and len(rows[0].digest) == 64


@pytest.mark.parametrize("revision", ["0001", "0002", "0004"])
def test_create_all_upgrades_an_older_database(revision: str, tmp_path: Path) -> None:
    """L2."""
    app = Flask("test")
    init_database(app, f"sqlite:///{tmp_path / 'db.sqlite'}")
    with app.app_context():
        upgrade(directory=str(MIGRATIONS), revision=revision)
        db.create_all()
        db.create_all()
    with sqlite3.connect(tmp_path / "db.sqlite") as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(builds)")}
        assert "log_bytes" in columns
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    connection.close()


class TestLogInsAreCounted:
    """L3: by /64, and by user."""

    @pytest.mark.parametrize(
        ("address", "network"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("somewhere", "somewhere"),
            ("x" * 500, "x" * 64),
        ],
    )
    def test_what_an_address_is_counted_by(self, address: str, network: str) -> None:
        assert network_of(address) == network

    def test_a_customer_with_many_addresses_is_one(self, app: Flask) -> None:
        found = [
            attempt(app, "ada", "wrong", f"2001:db8::{number:x}")
            for number in range(auth.MAX_FAILURES + 3)
        ]
        assert found == [401] * auth.MAX_FAILURES + [429] * 3
        assert attempt(app, "ada", PASSWORD, "2001:db8:0:1::1") == 200

    def test_a_user_is_not_guessed_from_everywhere(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth, "MAX_FAILURES_OF_USER", 6)
        for number in range(6):
            assert attempt(app, "ada", "wrong", f"198.51.100.{number}") == 401
        assert [attempt(app, "ada", "wrong", "203.0.113.9") for _ in range(3)] == [401, 429, 429]
        assert attempt(app, "ada", PASSWORD, "203.0.113.10") == 200  # the user, from elsewhere
        assert attempt(app, "bob", "wrong", "203.0.113.9") == 401  # others are not touched


def attempt(app: Flask, name: str, password: str, address: str) -> int:
    answer = app.test_client().get(
        f"{ROOT}/build/", auth=(name, password), environ_base={"REMOTE_ADDR": address}
    )
    return answer.status_code


def test_an_unresolved_request_is_not_joined_across_catalogues(settings: Settings) -> None:
    """L4: the base image is not known, so neither is the identity."""
    request = parse_request(json.dumps(REQUEST).encode())
    inputs = resolve(request, settings.library)
    unknown = inputs.model_copy(update={"identity": None})
    catalogue = unknown.catalogue.__class__(packages_tree="a" * 40, config_tree="b" * 40)
    others = [
        unknown.model_copy(update={"catalogue": catalogue}),
        unknown.model_copy(
            update={"catalogue": catalogue.__class__(packages_tree="a" * 40, config_tree="c" * 40)}
        ),
        unknown.model_copy(update={"recipe_version": "other"}),
    ]
    keys = {new_build(request, each, 1).join_key for each in (unknown, *others)}
    assert len(keys) == 4
    assert new_build(request, unknown, 2).join_key in keys


class TestUnknownNames:
    """L5: a name that does not exist costs no fetch of its own, and no more than some threads."""

    def test_unknown_names_share_a_fetch(
        self, ada: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetches: list[str] = []
        fetch = Mirror._fetch

        def counted(mirror: Mirror, folder: Path, cancel: Any) -> Any:
            fetches.append(mirror.repository.name)
            return fetch(mirror, folder, cancel)

        monkeypatch.setattr(Mirror, "_fetch", counted)
        repositories = settings.library.repositories.model_copy(update={"mirror_max_age_s": 30.0})
        library = settings.library.model_copy(update={"repositories": repositories})
        for change in ({"workflow": "w{}"}, {"step_id": "s{}"}, {"version": "v{}"}):
            for number in range(8):
                named = {key: text.format(number) for key, text in change.items()}
                request = parse_request(json.dumps(REQUEST | named).encode())
                with pytest.raises(NotFound):
                    resolve(request, library)
        assert len(fetches) <= MISSES + 1

    def test_one_user_does_not_take_every_thread(
        self, app: Flask, ada: Api, bob: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submission = app.extensions["cic"].submission
        monkeypatch.setattr(submission.resolving, "_of_one", 2)  # as in a process with few threads
        answers = threading.Event()

        def slow(*arguments: Any, **more: Any) -> Any:
            answers.wait(30)
            return resolve(*arguments, **more)

        monkeypatch.setattr("service.submission.resolve.resolve", slow)
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(ada("POST", "/build/", json=REQUEST).status_code)
            )
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        while len(statuses) < 3:
            time.sleep(0.02)
        assert statuses == [429] * 3
        his = threading.Thread(
            target=lambda: statuses.append(bob("POST", "/build/", json=REQUEST).status_code)
        )
        his.start()
        answers.set()
        for thread in (*threads, his):
            thread.join()
        assert sorted(statuses) == [200] * 3 + [429] * 3


def test_a_bottleneck_has_an_end() -> None:
    """Nothing that waits may hold every thread."""
    narrow = Bottleneck(1, waiting=1, message="Many.")
    inside, go_on = threading.Event(), threading.Event()

    def enter() -> None:
        with narrow.passed():
            inside.set()
            go_on.wait(30)

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    while narrow._here.total() < 2:
        time.sleep(0.01)
    with pytest.raises(Busy), narrow.passed():
        raise AssertionError
    go_on.set()
    for thread in threads:
        thread.join()
    with narrow.passed():
        assert narrow._here.total() == 1


class TestDownloadLinks:
    """L6: asking for links fills no disk."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        service = settings.service.model_copy(update={"download_links": "images/files"})
        return settings.model_copy(update={"service": service})

    def test_few_links_are_handed_out(self, app: Flask, ada: Api, bob: Api) -> None:
        made = ada.wait(ada.submit())
        name, sha256 = made["filename"], made["sha256"]
        links = {
            user(method, f"/images/download/{called}").headers["Location"]
            for user in (ada, bob, ada, bob)
            for method in ("GET", "HEAD")
            for called in (name, f"{name}?sha256={sha256}", f"any.sif?sha256={sha256}")
        }
        assert len(links) == downloads.LINKS
        folder = app.extensions["cic"].settings.library.build.tmp_folder / "images"
        assert len(list(folder.glob("*/*"))) == downloads.LINKS
        token = links.pop().split("/")[-2]
        assert downloads._LINK.fullmatch(token)

    def test_another_service_cannot_guess_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.sif").write_bytes(b"x")
        ours, theirs = (
            downloads.make_link(tmp_path / "a.sif", "a.sif", tmp_path / folder, secret)
            for folder, secret in (("ours", "one secret"), ("theirs", "another"))
        )
        assert ours != theirs


class TestPublicNames:
    """L7: the sweep of public names meets those who offer."""

    def test_a_name_on_its_way_stays(self, tmp_path: Path) -> None:
        store, public = ImageStore(tmp_path / "store"), tmp_path / "images"
        public.mkdir()
        (public / ".0123456789abcdef.new").write_bytes(b"x")
        downloads.offer_all_publicly(store, public, is_wanted=True)
        assert [path.name for path in public.iterdir()] == [".0123456789abcdef.new"]

    def test_what_is_offered_during_a_sweep_stays(self, tmp_path: Path) -> None:
        sif, public = tmp_path / "a.sif", tmp_path / "images"
        sif.write_bytes(b"x")

        class Offering(ImageStore):
            def names(self) -> dict[str, Any]:
                names = super().names()
                files.link_file(sif, public / "new.sif")
                return names

        files.link_file(sif, public / "old.sif")
        downloads.offer_all_publicly(Offering(tmp_path / "store"), public, is_wanted=True)
        assert [path.name for path in public.iterdir()] == ["new.sif"]

    def test_sweeps_and_offers_do_not_fail_together(self, tmp_path: Path) -> None:
        sif, public = tmp_path / "a.sif", tmp_path / "images"
        sif.write_bytes(b"x")
        store = ImageStore(tmp_path / "store")
        ends = threading.Event()
        errors: list[Exception] = []

        def sweep() -> None:
            while not ends.is_set():
                try:
                    downloads.offer_all_publicly(store, public, is_wanted=True)
                except Exception as error:
                    errors.append(error)

        sweeping = [threading.Thread(target=sweep) for _ in range(2)]
        for thread in sweeping:
            thread.start()
        for number in range(300):
            files.link_file(sif, public / f"{number % 7}.sif")
        ends.set()
        for thread in sweeping:
            thread.join()
        assert errors == []


class TestCaptchas:
    """H2 b: a sound is made once, and who waits for one holds no thread for long."""

    def test_a_sound_is_made_once(self, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
        visitor, made = Visitor(app), []
        generate = captchas.AudioCaptcha.generate

        def counted(self: Any, answer: str) -> Any:
            made.append(answer)
            return generate(self, answer)

        monkeypatch.setattr(captchas.AudioCaptcha, "generate", counted)
        captcha_id = captchas.ask(visitor.engine, "here")
        heard = [visitor.get(f"/captchas/{captcha_id}.wav") for _ in range(captchas.MAX_SHOWN)]
        assert {answer.status_code for answer in heard} == {200}
        assert len({answer.data for answer in heard}) == 1
        assert len(made) == 1

    def test_who_would_wait_comes_back(self, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow(self: Any, answer: str) -> bytes:
            begun.set()
            go_on.wait(30)
            return b"RIFF"

        monkeypatch.setattr(captchas.AudioCaptcha, "generate", slow)
        visitor = Visitor(app)
        ids = [captchas.ask(visitor.engine, "here") for _ in range(8)]
        statuses: list[int] = []

        def listen(captcha_id: str) -> None:
            statuses.append(Visitor(app).get(f"/captchas/{captcha_id}.wav").status_code)

        threads = [threading.Thread(target=listen, args=(each,)) for each in ids]
        for thread in threads:
            thread.start()
        begun.wait(30)
        while len(statuses) < 6:
            time.sleep(0.02)
        assert set(statuses) == {429}
        go_on.set()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] * 2 + [429] * 6


class TestOtherSites:
    """M10: a browser that remembers a Basic log-in is no tool of other sites."""

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": ""},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://localhost.evil.example"},
            {"Origin": "http://evil.example/localhost"},
            {"Origin": "http://localhost:81"},
        ],
    )
    @pytest.mark.parametrize("kind", ["text/plain", "application/json"])
    def test_a_change_is_refused(self, ada: Api, headers: dict[str, str], kind: str) -> None:
        more = headers | {"Content-Type": kind}
        answer = ada("POST", "/build/", data=b"{}", headers=more)
        assert (answer.status_code, answer.get_json()["code"]) == (403, "FORBIDDEN")
        assert ada("GET", "/build/").get_json()["total"] == 0

    def test_every_changing_call_is_held_to_it(self, app: Flask, ada: Api) -> None:
        evil = {"Origin": "https://evil.example"}
        for rule in app.url_map.iter_rules():
            for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}:
                if rule.endpoint.startswith("api."):
                    path = rule.rule.replace("<build_id>", "0" * 36).replace("<filename>", "a.sif")
                    assert ada(method, path, headers=evil).status_code == 403, rule

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_a_browser_sends_json(self, ada: Api, kind: str) -> None:
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Content-Type": kind}
        answer = ada("POST", "/build/", json=None, data=b'{"a": 1}', headers=own)
        assert (answer.status_code, answer.get_json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "application/x-www-form-urlencoded"},  # curl --data-binary
            {"Origin": "http://localhost", "Content-Type": "application/json"},
            {"Sec-Fetch-Site": "none", "Content-Type": "application/json; charset=utf-8"},
            {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"},
        ],
    )
    def test_programs_and_own_pages_go_on(self, ada: Api, headers: dict[str, str]) -> None:
        body = json.dumps(REQUEST).encode()
        assert ada("POST", "/build/", data=body, headers=headers).status_code == 200

    def test_reading_is_not_held_to_it(self, ada: Api) -> None:
        headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        answer = ada("GET", "/build/", headers=headers)
        assert answer.status_code == 200
        assert "Access-Control-Allow-Origin" not in answer.headers  # the page cannot read it


class TestQuota:
    """M9: what is stored counts, however it is asked for."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        service = settings.service.model_copy(update={"max_stored_bytes_per_user": 8000})
        return settings.model_copy(update={"service": service})

    def test_deleting_undoes_nothing(self, app: Flask, ada: Api) -> None:
        for step in ("hello", "other"):  # 7107 bytes each
            made = ada.wait(ada.submit(step_id=step))
            assert ada("DELETE", f"/build/{made['id']}").status_code == 204
        refused = ada("POST", "/build/", json=REQUEST)
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")
        assert app.extensions["cic"].images.remove(made["sha256"])
        assert ada("POST", "/build/", json=REQUEST).status_code == 200

    def test_images_for_docker_count(self, app: Flask, ada: Api, bob: Api) -> None:
        machine = REQUEST["machine"] | {"container_engine": "docker"}
        for step in ("hello", "other"):  # 7000 bytes each
            made = ada.wait(ada.submit(step_id=step, machine=machine))
            assert made["status"] == "FINISHED", made
        refused = ada("POST", "/build/", json=REQUEST)
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")
        assert "14000 bytes" in refused.get_json()["detail"]
        assert ada("DELETE", f"/build/{made['id']}").status_code == 204
        assert ada("POST", "/build/", json=REQUEST).status_code == 429
        assert bob("POST", "/build/", json=REQUEST).status_code == 200
        assert app.extensions["cic"].images.forget(made["identity"])
        assert ada("POST", "/build/", json=REQUEST).status_code == 200

    def test_what_somebody_else_keeps_is_theirs(self, ada: Api, bob: Api) -> None:
        for step in ("hello", "other"):
            bob.wait(bob.submit(step_id=step))
            made = ada.wait(ada.submit(step_id=step))
            assert ada("DELETE", f"/build/{made['id']}").status_code == 204
        assert ada("POST", "/build/", json=REQUEST).status_code == 200
        assert bob("POST", "/build/", json=REQUEST).status_code == 429

    def test_many_at_once_do_not_pass(
        self, settings: Settings, site: Any, builder: FakeBuilder
    ) -> None:
        one = settings.library.build.model_copy(update={"max_concurrent_builds": 1})
        settings = settings.model_copy(
            update={"library": settings.library.model_copy(update={"build": one})}
        )
        with running_app(settings, builder) as app:
            ada = Api(app)
            builder.hold.clear()
            ids = [
                ada.submit(step_id=step, machine=REQUEST["machine"] | {"architecture": target})
                for step, target in itertools.product(("hello", "other"), ("x86_64", "haswell"))
            ]
            builder.hold.set()
            ends = [ada.wait(build_id) for build_id in ids]
        assert [end["status"] for end in ends] == ["FINISHED"] * 2 + ["FAILED"] * 2
        assert {end["error_code"] for end in ends[2:]} == {"QUOTA_EXCEEDED"}

    def test_it_is_counted_where_the_build_is_written_down(self, app: Flask, ada: Api) -> None:
        """What ended between the check and the insert counts."""
        engine = app.extensions["cic"].engine
        user = accounts.by_name(engine, "ada")
        assert user is not None
        for step in ("hello", "other"):
            ada.wait(ada.submit(step_id=step))
        settings = app.extensions["cic"].settings
        request = parse_request(json.dumps(REQUEST | {"force": True}).encode())
        new = new_build(request, resolve(request, settings.library), user.id)
        with pytest.raises(builds.LimitReached):
            builds.create_or_join(engine, new, builds.Limits(queued_builds=100, stored_bytes=8000))


def test_one_user_leaves_a_slot_for_others(settings: Settings, builder: FakeBuilder) -> None:
    """M3: with builds that never end, too."""
    service = settings.service.model_copy(update={"max_active_builds_per_user": None})
    build = settings.library.build.model_copy(update={"max_concurrent_builds": 3})
    settings = settings.model_copy(
        update={
            "service": service,
            "library": settings.library.model_copy(update={"build": build}),
        }
    )
    builder.hold.clear()
    with running_app(settings, builder) as app:
        ada, bob = Api(app), Api(app, "bob")
        machine = REQUEST["machine"]
        hers = [
            ada.submit(step_id=step, machine=machine | {"architecture": target})
            for step, target in itertools.product(("hello", "other"), ("x86_64", "haswell"))
        ]
        for build_id in hers[:2]:
            ada.wait(build_id, "BUILDING")
        his = bob.submit(machine=machine | {"architecture": "zen2"})
        bob.wait(his, "BUILDING")
        assert [ada.status(build_id)["status"] for build_id in hers[2:]] == ["PENDING"] * 2
        builder.hold.set()
        for build_id in hers:
            assert ada.wait(build_id)["status"] == "FINISHED"


@pytest.mark.parametrize(
    "target",
    [
        "{root}/../../evil",
        "{root}/..",
        "{root}/./../evil",
        "{root}/%2e%2e/evil",
        "{root}/.%2E/evil",
        "{root}/%252e%252e/evil",
        "{root}/builds/..%2f..%2fevil",
        "{root}/..%5cevil",
        "{root}/..\\evil",
        "//evil.example{root}/",
        "https://evil.example{root}/",
        "/other/page",
    ],
)
def test_after_the_log_in_a_page_of_this_service_follows(app: Flask, target: str) -> None:
    """L11."""
    visitor = Visitor(app)
    page = visitor.get("/login")
    answer = visitor.client.post(
        f"{ROOT}/login",
        query_string={"next": target.format(root=ROOT)},
        data={"csrf_token": csrf_token(page), "name": "ada", "password": PASSWORD},
        headers=HTML,
    )
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{ROOT}/")


@pytest.mark.parametrize("target", ["/builds?page=2", "/builds/new?version=v1..2", "/docs#a"])
def test_after_the_log_in_the_page_that_was_asked_for_follows(app: Flask, target: str) -> None:
    visitor = Visitor(app)
    page = visitor.get("/login")
    answer = visitor.client.post(
        f"{ROOT}/login",
        query_string={"next": ROOT + target},
        data={"csrf_token": csrf_token(page), "name": "ada", "password": PASSWORD},
        headers=HTML,
    )
    assert answer.headers["Location"] == ROOT + target


def test_a_part_that_is_not_there_is_a_problem_document(ada: Api) -> None:
    made = ada.wait(ada.submit())
    answer = ada(
        "GET", f"/images/download/{made['filename']}", headers={"Range": "bytes=99999999-"}
    )
    assert (answer.status_code, answer.mimetype) == (416, "application/problem+json")
    assert answer.get_json()["code"] == "RANGE_NOT_SATISFIABLE"
    assert answer.headers["Content-Range"] == f"bytes */{made['size_bytes']}"
