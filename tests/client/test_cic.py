"""The command `cic`, run as a process against the application, and once against the service itself."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import io
import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cic_client import Client, models
from cic_client.arguments import parser
from cic_client.cli import verb_named
from cic_client.live import download_bar, view, watched
from cic_client.login import in_the_clear
from cic_client.tables import show_build, show_builds
from cic_client.text import json_text, printable
from flask import Flask
from rich.console import Console

from image_builder.errors import BuildFailed, ErrorCode
from image_builder.timeline.spans import BUILT, PACKAGE, Span
from service.db import groups
from tests.client.conftest import Cic, screen_of, token_of
from tests.conftest import PROJECT
from tests.service.conftest import REQUEST, FakeBuilder
from tests.support.site import PASSWORD, USER, make_site, running_service

REFUSED, WRONG_USAGE, UNREACHABLE, BUILD_FAILED = 1, 2, 3, 4
MACHINE = "lumi-c"
NASTY = "a\x1b[2Jb\x9bc\x07d\x7fe\u202ef"


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    """A request as the first documentation writes it, with Python's False."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST).replace("false", "False"))
    return str(path)


# ---- The log-in


def test_a_login_is_kept_for_its_user_alone(cic: Cic, app: Flask, address: str) -> None:
    token = token_of(app, "ada")
    done = cic("login", address, stdin=token + "\n")
    assert done.returncode == 0, done.stderr
    kept = cic.home / ".config" / "cic" / "login.json"
    assert str(kept) in done.stderr
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert token not in done.stdout + done.stderr
    assert cic("builds", "--json").returncode == 0
    kept.chmod(0o644)
    refused = cic("builds")
    assert refused.returncode == WRONG_USAGE and "chmod 600" in refused.stderr
    kept.chmod(0o600)
    done = cic("logout")
    assert done.returncode == 0 and f"{address} has revoked the token" in done.stderr
    assert not kept.exists()
    refused = cic("builds")
    assert refused.returncode == WRONG_USAGE and "cic login" in refused.stderr
    assert cic("builds", CIC_URL=address, CIC_TOKEN=token).returncode == REFUSED


def test_a_logout_that_is_to_keep_the_token_keeps_it(cic: Cic, app: Flask, address: str) -> None:
    token = token_of(app, "ada")
    assert cic("login", address, stdin=token + "\n").returncode == 0
    done = cic("logout", "--keep-token")
    assert done.returncode == 0 and "is good until" in done.stderr
    assert not list(cic.home.rglob("login.json"))
    assert cic("builds", CIC_URL=address, CIC_TOKEN=token).returncode == 0


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"url": "http://127.0.0.1:1", "token": "x"}, "http://127.0.0.1:1 did not revoke it"),
        ({"url": "SERVICE", "token": "x"}, "was not good any more"),
        ({"url": "no address", "token": "x"}, "did not revoke it"),
        ({"nonsense": 1}, "no token to revoke"),
        (None, "no token to revoke"),
    ],
)
def test_a_logout_forgets_the_token_in_any_case(
    cic: Cic, address: str, kept: dict[str, object] | None, said: str
) -> None:
    file = cic.home / ".config" / "cic" / "login.json"
    if kept is not None:
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(kept).replace("SERVICE", address))
        file.chmod(0o600)
    done = cic("logout")
    assert done.returncode == 0 and said in done.stderr, done.stderr
    assert not file.exists()


PLAINTEXT = "keyrings.alt.file.PlaintextKeyring"
"""A keyring that needs no desktop; it keeps what it has below $XDG_DATA_HOME."""


