"""The real `cic_cli`, run as a process, against a stand-in for the service.

`FakeService` is a fake: a small HTTP server that plays the part the contract gives the service,
records what it was asked, and misbehaves where a test wants it to (cut answers, replaced images, a
restart in the middle). What it cannot show is that the service itself answers like this:
tests/system runs the same verbs against the real one.

`sleep` is a fake too, which notes the pause asked for and returns at once. No test measures time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.site import SEED_REQUEST

CLI = Path(__file__).resolve().parents[2] / "cic_cli"
USER, PASSWORD = "ada", "correct-horse-battery"
ROOT = "/image_creation"
BUILD_ID = "f1f4699b-9048-4ecc-aff3-1c689b855adc"


# ---- The stand-in
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What to send; `cut` closes the connection after that many bytes of the body, `hold` first
    waits for an event.
    """

    code: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: threading.Event | None = None


@dataclass(frozen=True)
class Asked:
    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


def json_answer(value: object, code: int = 200) -> Answer:
    return Answer(code, json.dumps(value).encode() + b"\n", {"Content-Type": "application/json"})


def problem(code: int, title: str, **members: object) -> Answer:
    body = json.dumps({"type": "about:blank", "title": title, "status": code, **members})
    return Answer(code, body.encode(), {"Content-Type": "application/problem+json"})


def status(state: str, **members: object) -> Answer:
    return json_answer(
        {"filename": None, "image_id": None, "message": None, "status": state, **members}
    )