def test_a_keyring_keeps_the_token_where_there_is_one(
    cic: Cic, app: Flask, address: str, tmp_path: Path
) -> None:
    token = token_of(app, "ada")
    ring = {"PYTHON_KEYRING_BACKEND": PLAINTEXT, "XDG_DATA_HOME": str(tmp_path / "data")}
    done = cic("login", address, stdin=token + "\n", **ring)
    assert done.returncode == 0, done.stderr
    kept = cic.home / ".config" / "cic" / "login.json"
    assert "your keyring (file PlaintextKeyring)" in done.stderr and str(kept) in done.stderr
    assert json.loads(kept.read_text()) == {"url": address}
    assert cic("builds", "--json", **ring).returncode == 0
    locked = cic("builds", PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
    assert locked.returncode == WRONG_USAGE and "unlock it" in locked.stderr
    (entries,) = (tmp_path / "data").rglob("*.cfg")
    assert "=" in entries.read_text()
    assert cic("logout", **ring).returncode == 0
    assert "=" not in entries.read_text() and not kept.exists()


@pytest.mark.parametrize(
    "backend",
    [
        "keyring.backends.fail.Keyring",  # nothing of a desktop is there
        "keyring.backends.null.Keyring",  # keeps nothing, and says so to nobody
        "no.such.Keyring",
    ],
)
def test_a_keyring_that_keeps_nothing_is_none(
    cic: Cic, app: Flask, address: str, backend: str
) -> None:
    token = token_of(app, "ada")
    done = cic("login", address, stdin=token + "\n", PYTHON_KEYRING_BACKEND=backend)
    assert done.returncode == 0 and "which you alone can read" in done.stderr, done.stderr
    assert cic("builds", "--json", PYTHON_KEYRING_BACKEND=backend).returncode == 0


def test_no_keyring_is_used_by_who_wants_none(
    cic: Cic, app: Flask, address: str, tmp_path: Path
) -> None:
    ring = {"PYTHON_KEYRING_BACKEND": PLAINTEXT, "XDG_DATA_HOME": str(tmp_path / "data")}
    done = cic("login", "--no-keyring", address, stdin=token_of(app, "ada") + "\n", **ring)
    assert done.returncode == 0 and "which you alone can read" in done.stderr
    assert not (tmp_path / "data").exists()
    assert cic("builds").returncode == 0


@pytest.mark.parametrize(
    ("url", "is_said"),
    [
        ("http://cic.example.org", True),
        ("http://10.0.0.1:80/x", True),
        ("https://cic.example.org", False),
        ("http://localhost:5000", False),
        ("http://127.0.0.2", False),
        ("http://[::1]:80", False),
        ("http://[", False),
    ],
)
def test_a_login_that_others_can_read_is_said(url: str, is_said: bool) -> None:
    assert bool(in_the_clear(url)) is is_said


def test_a_wrong_token_is_not_kept(cic: Cic, address: str) -> None:
    refused = cic("login", address, stdin="canary\n")
    assert refused.returncode == REFUSED and "401" in refused.stderr
    assert "canary" not in refused.stderr
    assert list(cic.home.rglob("*.json")) == []


def test_user_and_password_of_the_environment_log_in(cic: Cic, app: Flask, address: str) -> None:
    login = {"CIC_URL": address, "CIC_USER": "ada"}
    assert cic("builds", **login, CIC_PASSWORD="correct horse battery").returncode == 0
    assert cic("builds", **login, CIC_PASSWORD="another").returncode == REFUSED


def test_a_service_that_is_not_there_has_its_own_status(cic: Cic) -> None:
    done = cic("status", "x", CIC_URL="https://127.0.0.1:9", CIC_TOKEN="t")
    assert done.returncode == UNREACHABLE and "127.0.0.1:9" in done.stderr


# ---- Builds


def test_a_build_ends_with_its_file(ada: Cic, request_file: str) -> None:
    done = ada("build", request_file, "--wait", "--pull", "--to", ".", "--json")
    assert done.returncode == 0, done.stderr
    build = json.loads(done.stdout)
    assert build["status"] == "FINISHED"
    assert (ada.home / build["filename"]).stat().st_size == build["size_bytes"]
    assert "FINISHED" in done.stderr and build["filename"] in done.stderr
    images = ada("images")
    assert build["filename"] in images.stdout
    assert "built" in ada("log", "-f", build["id"]).stdout
    assert "built" in ada("log", build["id"]).stdout
    assert build["sha256"] in ada("status", build["id"]).stdout
    assert "FINISHED" in ada("watch", build["id"]).stdout
    assert build["id"] in ada("builds", "--status", "finished").stdout
    again = ada("pull", build["filename"])
    assert again.returncode == 0 and "is here" in again.stderr


def test_packages_and_a_machine_make_a_request(
    ada: Cic, builder: FakeBuilder, tmp_path: Path
) -> None:
    done = ada("build", "-p", "zlib", "-p", "fftw~mpi", "-m", MACHINE, "--name", "mine")
    assert done.returncode == 0, done.stderr
    status = json.loads(ada("status", done.stdout.strip(), "--json").stdout)
    assert status["request"]["name"] == "mine"
    assert "fftw~mpi" in json.dumps(status["request"])
    step = tmp_path / "step"
    step.mkdir()
    (step / "eflows4hpc.yaml").write_text("apt:\n  - bc\n")
    sent = json.loads(ada("build", "--path", str(step), "-m", MACHINE, "--json").stdout)
    status = json.loads(ada("status", sent["id"], "--json").stdout)
    assert (status["request"]["name"], status["request"]["folder"]) == ("step", sent["folder"])


def test_a_build_that_fails_has_its_own_status(
    ada: Cic, builder: FakeBuilder, request_file: str
) -> None:
    builder.error = BuildFailed(f"no such package {NASTY}", hint="write another")
    done = ada("build", request_file, "--wait")
    assert done.returncode == BUILD_FAILED
    assert "no such package abcdef" in done.stdout and "write another" in done.stdout
    assert ErrorCode.BUILD_STEP_FAILED.value in done.stderr


def test_a_terminal_that_knows_few_letters_gets_the_log_as_well(
    ada: Cic, builder: FakeBuilder, request_file: str
) -> None:
    builder.lines = ["\u6f22 \x1b[2J built"]
    build_id = json.loads(ada("build", request_file, "--wait", "--json").stdout)["id"]
    done = ada("log", build_id, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "?  built" in done.stdout


def test_a_build_is_cancelled(ada: Cic, builder: FakeBuilder, request_file: str) -> None:
    builder.hold.clear()
    build_id = ada("build", request_file).stdout.strip()
    done = ada("cancel", build_id, "--json")
    assert (done.returncode, json.loads(done.stdout)["error_code"]) == (0, "CANCELLED")
    unknown = ada("cancel", "f1f4699b-9048-4ecc-aff3-1c689b855adc")
    assert unknown.returncode == REFUSED and "404" in unknown.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("build",),
        ("build", "-p", "zlib"),
        ("build", "-m", MACHINE),
        ("build", "-p", "zlib", "-m", MACHINE, "--path", "."),
        ("build", "nowhere.json"),
        ("build", "-", "-m", MACHINE),
        ("status", "../x"),
        ("check", "a.sif", "lumi-c", "lumi-g"),
        ("check", "a.sif", "filename=x"),
        ("plan", "-p", "zlib", "-m", MACHINE, "--against", "nowhere.json"),
        ("nothing",),
        (),
    ],
)
def test_wrong_usage_is_said_and_nothing_sent(ada: Cic, arguments: tuple[str, ...]) -> None:
    done = ada(*arguments, CIC_URL="https://127.0.0.1:9")
    assert done.returncode == WRONG_USAGE
    assert done.stderr and "Traceback" not in done.stderr


def test_what_the_service_refuses_names_every_field(ada: Cic) -> None:
    done = ada("plan", "-", stdin=json.dumps(REQUEST | {"colour": "red", "forse": True}))
    assert done.returncode == REFUSED
    assert "colour" in done.stderr and "forse" in done.stderr and "force" in done.stderr


# ---- Images and machines


def test_machines_are_found_by_a_word(ada: Cic) -> None:
    assert MACHINE in ada("machines").stdout
    found = json.loads(ada("machines", "NVIDIA", "--json").stdout)["machines"]  # in no field of it
    assert found and MACHINE not in {one["name"] for one in found}
    assert json.loads(ada("machines", "nvidia", MACHINE, "--json").stdout)["machines"] == []
    found = json.loads(ada("machines", "LUMI", "--json").stdout)["machines"]
    assert MACHINE in {machine["name"] for machine in found}
    assert all("lumi" in json.dumps(machine).lower() for machine in found)


def test_what_ran_when_is_shown(ada: Cic, builder: FakeBuilder, request_file: str) -> None:
    builder.spans = [
        Span(kind=PACKAGE, name="fftw", version="3.3.10", hash="abcdefg", began_s=0.0).ended(
            1.5, BUILT
        )
    ]
    build = json.loads(ada("build", request_file, "--wait", "--json").stdout)
    shown = ada("timeline", build["id"])
    assert shown.returncode == 0 and "wait in the queue" in shown.stdout
    assert "  fftw@3.3.10" in shown.stdout and "built" in shown.stdout
    spans = json.loads(ada("timeline", build["id"], "--json").stdout)["spans"]
    assert [span["name"] for span in spans] == ["wait in the queue", "fftw"]


def test_what_is_installed_is_listed(
    ada: Cic, app: Flask, builder: FakeBuilder, request_file: str
) -> None:
    build = json.loads(ada("build", request_file, "--wait", "--json").stdout)
    nothing = ada("packages", build["filename"])
    assert nothing.returncode == 0 and "Nothing is known" in nothing.stderr
    lock = {
        "roots": [{"hash": "a" * 32, "spec": "zlib"}],
        "concrete_specs": {
            "a" * 32: {"name": "zlib", "version": "1.3.1", "arch": {"target": "zen2"}}
        },
    }
    images = app.extensions["cic"].images
    images.keep_documents(build["identity"], {"spack.lock": json.dumps(lock)})
    assert "1.3.1" in ada("packages", build["filename"], "zlib").stdout
    assert json.loads(ada("packages", build["filename"], "fftw", "--json").stdout)["total"] == 0