class FakeService:
    """Answers as the contract says. `queued` answers of a path go first, the last of them for ever
    after.
    """

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.login: tuple[str, str] | None = (USER, PASSWORD)
        self.asked: list[Asked] = []
        self.arrived = threading.Semaphore(0)
        self.queued: dict[str, list[Answer]] = {}
        self.images: dict[str, bytes] = {}
        self.claimed_sha256: str | None = None
        self.cuts: list[int] = []
        self.ranges = True
        self.links: str | None = None
        self.after_record: Callable[[], None] | None = None

        class Handler(BaseHTTPRequestHandler):
            def handle_any(handler) -> None:
                with contextlib.suppress(ConnectionError):  # clients are interrupted on purpose
                    self._handle(handler)

            do_GET = do_POST = do_HEAD = handle_any

            def log_message(handler, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.server.daemon_threads = True
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://{address}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def at(self, path: str, *answers: Answer) -> None:
        self.queued[ROOT + path] = list(answers)

    def targets(self) -> list[str]:
        return [asked.target for asked in self.asked]

    def gets(self, path: str) -> list[Asked]:
        return [
            asked for asked in self.asked if asked.method == "GET" and asked.path == ROOT + path
        ]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        asked = Asked(handler.command, handler.path, handler.headers, body)
        self.asked.append(asked)
        answer = self._answer(asked)
        self.arrived.release()
        if answer.hold:
            answer.hold.wait()
        handler.send_response(answer.code)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if asked.method != "HEAD":
            handler.wfile.write(answer.body[: answer.cut])
        handler.close_connection = True

    def _answer(self, asked: Asked) -> Answer:
        if self.login and asked.headers.get("Authorization") != basic(*self.login):
            return problem(401, "Unauthorized", detail="This needs a login.")
        if queue := self.queued.get(asked.path):
            return queue.pop(0) if len(queue) > 1 else queue[0]
        name = unquote(asked.path.rpartition("/")[2])
        if asked.path.startswith(f"{ROOT}/image/") and name in self.images:
            return self._record(name)
        if asked.path.startswith((f"{ROOT}/images/download/", "/link/")) and name in self.images:
            return self._download(name, asked)
        return problem(404, "Not Found", detail=f"There is no {asked.path} here.")

    def _record(self, name: str) -> Answer:
        content = self.images[name]
        record = {"sha256": self.claimed_sha256 or sha256(content), "size_bytes": len(content)}
        if self.after_record:
            self.after_record()
        return json_answer({"filename": name, "build": {"sha256": "0" * 64}, **record})

    def _download(self, name: str, asked: Asked) -> Answer:
        if self.links:
            return Answer(
                302,
                b"<html>Found",
                {"Location": f"{self.links}/link/{asked.path.rpartition('/')[2]}"},
            )
        content = self.images[name]
        linked = asked.path.startswith("/link/")
        etag = '"inode-17"' if linked else f'"{sha256(content)}"'
        headers = {"ETag": etag, "Content-Disposition": "attachment"}
        cut = self.cuts.pop(0) if self.cuts and asked.method == "GET" else None
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("Range", ""))
        if not wanted or not self.ranges or asked.headers.get("If-Range", etag) != etag:
            return Answer(200, content, headers, cut)
        start = int(wanted[1])
        if start >= len(content):
            return problem(416, "Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], headers, cut)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    yield fake
    fake.close()


@pytest.fixture
def service_url(service: FakeService) -> str:
    return service.url


# ---- Running the client
# -------------------------------------------------------------------------------------------


class Client:
    """Starts `cic_cli` in an empty folder, with a `sleep` that does not."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.folder = folder / "here"
        self.temporary = folder / "tmp"
        self.home = folder / "home"
        tools = folder / "tools"
        for each in (self.folder, self.temporary, self.home, tools):
            each.mkdir()
        self.pauses_file = folder / "pauses"
        self.pauses_file.touch()
        (tools / "sleep").write_text(f'#!/bin/sh\necho "$1" >>"{self.pauses_file}"\n')
        (tools / "sleep").chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "LC_ALL": "C.UTF-8",
            "no_proxy": "*",
        }

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**self.environment, **options.pop("environment", {})}
        return subprocess.Popen(
            [CLI, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        typed = options.pop("input", None)
        process = self.start(*arguments, stdin=subprocess.PIPE, **options)
        out, err = process.communicate(typed)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """The usual login, then a verb and its arguments."""
        return self.run(USER, PASSWORD, self.url, *arguments, **options)

    def pauses(self) -> list[int]:
        return [int(line) for line in self.pauses_file.read_text().split()]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def cic(tmp_path: Path, service_url: str) -> Iterator[Client]:
    client = Client(tmp_path, service_url)
    yield client
    assert not list(client.temporary.iterdir()), "cic_cli left something in the temporary folder"


def shown(result: subprocess.CompletedProcess[bytes]) -> Any:
    """The JSON after `Response:`."""
    first, _, rest = result.stdout.partition(b"\n")
    assert first == b"Response:"
    return json.loads(rest)


# ---- Build, status and the other single calls
# ---------------------------------------------------------------------


def test_build_sends_the_file_as_it_stands(service: FakeService, cic: Client) -> None:
    service.at("/build/", json_answer({"id": BUILD_ID}))
    (cic.folder / "test_request.json").write_bytes(SEED_REQUEST.encode())

    result = cic("build", "test_request.json")

    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b'Response:\n{"id": "%s"}\n' % BUILD_ID.encode()
    (asked,) = service.asked
    assert (asked.method, asked.target) == ("POST", f"{ROOT}/build/")
    assert asked.body == SEED_REQUEST.encode()
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.headers["Authorization"] == basic(USER, PASSWORD)


def test_build_reads_standard_input(service: FakeService, cic: Client) -> None:
    service.at("/build/", json_answer({"id": BUILD_ID}))
    assert cic("build", "-", input=SEED_REQUEST.encode()).returncode == 0
    assert service.asked[0].body == SEED_REQUEST.encode()


def test_status_prints_what_the_server_sent(service: FakeService, cic: Client) -> None:
    sent = '{\n  "status" : "FAILED",\n  "message": "caf\\u00e9 – \\"no\\""\n}'.encode()
    service.at(f"/build/{BUILD_ID}", Answer(200, sent))
    result = cic("status", BUILD_ID)
    assert (result.returncode, result.stdout) == (0, b"Response:\n" + sent + b"\n")


def too_many(pause: str) -> Answer:
    """What the service answers beyond its limit on calls."""
    refused = problem(429, "Too Many Requests", detail="Too often.")
    refused.headers.update({"RateLimit-Remaining": "0", "Retry-After": pause})
    return refused


def test_too_many_calls_are_waited_for_as_long_as_the_service_says(
    service: FakeService, cic: Client
) -> None:
    service.at("/build/", too_many("7"), too_many("60"), json_answer({"id": BUILD_ID}))
    result = cic("build", "-", input=SEED_REQUEST.encode())
    assert (result.returncode, cic.pauses()) == (0, [7, 60])
    assert b"going on in 7 s" in result.stderr
    assert [asked.body for asked in service.asked] == [SEED_REQUEST.encode()] * 3


@pytest.mark.parametrize("pause", ["61", "0", "x", "-1", "9999999999", "$(touch x)"])
def test_no_other_pause_is_made(service: FakeService, cic: Client, pause: str) -> None:
    service.at("/build/", too_many(pause))
    result = cic("list")
    assert (result.returncode, cic.pauses()) == (1, [])
    assert b"HTTP 429" in result.stderr


def test_a_service_that_never_lets_go_on_is_given_up(service: FakeService, cic: Client) -> None:
    service.at("/build/", too_many("5"))
    assert cic("list").returncode == 1
    assert cic.pauses() == [5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "method", "target"),
    [
        (["plan", "request.json"], "POST", "/build/plan"),
        (["cancel", BUILD_ID], "POST", f"/build/{BUILD_ID}/cancel"),
        (["list"], "GET", "/build/"),
        (["list", "FAILED"], "GET", "/build/?status=FAILED"),
        (["images"], "GET", "/image/"),
        (["machines"], "GET", "/machine/"),
    ],
)
def test_other_calls(
    service: FakeService, cic: Client, arguments: list[str], method: str, target: str
) -> None:
    service.at(urlsplit(target).path, json_answer({"some": ["thing"]}))
    (cic.folder / "request.json").write_bytes(SEED_REQUEST.encode())
    result = cic(*arguments)
    assert (result.returncode, result.stderr, shown(result)) == (0, b"", {"some": ["thing"]})
    assert [(asked.method, asked.target) for asked in service.asked] == [(method, ROOT + target)]


CHECK = ["check", "a b.sif", "mn5", "gpu=cuda@12&x", "driver=5 3"]


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("by", ["arguments", "environment"])
def test_check_asks_about_a_machine_and_facts(
    service: FakeService, cic: Client, by: str, ok: bool, code: int
) -> None:
    service.at("/image/a%20b.sif/check", json_answer({"ok": ok, "problems": [{"ok": not ok}]}))
    environment = {"CIC_USER": USER, "CIC_PASSWORD": PASSWORD, "CIC_URL": service.url}
    result = cic(*CHECK) if by == "arguments" else cic.run(*CHECK, environment=environment)
    assert (result.returncode, result.stderr) == (code, b"")
    assert shown(result)["ok"] is ok
    assert urlsplit(service.targets()[0]).query == "machine=mn5&gpu=cuda%4012%26x&driver=5%203"


RECOGNISED = {
    "machine": {"platform": "linux/amd64"},
    "facts": {"platform": "linux/amd64", "mpi": "openmpi@4.1", "pmi": "pmi2,pmix", "driver": ""},
    "nearest": [{"name": "mpi", "facts": {"gpu": "no"}}],
}


@pytest.mark.parametrize("verb", ["check", "run-script"])
def test_a_machine_may_be_a_file_of_facts(service: FakeService, cic: Client, verb: str) -> None:
    (cic.folder / "here.json").write_text('{"facts": 1}')
    service.at("/machine/recognise", json_answer(RECOGNISED))
    service.at("/image/a.sif/check", json_answer({"ok": True}))
    service.at("/image/a.sif/script", Answer(200, b"#!/bin/bash\n"))
    result = cic(verb, "a.sif", "--machine", "here.json", "engine=apptainer")
    assert (result.returncode, result.stderr) == (0, b"")
    assert service.asked[0].body == b'{"facts": 1}'
    query = urlsplit(service.targets()[1]).query
    facts = "platform=linux%2Famd64&mpi=openmpi%404.1&pmi=pmi2%2Cpmix&engine=apptainer"
    assert query == facts


def test_recognise_sends_the_file(service: FakeService, cic: Client) -> None:
    (cic.folder / "here.json").write_text('{"facts": 1}')
    service.at("/machine/recognise", json_answer(RECOGNISED))
    result = cic("recognise", "here.json")
    assert (result.returncode, shown(result)) == (0, RECOGNISED)
    assert service.asked[0].body == b'{"facts": 1}'


def test_here_asks_no_service_and_needs_no_login(service: FakeService, cic: Client) -> None:
    result = cic.run("here")
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["facts"] == 1 and service.asked == []


def test_run_script_prints_the_text_alone(service: FakeService, cic: Client) -> None:
    text = b'#!/bin/bash\nsrun singularity exec a.sif "$@"\n'
    service.at("/image/a.sif/script", Answer(200, text, {"Content-Type": "text/plain"}))
    result = cic("run-script", "a.sif", "mn5", "kind=slurm", "program=say 'a b'")
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", text)
    query = urlsplit(service.targets()[0]).query
    assert query == "machine=mn5&kind=slurm&program=say%20%27a%20b%27"


def test_run_script_says_what_is_wrong(service: FakeService, cic: Client) -> None:
    error = {"field": "kind", "problem": "unknown kind 'pbs'", "hint": "write one of slurm, edf"}
    problem = {"title": "Bad Request", "status": 400, "detail": "no", "errors": [error]}
    service.at("/image/a.sif/script", json_answer(problem, 400))
    result = cic("run-script", "a.sif", "mn5", "kind=pbs")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"kind: unknown kind 'pbs' (write one of slurm, edf)" in result.stderr


def test_a_user_may_be_called_like_a_verb(service: FakeService, cic: Client) -> None:
    service.login = ("check", PASSWORD)
    service.at("/image/", json_answer([]))
    environment = {"CIC_USER": USER, "CIC_PASSWORD": PASSWORD, "CIC_URL": service.url}
    assert (
        cic.run("check", PASSWORD, service.url, "images", environment=environment).returncode == 0
    )


@pytest.mark.parametrize(
    ("url_path", "root", "expected"),
    [
        ("", None, "/image_creation/image/"),
        ("/", None, "/image_creation/image/"),
        ("/image_creation/", None, "/image_creation/image/"),
        ("/site/a", None, "/site/a/image_creation/image/"),
        ("/site/image_creation", None, "/site/image_creation/image/"),
        ("/{a,b}[1-2]", None, "/{a,b}[1-2]/image_creation/image/"),
        ("/not_image_creation", None, "/not_image_creation/image_creation/image/"),
        ("", "/cic/", "/cic/image/"),
        ("/cic", "cic", "/cic/image/"),
        ("/cic", "", "/cic/image/"),
    ],
)
def test_root_is_added_once(
    service: FakeService, cic: Client, url_path: str, root: str | None, expected: str
) -> None:
    environment = {} if root is None else {"CIC_ROOT": root}
    cic.run(USER, PASSWORD, service.url + url_path, "images", environment=environment)
    assert service.targets() == [expected]


@pytest.mark.parametrize(
    "name",
    ["a b", "a'b\"c", "$(touch pwned)`touch pwned`", "-o", "{a,b}[1-3]", "a?b=1#c&d", "é%2e"],
)
def test_ids_are_one_segment_of_the_path(service: FakeService, cic: Client, name: str) -> None:
    assert cic("status", name).returncode == 1
    (asked,) = service.asked
    assert re.fullmatch(r"/image_creation/build/[A-Za-z0-9._~%-]+", asked.target)
    assert unquote(asked.path.rpartition("/")[2]) == name
    assert cic.files() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../image", "a/../../b", "a/cancel"])
@pytest.mark.parametrize("verb", ["status", "wait", "log", "cancel", "download"])
def test_ids_that_would_change_the_path_are_refused(
    service: FakeService, cic: Client, verb: str, name: str
) -> None:
    result = cic(verb, name)
    assert result.returncode == 2
    assert b"no build id or image name" in result.stderr
    assert service.asked == []


# ---- Credentials
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    [
        'a"b',
        "back\\slash\\",
        "\\n\\t",
        " spaces  ",
        "'q'",
        "$(id)`id`",
        "größe€",
        "a:b",
        "-x",
        "#",
        "t\tb",
        "&",
        "",
    ],
)
def test_any_password_arrives_unchanged(service: FakeService, cic: Client, password: str) -> None:
    service.login = ("üser", password)
    service.at("/image/", json_answer([]))
    assert cic.run("üser", password, service.url, "images").returncode == 0


def test_credentials_from_the_environment(service: FakeService, cic: Client) -> None:
    service.at("/image/", json_answer([]))
    service.at(f"/build/{BUILD_ID}", status("PENDING"))
    environment = {"CIC_USER": USER, "CIC_PASSWORD": PASSWORD, "CIC_URL": service.url}
    assert cic.run("images", environment=environment).returncode == 0
    assert cic.run("status", BUILD_ID, environment=environment).returncode == 0
    other = {"CIC_USER": "x", "CIC_PASSWORD": "x", "CIC_URL": "https://x.invalid"}
    assert cic("images", environment=other).returncode == 0, "arguments go before the environment"


def test_a_token_is_a_user_with_any_password(service: FakeService, cic: Client) -> None:
    service.login = ("cic_token_0123", "")
    service.at("/image/", json_answer([]))
    environment = {"CIC_USER": "cic_token_0123", "CIC_PASSWORD": "", "CIC_URL": service.url}
    assert cic.run("images", environment=environment).returncode == 0


@pytest.mark.parametrize(
    ("user", "password", "url"),
    [
        (USER, "two\nlines", "{url}"),
        (USER, "carriage\rreturn", "{url}"),
        ("a\nb", PASSWORD, "{url}"),
        ("a:b", PASSWORD, "{url}"),
        (USER, PASSWORD, "127.0.0.1"),
        (USER, PASSWORD, "ftp://127.0.0.1"),
        (USER, PASSWORD, "file:///etc/passwd"),
        (USER, PASSWORD, "http://u:p@127.0.0.1"),
        (USER, PASSWORD, "http://127.0.0.1/?a=b"),
        (USER, PASSWORD, "--output=x"),
        ("", PASSWORD, "{url}"),
    ],
)
def test_credentials_that_cannot_be_right(
    service: FakeService, cic: Client, user: str, password: str, url: str
) -> None:
    result = cic.run(user, password, url.format(url=service.url), "images")
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.startswith(b"cic_cli: ")
    assert service.asked == []


@pytest.fixture
def curl_log(cic: Client, tmp_path: Path) -> Path:
    """What every curl got as arguments and environment; curl itself blanks its arguments, but only
    once it runs.
    """
    log = tmp_path / "curl.log"
    shim = tmp_path / "tools" / "curl"
    shim.write_text(
        f'#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >>"{log}"\nexec {shutil.which("curl")} "$@"\n'
    )
    shim.chmod(0o755)
    return log


def descendants(root: int) -> Iterator[int]:
    """The process and all below it."""
    yield root
    for task in Path(f"/proc/{root}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from descendants(int(child))


@pytest.mark.parametrize("by", ["arguments", "environment"])
def test_the_password_stands_in_no_process_arguments(
    service: FakeService, cic: Client, curl_log: Path, by: str
) -> None:
    release = threading.Event()
    service.at("/image/", Answer(200, b"[]", hold=release))
    if by == "arguments":
        client = cic.start(USER, PASSWORD, service.url, "images")
    else:
        client = cic.start(
            "images",
            environment={"CIC_USER": USER, "CIC_PASSWORD": PASSWORD, "CIC_URL": service.url},
        )
    try:
        assert service.arrived.acquire(timeout=60)
        arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(client.pid)]
    finally:
        release.set()
        client.communicate()
    assert client.returncode == 0
    assert any(b"cic_cli" in each for each in arguments)
    assert any(b"curl" in each for each in arguments)
    for text in [*arguments, curl_log.read_bytes()]:
        assert PASSWORD.encode() not in text
        assert basic(USER, PASSWORD).encode() not in text


def test_no_verb_hands_the_password_to_a_child(
    service: FakeService, cic: Client, curl_log: Path
) -> None:
    service.images[IMAGE] = CONTENT
    service.at(f"/build/{BUILD_ID}", status("FINISHED"))
    service.at(
        f"/build/{BUILD_ID}/log", Answer(200, b"", {"X-Log-Offset": "0", "X-Log-Complete": "true"})
    )
    for verb, argument in [("wait", BUILD_ID), ("log", BUILD_ID), ("download", IMAGE)]:
        assert cic(verb, argument).returncode == 0
    assert b"/images/download/" in curl_log.read_bytes()
    assert PASSWORD.encode() not in curl_log.read_bytes()


def test_the_users_curlrc_does_not_count(service: FakeService, cic: Client) -> None:
    (cic.home / ".curlrc").write_text("header = X-From: curlrc\ninclude\ninsecure\n")
    service.at("/image/", json_answer([]))
    assert shown(cic("images")) == []
    assert "X-From" not in service.asked[0].headers


# ---- Wrong usage, refusals and failures
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["images"],
        ["explode"],
        [USER, PASSWORD, "{url}"],
        [USER, PASSWORD, "{url}", "explode"],
        [USER, PASSWORD, "{url}", "build"],
        [USER, PASSWORD, "{url}", "status", "a", "b"],
        [USER, PASSWORD, "{url}", "images; touch pwned"],
        [USER, PASSWORD, "{url}", "check", "a.sif"],
        [USER, PASSWORD, "{url}", "check", "a.sif", "&x=1"],
        [USER, PASSWORD, "{url}", "check", "a.sif", "--machine"],
        [USER, PASSWORD, "{url}", "check", "a.sif", "--machine", "none.json"],
        ["here", "--hide"],
        [USER, PASSWORD, "{url}", "build", "missing.json"],
        [USER, PASSWORD, "{url}", "plan", "."],
    ],
)
def test_wrong_usage(service: FakeService, cic: Client, arguments: list[str]) -> None:
    result = cic.run(*(argument.format(url=service.url) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr
    assert (service.asked, cic.files()) == ([], [])


def test_missing_variables_are_named(cic: Client) -> None:
    result = cic.run("images", environment={"CIC_USER": USER})
    assert result.returncode == 2
    assert b"CIC_USER, CIC_PASSWORD and CIC_URL" in result.stderr


def test_help_names_every_verb(cic: Client) -> None:
    result = cic.run("--help")
    assert result.returncode == 0
    for verb in re.findall(r"^verb_(\w+)\(\)", CLI.read_text(), re.MULTILINE):
        assert re.search(rf"^  {verb}\b", result.stdout.decode(), re.MULTILINE), verb


def test_a_refusal_is_shown_and_explained(service: FakeService, cic: Client) -> None:
    errors = [
        {"field": "machine.architecture", "problem": "'romee' is unknown", "hint": 'write "rome"'},
        {"problem": "unknown field", "hint": "", "field": "wrokflow"},
    ]
    service.at(
        "/build/",
        problem(400, "Bad request", detail="Two fields are wrong.\nSee below.", errors=errors),
    )
    (cic.folder / "r.json").write_bytes(b"{}")

    result = cic("build", "r.json")

    assert result.returncode == 1
    assert shown(result)["errors"] == errors
    assert result.stderr.decode().splitlines() == [
        "cic_cli: Bad request (HTTP 400)",
        "Two fields are wrong.",
        "See below.",
        "  machine.architecture: 'romee' is unknown (write \"rome\")",
        "  wrokflow: unknown field",
    ]


def test_wrong_password(service: FakeService, cic: Client) -> None:
    result = cic.run(USER, "wrong", service.url, "status", BUILD_ID)
    assert result.returncode == 1
    assert shown(result)["status"] == 401
    assert b"Are user and password right?" in result.stderr


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>Welcome</html>"),
        Answer(200, b""),
        Answer(502, b"<html>Bad Gateway</html>"),
        Answer(500, b'{"title": "half a docu'),
        Answer(500, b'{"a]$(touch pwned)": {"@": ["*", "`touch pwned`"]}, "$(touch pwned)": 1}'),
        Answer(301, b"Moved", {"Location": "https://elsewhere.invalid/image_creation/image/"}),
    ],
)
def test_answers_that_are_no_success(service: FakeService, cic: Client, answer: Answer) -> None:
    service.at("/image/", answer)
    result = cic("images")
    assert result.returncode == 1
    assert result.stdout.startswith(b"Response:\n" + answer.body)
    assert result.stderr
    assert cic.files() == []


@pytest.mark.parametrize(
    "arguments", [["images"], ["wait", BUILD_ID], ["log", BUILD_ID], ["download", "a.sif"]]
)
def test_an_unreachable_service(service: FakeService, cic: Client, arguments: list[str]) -> None:
    service.close()
    result = cic(*arguments)
    assert (result.returncode, result.stdout) == (3, b"")
    assert b"cannot reach the service" in result.stderr
    assert (cic.files(), cic.pauses()) == ([], []), (
        "an address that never answered is probably wrong"
    )


@pytest.fixture
def tls_service(tmp_path: Path) -> Iterator[FakeService]:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fake"
    make += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    fake = FakeService(tls=context)
    fake.at("/image/", json_answer([]))
    yield fake
    fake.close()


def test_a_self_signed_certificate(tls_service: FakeService, cic: Client, tmp_path: Path) -> None:
    def images(**environment: str) -> int:
        return cic.run(
            USER, PASSWORD, tls_service.url, "images", environment=environment
        ).returncode

    assert images() == 3
    assert images(CIC_INSECURE="0") == 3
    assert tls_service.asked == []
    assert images(CIC_INSECURE="1") == 0
    assert images(CURL_CA_BUNDLE=str(tmp_path / "certificate.pem")) == 0


# ---- wait
# ---------------------------------------------------------------------------------------------------------


def test_wait_tells_changes_and_ends_with_the_answer(service: FakeService, cic: Client) -> None:
    service.at(
        f"/build/{BUILD_ID}",
        status("PENDING"),
        status("PENDING"),
        status("STARTED"),
        *[status("BUILDING", stage="install")] * 6,
        status("BUILDING", stage="pip"),
        status("CONVERTING", stage=None),
        status("FINISHED", filename="a.sif"),
    )
    result = cic("wait", BUILD_ID)
    assert result.returncode == 0
    assert shown(result)["filename"] == "a.sif"
    assert result.stderr.decode().splitlines() == [
        "PENDING",
        "STARTED",
        "BUILDING (install)",
        "BUILDING (pip)",
        "CONVERTING",
        "FINISHED",
    ]
    assert cic.pauses() == [1, 2, 1, 1, 2, 4, 8, 10, 10, 1, 1]


def test_wait_on_a_failed_build(service: FakeService, cic: Client) -> None:
    service.at(
        f"/build/{BUILD_ID}",
        status("BUILDING"),
        status(
            "FAILED",
            error_code="COMPILE_FAILED",
            hint="Try\tthat.",
            message='line 1\n"caf\u00e9" \u001b[31mred\tend\\',
        ),
    )
    result = cic("wait", BUILD_ID)
    assert result.returncode == 4
    assert shown(result)["status"] == "FAILED"
    assert result.stderr.decode().endswith(
        'cic_cli: COMPILE_FAILED: line 1\n"café" \\u001b[31mred\tend\\\nTry\tthat.\n'
    )


@pytest.mark.parametrize(
    ("message", "hint", "said"),
    [
        ("both cannot hold", "Remove one", "both cannot hold. Remove one"),
        ("It is full.", "Free some room.", "It is full. Free some room."),
        ("It is full", "", "It is full"),
        (
            "apt failed.\nE: no bcc",
            "Look at the names.",
            "apt failed.\nE: no bcc\nLook at the names.",
        ),
    ],
)
def test_a_problem_and_its_hint_are_sentences(
    service: FakeService, cic: Client, message: str, hint: str, said: str
) -> None:
    more = {"hint": hint} if hint else {}
    service.at(f"/build/{BUILD_ID}", status("FAILED", message=message, **more))
    assert cic("wait", BUILD_ID).stderr.decode().endswith(f"cic_cli: {said}\n")
    service.at("/build/", problem(429, "Too many", detail=message, **more))
    (cic.folder / "r.json").write_bytes(b"{}")
    assert cic("build", "r.json").stderr.decode().endswith(f"\n{said}\n")


def test_wait_is_not_misled_by_other_statuses(service: FakeService, cic: Client) -> None:
    misleading = {
        "a": {"status": "FINISHED", "b": [{"status": "FINISHED"}, [], {}]},
        "message": '","status":"FINISHED","x":"\\',
        "status": "FAILED",
        "z": {"status": "FINISHED"},
    }
    service.at(f"/build/{BUILD_ID}", Answer(200, json.dumps(misleading, indent="\t\r\n ").encode()))
    assert cic("wait", BUILD_ID).returncode == 4


def test_wait_reads_a_long_message(service: FakeService, cic: Client) -> None:
    message = 'gcc: error: "quoted" \\ é\n' * 4000
    service.at(f"/build/{BUILD_ID}", status("FAILED", message=message))
    result = cic("wait", BUILD_ID)
    assert result.returncode == 4
    assert message.encode() in result.stderr


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(404, "Not Found"), 1),
        (problem(500, "Oops"), 1),
        (json_answer({"state": "FINISHED"}), 1),
        (json_answer(["FINISHED"]), 1),
        (Answer(200, b'{"status":"FINISHED"'), 1),
        (Answer(200, b"FINISHED"), 1),
    ],
)
def test_wait_succeeds_on_finished_only(
    service: FakeService, cic: Client, answer: Answer, code: int
) -> None:
    service.at(f"/build/{BUILD_ID}", answer)
    assert cic("wait", BUILD_ID).returncode == code


def test_wait_outlasts_a_restart_of_the_service(service: FakeService, cic: Client) -> None:
    service.at(
        f"/build/{BUILD_ID}",
        status("BUILDING"),
        problem(503, "Restarting"),
        Answer(502, b"<html>"),
        Answer(200, b'{"status":"FINISHED"}', cut=5),
        status("FINISHED"),
    )
    assert cic("wait", BUILD_ID).returncode == 0
    assert cic.pauses() == [1, 1, 2, 4]


def test_wait_gives_up_on_a_service_that_stays_away(service: FakeService, cic: Client) -> None:
    service.at(f"/build/{BUILD_ID}", status("BUILDING"), problem(503, "Gone"))
    assert cic("wait", BUILD_ID).returncode == 1
    assert len(service.asked) == 31


# ---- log
# ----------------------------------------------------------------------------------------------------------


class GrowingLog:
    """Serves a log that has grown by another piece each time it is read; some of the answers are
    cut.
    """

    def __init__(
        self, service: FakeService, pieces: list[bytes], cut_answers: tuple[int, ...] = ()
    ) -> None:
        self.pieces, self.cut_answers, self.reads = pieces, cut_answers, 0
        ordinary = service._answer

        def answer(asked: Asked) -> Answer:
            return self.read(asked) if asked.path.endswith("/log") else ordinary(asked)

        service._answer = answer  # type: ignore[method-assign]

    def read(self, asked: Asked) -> Answer:
        assert asked.headers["Authorization"] == basic(USER, PASSWORD)
        offset = int(parse_qs(urlsplit(asked.target).query)["offset"][0])
        self.reads += 1
        content = b"".join(self.pieces[: self.reads])
        complete = str(self.reads >= len(self.pieces)).lower()
        headers = {
            "X-Log-Offset": str(len(content)),
            "X-Log-Complete": complete,
            "Content-Type": "text/plain",
        }
        return Answer(
            200, content[offset:], headers, cut=3 if self.reads in self.cut_answers else None
        )


def test_log_has_no_gap_and_no_repeat(service: FakeService, cic: Client) -> None:
    pieces = [
        b"",
        b"one\n",
        b"t\xc3",
        b"\xa9wo\n",
        b"",
        b"",
        b"\xff\x00raw \x1b[0m\n" * 9,
        b"x" * 200_000,
        b"no end",
    ]
    GrowingLog(service, pieces, cut_answers=(4, 7, 8))
    result = cic("log", BUILD_ID)
    assert result.returncode == 0
    assert result.stdout == b"".join(pieces)


def test_log_of_an_ended_build_is_asked_for_once(service: FakeService, cic: Client) -> None:
    GrowingLog(service, [b"all of it\n"])
    result = cic("log", BUILD_ID)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"all of it\n", b"")
    assert (len(service.asked), cic.pauses()) == (1, [])


def test_log_rests_while_nothing_is_new(service: FakeService, cic: Client) -> None:
    GrowingLog(service, [b"", b"", b"", b"a", b"", b"x" * 100_000, b"end"])
    assert cic("log", BUILD_ID).returncode == 0
    assert cic.pauses() == [1, 2, 4, 1, 2]


def test_log_goes_on_where_the_service_says(service: FakeService, cic: Client) -> None:
    service.at(
        f"/build/{BUILD_ID}/log",
        Answer(200, b"some\n", {"x-log-offset": "1000", "x-log-complete": "false"}),
        Answer(200, b"more\n", {"X-LOG-OFFSET": "1005", "X-LOG-COMPLETE": "true"}),
    )
    result = cic("log", BUILD_ID)
    assert (result.returncode, result.stdout) == (0, b"some\nmore\n")
    assert [urlsplit(target).query for target in service.targets()] == ["offset=0", "offset=1000"]


@pytest.mark.parametrize(
    "headers", [{}, {"X-Log-Offset": "x[$(touch pwned)]"}, {"X-Log-Offset": "-1"}]
)
def test_log_without_a_usable_offset(
    service: FakeService, cic: Client, headers: dict[str, str]
) -> None:
    service.at(f"/build/{BUILD_ID}/log", Answer(200, b"text\n", headers))
    assert cic("log", BUILD_ID).returncode == 1
    assert cic.files() == []


def test_log_of_an_unknown_build(service: FakeService, cic: Client) -> None:
    result = cic("log", "nope")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Not Found (HTTP 404)" in result.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_log_leaves_nothing(
    service: FakeService, cic: Client, sent: signal.Signals, code: int
) -> None:
    never = threading.Event()
    service.at(f"/build/{BUILD_ID}/log", Answer(200, b"", hold=never))
    # A session of its own: the signal reaches all its processes, as a terminal sends it to a
    # foreground job.
    client = cic.start(USER, PASSWORD, service.url, "log", BUILD_ID, start_new_session=True)
    assert service.arrived.acquire(timeout=60)
    os.killpg(client.pid, sent)
    client.communicate()
    never.set()
    assert client.returncode == code


# ---- download
# -----------------------------------------------------------------------------------------------------

IMAGE = "reduce_order_model_sandybridge.sif"
CONTENT = os.urandom(300_000)


def part_of(name: str, content: bytes) -> str:
    return f"{name}.{sha256(content)[:8]}.part"


def test_download(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    result = cic("download", IMAGE)
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"Saved" in result.stderr
    assert cic.files() == [IMAGE]
    assert (cic.folder / IMAGE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name", ['a b\'s "c".sif', "$(touch pwned)`touch pwned`;.sif", "-o.sif", "é[1-2]{a}?*#%41.sif"]
)
def test_download_of_an_odd_name(service: FakeService, cic: Client, name: str) -> None:
    service.images[name] = CONTENT
    service.cuts = [1000]
    assert cic("download", name).returncode == 0
    assert cic.files() == [name]
    assert (cic.folder / name).read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_was(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    service.cuts = [100_000, 50_000, 20_000, 10_000, 5_000, 2_000, 1_000]
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT
    gets = service.gets(f"/images/download/{IMAGE}")
    begins = [100_000, 150_000, 170_000, 180_000, 185_000, 187_000, 188_000]
    assert [asked.headers["Range"] for asked in gets] == [None] + [
        f"bytes={begin}-" for begin in begins
    ]
    assert [asked.headers["If-Range"] for asked in gets] == [None] + [f'"{sha256(CONTENT)}"'] * 7


def test_a_killed_download_is_resumed_by_the_next(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    (cic.folder / part_of(IMAGE, CONTENT)).write_bytes(CONTENT[:120_000])
    assert cic("download", IMAGE).returncode == 0
    assert cic.files() == [IMAGE]
    (asked,) = service.gets(f"/images/download/{IMAGE}")
    assert asked.headers["Range"] == "bytes=120000-"


def test_a_download_goes_on_as_long_as_there_is_some_progress(
    service: FakeService, cic: Client
) -> None:
    service.images[IMAGE] = CONTENT
    service.cuts = [100_000, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT


def test_a_download_that_never_goes_on_ends_and_keeps_its_part(
    service: FakeService, cic: Client
) -> None:
    service.images[IMAGE] = CONTENT
    service.cuts = [7000] + [0] * 20
    result = cic("download", IMAGE)
    assert result.returncode == 3
    assert b"resumes" in result.stderr
    assert cic.files() == [part_of(IMAGE, CONTENT)]


def test_a_complete_part_is_only_checked(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    (cic.folder / part_of(IMAGE, CONTENT)).write_bytes(CONTENT)
    assert cic("download", IMAGE).returncode == 0
    assert cic.files() == [IMAGE]
    assert service.gets(f"/images/download/{IMAGE}") == []


def test_an_image_that_is_here_is_not_fetched_again(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    (cic.folder / IMAGE).write_bytes(CONTENT)
    assert cic("download", IMAGE).returncode == 0
    assert service.targets() == [f"{ROOT}/image/{IMAGE}"]


def test_an_image_of_that_name_that_is_another_is_replaced(
    service: FakeService, cic: Client
) -> None:
    service.images[IMAGE] = CONTENT
    (cic.folder / IMAGE).write_bytes(b"an older build")
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"", b"not the beginning of it", b"x" * 300_000, b"x" * 300_001])
def test_a_wrong_checksum_leaves_nothing(service: FakeService, cic: Client, part: bytes) -> None:
    service.images[IMAGE] = CONTENT
    if part:
        (cic.folder / part_of(IMAGE, CONTENT)).write_bytes(part)
    else:
        service.claimed_sha256 = "ab" * 32
    result = cic("download", IMAGE)
    assert result.returncode == 5
    assert b"sha256" in result.stderr
    assert cic.files() == []


def test_a_wrong_checksum_leaves_the_older_image(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    service.claimed_sha256 = "ab" * 32
    (cic.folder / IMAGE).write_bytes(b"an older build")
    assert cic("download", IMAGE).returncode == 5
    assert (cic.folder / IMAGE).read_bytes() == b"an older build"


def test_a_replaced_image_is_not_mixed(service: FakeService, cic: Client) -> None:
    """Between two commands: the part of the old one goes, the new one begins at its beginning."""
    old, new = CONTENT, CONTENT[::-1]
    service.images[IMAGE] = new
    (cic.folder / part_of(IMAGE, old)).write_bytes(old[:120_000])
    assert cic("download", IMAGE).returncode == 0
    assert cic.files() == [IMAGE]
    assert (cic.folder / IMAGE).read_bytes() == new
    assert [asked.headers["Range"] for asked in service.gets(f"/images/download/{IMAGE}")] == [None]


def test_an_image_replaced_while_it_is_resumed_is_not_mixed(
    service: FakeService, cic: Client
) -> None:
    """Between a record and its file: If-Range makes the service send the new one whole, and the
    client begins anew.
    """
    old, new = CONTENT, CONTENT[::-1]
    service.images[IMAGE] = old
    service.after_record = lambda: service.images.update({IMAGE: new})
    (cic.folder / part_of(IMAGE, old)).write_bytes(old[:120_000])
    assert cic("download", IMAGE).returncode == 0
    assert cic.files() == [IMAGE]
    assert (cic.folder / IMAGE).read_bytes() == new


def test_a_service_without_ranges(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    service.ranges = False
    service.cuts = [120_000]
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT


def test_a_redirect_is_followed_without_the_login(service: FakeService, cic: Client) -> None:
    files = FakeService("127.0.0.2")
    files.login = None
    files.images = service.images = {"a b.sif": CONTENT}
    files.cuts = [100_000]
    service.links = files.url
    assert cic("download", "a b.sif").returncode == 0
    assert (cic.folder / "a b.sif").read_bytes() == CONTENT
    assert [asked.headers["Range"] for asked in files.asked] == [None, "bytes=100000-"]
    assert all("Authorization" not in asked.headers for asked in files.asked)
    files.close()


def test_an_expired_link_is_asked_for_again(service: FakeService, cic: Client) -> None:
    files = FakeService("127.0.0.2")
    files.login = None
    files.images = service.images = {IMAGE: CONTENT}
    files.queued[f"/link/{IMAGE}"] = [Answer(410, b"<html>Gone"), Answer(200, CONTENT)]
    service.links = files.url
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT
    files.close()


def test_a_missing_image(service: FakeService, cic: Client) -> None:
    result = cic("download", "nope.sif")
    assert result.returncode == 1
    assert b"Not Found" in result.stderr
    assert cic.files() == []


def test_a_download_refused_after_its_record(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    service.at(f"/images/download/{IMAGE}", problem(403, "Forbidden"))
    result = cic("download", IMAGE)
    assert result.returncode == 1
    assert b"HTTP 403" in result.stderr
    assert cic.files() == []


def test_a_download_outlasts_a_short_absence_of_the_service(
    service: FakeService, cic: Client
) -> None:
    service.images[IMAGE] = CONTENT
    service.at(
        f"/images/download/{IMAGE}",
        problem(503, "Restarting"),
        Answer(502, b""),
        Answer(200, CONTENT),
    )
    assert cic("download", IMAGE).returncode == 0
    assert (cic.folder / IMAGE).read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(service: FakeService, cic: Client) -> None:
    service.images[IMAGE] = CONTENT
    (cic.folder / part_of(IMAGE, CONTENT)).symlink_to("/dev/full")
    result = cic("download", IMAGE)
    assert result.returncode == 1
    assert b"is the disk full?" in result.stderr


# ---- The script itself
# --------------------------------------------------------------------------------------------


# ---- Hostile servers and logs
# -----------------------------------------------------------------------------------------------

STEERING = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""What would steer a terminal."""


@pytest.mark.parametrize(
    "body",
    [
        b'{"title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"title": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"title": [' + b"1," * 400_000 + b"1]}",
        b'{"title": "' + b"\\\\" * 400_000 + b'"}',
        b'{"title": "' + b'\\"' * 400_000 + b'"}',
        b'{"title": "' + b"\\u0041" * 150_000 + b'"}',
        b'{"title": "' + b"x" * 1_000_000,
        b'{"title"' + b" " * 1_000_000 + b": 1}",
        b"{" * 1_000_000,
        b'"' * 1_000_001,
        b'{"title": "' + b"x" * 5_000_000 + b'"}',
        b"\x1b[" * 400_000,
        b"\xff\xfe\x00" * 300_000,
    ],
    ids=lambda body: repr(body[:14]) + str(len(body)),
)
@pytest.mark.timeout(300)
def test_an_answer_of_any_form_is_read_in_linear_time(
    service: FakeService, cic: Client, body: bytes
) -> None:
    """Three thousand brackets took 48 s; these are a hundred thousand of them, and the like."""
    service.at(f"/build/{BUILD_ID}", Answer(404, body))
    result = cic("status", BUILD_ID)
    assert result.returncode == 1
    assert b"HTTP 404" in result.stderr
    assert not STEERING.search(result.stdout + result.stderr)


@pytest.mark.parametrize(
    "escape",
    [
        b"\x1b]0;title\x07",
        b"\x1b[2J",
        b"\xc2\x9b2J",
        b"\x9b2J",
        b"\\e[2J",
        b"\\033[2J",
        b"\\x1b[2J",
        b"\\u001b[2J",
        b"\\u1b[2J",
        b"\\u9b 2J",
        b"\\U0000001b[2J",
        b"\\c",
        b"\\r\\b",
        b"\\u009b2J",
        b"\x00\x08\x7f",
    ],
)
def test_what_a_server_sends_steers_no_terminal(
    service: FakeService, cic: Client, escape: bytes
) -> None:
    body = b'{"title": "T%s", "detail": "D%s", "hint": "H%s", "errors": [{"field": "f%s"}]}'
    service.at("/build/", Answer(400, body % ((escape,) * 4)))
    result = cic("list")
    assert result.returncode == 1
    assert not STEERING.search(result.stdout + result.stderr)
    assert b"\x1b" not in result.stdout + result.stderr


def test_what_a_log_says_steers_no_terminal(service: FakeService, cic: Client) -> None:
    said = b"a\tb \x1b[1;31mred\x1b[0m \x1b]0;x\x07 \xc2\x9b2J \x08\x00 caf\xc3\xa9\n\nlast"
    GrowingLog(service, [said])
    code, heard = on_terminal(service, cic, "log", BUILD_ID)
    assert code == 0
    assert heard == b"a\tb red ]0;x 2J  caf\xc3\xa9\n\nlast"


def on_terminal(service: FakeService, cic: Client, *arguments: str) -> tuple[int, bytes]:
    """Run a verb whose standard output is a terminal; return its exit status and what it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [CLI, USER, PASSWORD, service.url, *arguments],
        cwd=cic.folder,
        env=cic.environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
    )
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        heard = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := terminal.read(4096):
                heard += piece
    return process.wait(), heard.replace(b"\r\n", b"\n")


LISTED_IMAGE = {
    "filename": "flows_caf\u00e9.sif",
    "platform": "linux/amd64",
    "size_bytes": 1_234_567_890,
    "created_at": "2026-11-29T21:04:05.000Z",
    "visibility": "site",
}
MACHINE = {"name": "lumi-g", "title": 'LUMI "G"\n(CSC)', "architecture": "zen3", "gpu": "rocm@6"}
PLAN = {
    "image_id": "flows:latest",
    "filename": None,
    "identity": "sha256:1",
    "warnings": ["No GPU.", "No MPI."],
    "spack_yaml": "spack:\n  specs: []\n",
    "dockerfile": "FROM x\n",
}
BUILD = {
    "id": BUILD_ID,
    "status": "FINISHED",
    "created_at": "2026-11-29T21:04:05.000Z",
    "image_id": "flows:latest",
    "request": {"machine": {"platform": "linux/amd64"}},
}
TABLES = {
    "images": (
        ("images",),
        "/image/",
        {"images": [LISTED_IMAGE, LISTED_IMAGE | {"filename": "b.sif", "size_bytes": 1}]},
        """\
image           platform     size    created (UTC)     seen by
flows_café.sif  linux/amd64  1.2 GB  2026-11-29 21:04  site
b.sif           linux/amd64  1 MB    2026-11-29 21:04  site
""",
    ),
    "machines": (
        ("machines", "CSC", "zen"),
        "/machine/?search=CSC%20zen",
        {"machines": [MACHINE]},
        """\
machine  title           architecture  MPI  GPU
lumi-g   LUMI "G" (CSC)  zen3               rocm@6
""",
    ),
    "list": (
        ("list", "FINISHED"),
        "/build/?status=FINISHED",
        {"builds": [BUILD], "page": 1, "pages": 1, "total": 1},
        f"""\
{"id":36}  status    created (UTC)     image
{BUILD_ID}  FINISHED  2026-11-29 21:04  flows:latest
""",
    ),
    "plan": (
        ("plan", "request.json"),
        "/build/plan",
        PLAN,
        """\
image     flows:latest
file      \n\
identity  sha256:1
warning   No GPU.
warning   No MPI.

spack:
  specs: []
""",
    ),
    "none": (
        ("images",),
        "/image/",
        {"images": []},
        "image  platform  size  created (UTC)  seen by\n",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_terminal_gets_a_table_and_everything_else_json(
    service: FakeService, cic: Client, name: str
) -> None:
    arguments, path, value, table = TABLES[name]
    (cic.folder / "request.json").write_text("{}")
    service.at(urlsplit(path).path, json_answer(value))
    assert on_terminal(service, cic, *arguments) == (0, table.encode())
    assert service.targets() == [ROOT + path]
    assert shown(cic(*arguments)) == value
    verb, *others = arguments
    code, heard = on_terminal(service, cic, verb, "--json", *others)
    assert code == 0 and json.loads(heard.partition(b"\n")[2]) == value


def test_a_table_shows_no_escapes(service: FakeService, cic: Client) -> None:
    title = "\x1b[31mred\x1b[0m \u009b2J"
    body = json.dumps({"machines": [MACHINE | {"title": title}]})
    service.at(
        "/machine/",
        Answer(200, body.encode()),
        Answer(200, body.replace("\\u001b", "\x1b").encode()),
    )
    for _ in range(2):
        code, heard = on_terminal(service, cic, "machines")
        assert code == 0 and not STEERING.search(heard)


def test_an_answer_that_is_too_large_for_a_table_is_shown_as_it_came(
    service: FakeService, cic: Client
) -> None:
    many = {"images": [LISTED_IMAGE] * 3000}
    service.at("/image/", json_answer(many))
    code, heard = on_terminal(service, cic, "images")
    assert code == 0 and json.loads(heard.partition(b"\n")[2]) == many


def test_a_refusal_is_told_where_a_table_was_to_be(service: FakeService, cic: Client) -> None:
    service.at("/image/", problem(403, "Forbidden"))
    code, heard = on_terminal(service, cic, "images")
    assert code == 1 and heard == b""


def test_a_redirect_to_escapes_is_told_without_them(service: FakeService, cic: Client) -> None:
    service.at("/build/", Answer(301, b"", {"Location": "http://evil.example/\x1b[2J\x07"}))
    result = cic("list")
    assert result.returncode == 1
    assert not STEERING.search(result.stdout + result.stderr)


def test_without_curl_it_says_so(cic: Client, tmp_path: Path) -> None:
    tools = tmp_path / "few"
    tools.mkdir()
    for name in ("bash", "mktemp", "rm", "cat"):
        (tools / name).symlink_to(shutil.which(name) or "")
    result = cic("list", environment={"PATH": str(tools)})
    assert result.returncode == 1
    assert result.stderr == b"cic_cli: curl is needed, and is not installed here\n"


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, CLI], check=True)