def test_a_check_tells_by_its_status_whether_an_image_works(
    ada: Cic, builder: FakeBuilder, request_file: str
) -> None:
    builder.labels = {"cic.platform": "linux/amd64", "cic.target": "x86_64"}
    build = json.loads(ada("build", request_file, "--wait", "--json").stdout)
    works = ada("check", build["filename"], "platform=linux/amd64", "architecture=zen2", "--json")
    assert json.loads(works.stdout)["ok"] and works.returncode == 0
    not_there = ada("check", build["filename"], "platform=linux/arm64", "architecture=neoverse_v2")
    assert not_there.returncode == REFUSED and "does_not_run" in not_there.stdout


# ---- Text for people


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NASTY, "abcdef"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://x\x1b\\y", "y"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\tb\nc\r\nd\re", "a\tb\nc\nde"),
        ("\x1b\x1b[2J[2J", "[2J"),
        ("é漢", "é漢"),
    ],
)
def test_nothing_of_a_server_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert not set(json_text({text: text})) & set(map(chr, [*range(10), *range(11, 32), 127]))


def build_of(**changes: object) -> models.Build:
    fields = {
        "id": "x", "status": "BUILDING", "image_id": "image:latest", "created_at": "2026-01-01T10:00:00.000Z",
        "started_at": "2026-01-01T10:00:10.000Z", "building_at": "2026-01-01T10:01:00.000Z",
    }  # fmt: skip
    return models.Build.model_validate(fields | changes)


def picture(build: models.Build, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, force_terminal=True)
    now = datetime.datetime(2026, 1, 1, 11, 2, 3, tzinfo=datetime.timezone.utc)
    console.print(view(build, now))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_view_has_stages_times_and_packages_side_by_side() -> None:
    progress = {"done": 3, "total": 9, "what": "fftw@3.3.10 build 95 s, lz4@1.9.4 configure"}
    shown = picture(build_of(stage="install", progress=progress))
    for text in ("queued", "0:00:10", "0:00:50", "1:01:03", "3 of 9"):
        assert text in shown
    lines = shown.splitlines()
    assert any("fftw@3.3.10" in line and "lz4" not in line for line in lines)
    ended = picture(build_of(status="FAILED", ended_at="2026-01-01T10:02:00.000Z", message="[b]no"))
    assert "0:01:00" in ended and "1:01:03" not in ended and "[b]no" in ended
    many = {"done": 3, "total": 9, "what": "fftw@3.3.10 build 95 s, 12 more"}
    lines = printable(picture(build_of(progress=many))).splitlines()
    assert "  and 12 more" in [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", [10, 25, 40, 80])
def test_the_live_view_fits_a_narrow_terminal(width: int) -> None:
    """A line that the terminal wraps would be left behind when the view is written over."""
    what = ", ".join(f"package-with-a-long-name-{one}@1.2.3 autoreconf {one} s" for one in range(6))
    progress = {"done": 3, "total": 9, "what": what}
    shown = picture(build_of(image_id="x" * 300, stage="y" * 300, progress=progress), width)
    assert max(map(len, printable(shown).splitlines())) <= width
    assert len(shown.splitlines()) < 20
    assert width < 40 or ("building" in shown and "0:00:05" in shown)


@pytest.mark.parametrize(
    "what", ["", "fftw", "fftw@3 build", "3 more", " s", "1 s", "a b c 99999999999 s", "a\nb, \t"]
)
def test_packages_at_work_are_shown_however_a_service_writes_them(what: str) -> None:
    shown = picture(build_of(progress={"done": 1, "total": 2, "what": what}))
    assert set("".join(what.split())) - {","} <= set(shown)


def test_an_interruption_leaves_the_build_running(
    ada: Cic, client: Client, builder: FakeBuilder, request_file: str
) -> None:
    builder.hold.clear()
    watching = subprocess.Popen(
        [sys.executable, "-m", "cic_client", "build", request_file, "--wait"],
        cwd=ada.home, env=ada.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stderr is not None
    build_id = watching.stderr.readline().split()[1]
    while "BUILDING" not in watching.stderr.readline():
        pass
    watching.send_signal(signal.SIGINT)
    _, notes = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert f"cic watch {build_id}" in notes and f"cic cancel {build_id}" in notes
    assert "Traceback" not in notes
    assert not client.status(build_id).has_ended
    builder.hold.set()
    assert client.wait(build_id).status == models.FINISHED


def test_pictures_and_tables_print_nothing_raw() -> None:
    build = build_of(
        status=NASTY, image_id=NASTY, stage=NASTY, message=NASTY, hint=NASTY, filename=NASTY,
        warnings=[NASTY], progress={"done": 1, "total": 2, "what": NASTY},
    )  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, markup=False, width=200)
    screen = screen_of(console)
    show_build(screen, build)
    show_builds(screen, models.BuildList(builds=[build], page=1, per_page=1, total=2, pages=2))
    screen.note(NASTY)
    shown = out.getvalue() + picture(build)
    assert "abcdef" in shown
    for char in ("\x1b[2J", "\x9b", "\x07", "\x7f", "\u202e"):
        assert char not in shown


def test_a_terminal_shows_a_build_and_a_download_as_they_go_on(
    client: Client, builder: FakeBuilder, tmp_path: Path
) -> None:
    builder.hold.clear()
    build_id = client.submit(REQUEST).id
    console = Console(file=io.StringIO(), width=100, markup=False, force_terminal=True)
    screen = screen_of(console)
    build = watched(client, build_id, screen)
    filename = str(build.filename)
    with download_bar(filename, screen) as progress:
        client.download(filename, tmp_path, progress=progress)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert build.status == "FINISHED"
    assert shown.index("queued") < shown.rindex("FINISHED") < shown.rindex(filename)
    assert f"{build.size_bytes / 1000:.1f}/{build.size_bytes / 1000:.1f} kB" in shown


# ---- The whole of it


def test_a_private_image_is_shared_with_users_and_groups(ada: Cic, app: Flask) -> None:
    engine = app.extensions["cic"].engine
    groups.add(engine, "climate")
    groups.join(engine, "climate", "ada")
    assert ada("groups").stdout == "climate\n"
    built = ada("build", "-p", "zlib", "-m", MACHINE, "--wait", "--json")
    filename = json.loads(built.stdout)["filename"]
    assert ada("share", filename).stdout == "users: none\ngroups: none\n"
    shared = ada("share", filename, "--user", "bob", "--group", "climate")
    assert shared.stdout == "users: bob\ngroups: climate\n", shared.stderr
    wrong = ada("share", filename, "--group", "secret")
    assert wrong.returncode == REFUSED and "no group of yours" in wrong.stderr
    assert ada("share", filename, "--nobody", "--user", "bob").returncode == WRONG_USAGE
    kept = json.loads(ada("share", filename, "--json").stdout)
    assert (kept["shared_with"], kept["shared_with_groups"]) == (["bob"], ["climate"])
    assert ada("share", filename, "--nobody").stdout == "users: none\ngroups: none\n"


def test_every_verb_is_documented_and_there() -> None:
    (verbs,) = (action.choices for action in parser()._actions if action.dest == "==SUPPRESS==")
    text = (PROJECT / "docs" / "client.md").read_text("utf-8")
    assert verbs
    for name, verb in verbs.items():
        assert f"\ncic {name}" in text or f"$(cic {name}" in text, name
        assert callable(verb_named(verb.get_default("verb")))


def test_the_package_needs_no_more_than_it_lists() -> None:
    imported = set()
    for path in (PROJECT / "client" / "cic_client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    listed = (PROJECT / "client" / "pyproject.toml").read_text("utf-8")
    assert imported - set(sys.stdlib_module_names) - {"__future__"} == {
        "cic_client", "argcomplete", "cryptography", "keyring", "pydantic", "requests", "rich",
    }  # fmt: skip
    assert all(
        f'"{name}>=' in listed
        for name in ("argcomplete", "cryptography", "keyring", "pydantic", "requests", "rich")
    )


def test_the_service_itself_is_asked(cic: Cic, tmp_path: Path) -> None:
    with running_service(make_site(tmp_path / "site")) as service:
        login = {"CIC_URL": service.url, "CIC_USER": USER, "CIC_PASSWORD": PASSWORD}
        known = dataclasses.replace(cic, environ=cic.environ | login)
        assert MACHINE in known("machines").stdout
        assert known("images", "--json").returncode == 0
        wrong = known("plan", "-p", "zlib@@", "-m", MACHINE)
        assert wrong.returncode == REFUSED and "zlib@@" in wrong.stderr
