"""Ten thousand hostile inputs, the same ones each time: whatever strangers can say, no process is
started for it and nothing is written, or read, outside of the service's folder.

That requests are refused field by field is tested in tests/unit/request/test_parsing.py, with ten thousand
more.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from image_builder.errors import BadDescription
from image_builder.sources.description import parse_description
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from service.db import accounts
from tests.service.conftest import REQUEST, ROOT, Api
from tests.service.test_web import NEW_BUILD, Visitor, csrf_token
from tests.support.site import Site

MARK = "h0st1le"
"""Part of every hostile value: what is started or written because of one shows it."""
CANARY = "canary-outside-of-the-folder"
PIECES = (
    "../",
    "..\\",
    "/..",
    "%2e%2e%2f",
    "..%2f",
    "/etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "ext::sh -c",
    ";",
    "|",
    "&&",
    "$(touch /tmp/x)",
    "`touch /tmp/x`",
    ">",
    "<(",
    "*",
    "?",
    "{a,b}",
    "~root",
    "!",
    "#",
    "^",
    "'",
    '"',
    "\\",
    "--upload-pack=",
    "--output=/tmp/x",
    "-rf",
    "-",
    "--",
    "-c",
    "@{-1}",
    ":(exclude)",
    "HEAD~1",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "\ud800",
    "\U0001f4a5",
    "é",
    "ﬀ",
    "İ",
    "{{7*7}}",
    "${jndi:x}",
    "%s%n",
    "<script>",
    "' OR 1=1 --",
    "%00",
    "0x7fffffff",
    "9" * 400,
    "-1",
    "1e999",
    "NaN",
    "None",
    "null",
    "a" * 5000,
)
ASKS_BUILDX = "subprocess.Popen ('docker', ['docker', 'buildx', 'inspect'"
STATUSES = {200, 204, 206, 302, 303, 304, 400, 401, 403, 404, 405, 413, 416, 429}


class Stranger:
    """Makes hostile values; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def text(self) -> str:
        pieces = [MARK, *self._random.choices(PIECES, k=self._random.randint(1, 4))]
        self._random.shuffle(pieces)
        return "".join(pieces)

    def value(self, depth: int = 3) -> Any:
        """Something that JSON and YAML can hold."""
        kind = self._random.randrange(8)
        if kind == 0:
            return self._random.choice([None, True, -1, 2**63, 10**400, 1.5, float("inf"), [], {}])
        if kind < 3 and depth:
            return [self.value(depth - 1) for _ in range(self._random.randrange(4))]
        if kind < 5 and depth:
            return {self.text(): self.value(depth - 1) for _ in range(self._random.randrange(4))}
        return self.text()

    def choice(self, *values: Any) -> Any:
        return self._random.choice(values)

    def header(self) -> str:
        """What can be sent as a header's value."""
        text = self.text().encode("latin-1", "replace").decode("latin-1")
        return "".join(letter for letter in text if letter not in "\0\r\n\x85").strip()


@pytest.fixture
def site(site: Site) -> Site:
    """One that does not look for news of its registry at every request."""
    return site.with_environ(CIC_REPOSITORIES_MIRROR_MAX_AGE_S="3600")


@pytest.fixture
def images(app: Flask) -> ImageStore:
    """The service's store with one image and its documents."""
    store: ImageStore = app.extensions["cic"].images
    with store.temporary_path() as temporary:
        temporary.write_bytes(b"SIF")
        store.publish(
            temporary,
            ImageRecord(
                identity="a" * 64, image_id="a:1", platform="linux/amd64", filename="a.sif"
            ),
        )
    return store


def test_ten_thousand_hostile_inputs(
    app: Flask,
    ada: Api,
    images: ImageStore,
    tmp_path: Path,
    started_processes: list[str],
    written_paths: list[str],
) -> None:
    folder = tmp_path / "tmp"
    (tmp_path / "passwd").write_text(CANARY)
    ada.wait(ada.submit())  # from here on everything that a good request needs is there
    del started_processes[:], written_paths[:]
    told = 0
    for count, tell in (
        (800, call),
        (150, log_in),
        (150, visit),
        (3000, describe),
        (5900, look_up),
    ):
        stranger = Stranger(count)
        told += sum(tell(stranger, app, ada) for _ in range(count))

    assert told == 10_000
    assert [heard for heard in started_processes if MARK in heard] == []
    assert [
        heard
        for heard in started_processes
        if not heard.startswith(("subprocess.Popen ('git', ['git', ", ASKS_BUILDX))
    ] == []
    within = (f"{folder}/", str(folder), str(tmp_path / "db.sqlite"), "/dev/null")
    assert [
        path
        for path in written_paths
        if not path.startswith(within) and "/__pycache__/" not in path
    ] == []


def expect(answer: TestResponse) -> bool:
    """Nothing but a refusal or a harmless answer."""
    assert answer.status_code in STATUSES, answer.text
    assert CANARY not in answer.text
    assert "root:x:0" not in answer.text
    return True


def call(stranger: Stranger, app: Flask, ada: Api) -> bool:
    """One REST call with something hostile in its body, its path, its query or its headers."""
    way: Callable[[Stranger, Api], TestResponse] = stranger.choice(
        _body, _field, _path, _query, _header
    )
    return expect(way(stranger, ada))


def _body(stranger: Stranger, ada: Api) -> TestResponse:
    raw = stranger.choice(
        json.dumps(stranger.value()), stranger.text(), "{" + stranger.text(), "[" * 2000
    )
    return ada(
        "POST",
        stranger.choice("/build/", "/build/plan"),
        data=raw.encode("utf-8", "surrogatepass"),
        content_type=stranger.choice("application/json", "text/plain", "multipart/form-data"),
    )


def _field(stranger: Stranger, ada: Api) -> TestResponse:
    body: dict[str, Any] = json.loads(json.dumps(REQUEST))
    place = stranger.choice(body, body["machine"])
    place[
        stranger.choice(
            "workflow",
            "step_id",
            "version",
            "path",
            "force",
            "push",
            "slim",
            "machine",
            "platform",
            "architecture",
            "container_engine",
            "mpi",
            "gpu",
            "gpu_arch",
            "name",
        )
    ] = stranger.value(1)
    return ada(
        "POST",
        stranger.choice("/build/", "/build/plan"),
        data=json.dumps(body),
        content_type="application/json",
    )


def _path(stranger: Stranger, ada: Api) -> TestResponse:
    text = quote(stranger.text().encode("utf-8", "surrogatepass"), safe=stranger.choice("", "/"))
    path = stranger.choice(
        "/build/{}",
        "/build/{}/log",
        "/build/{}/cancel",
        "/image/{}",
        "/image/a.sif/document/{}",
        "/image/{}/document/spack.lock",
        "/image/{}/check?machine=lumi-c",
        "/images/download/{}",
        "/images/download/../../../../passwd{}",
        "/image/../../{}",
        "/static/{}",
        "/{}",
    )
    return ada(stranger.choice("GET", "POST", "DELETE", "HEAD"), path.format(text))


def _query(stranger: Stranger, ada: Api) -> TestResponse:
    path, *names = stranger.choice(
        ("/build/", "page", "per_page", "status"),
        (
            "/image/a.sif/check",
            "machine",
            "platform",
            "mpi",
            "gpu",
            "driver",
            "launcher",
            "gpu_arch",
            "architecture",
        ),
        ("/images/download/a.sif", "sha256"),
        ("/architecture/", "platform"),
    )
    text = quote(stranger.text().encode("utf-8", "surrogatepass"))
    return ada("GET", f"{path}?{stranger.choice(*names, 'x')}={text}")


def _header(stranger: Stranger, ada: Api) -> TestResponse:
    name = stranger.choice(
        "Range",
        "If-Range",
        "If-None-Match",
        "Accept",
        "Accept-Encoding",
        "Last-Event-ID",
        "Referer",
        "User-Agent",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Content-Type",
        "Cookie",
        "Host",
        "If-Modified-Since",
    )
    return ada(
        stranger.choice("GET", "HEAD"),
        stranger.choice("/images/download/a.sif", "/build/", "/image/"),
        headers={name: stranger.header()},
    )


def log_in(stranger: Stranger, app: Flask, ada: Api) -> bool:
    """One attempt to be somebody, from an address that nobody else has."""
    scheme = stranger.choice("Basic", "Bearer", "Digest", "", accounts.TOKEN_PREFIX)
    return expect(
        app.test_client().get(
            f"{ROOT}/build/",
            environ_overrides={"REMOTE_ADDR": "192.0.2.66"},
            headers={"Authorization": f"{scheme} {stranger.header()}"},
        )
    )


def visit(stranger: Stranger, app: Flask, ada: Api) -> bool:
    """One form or address of the pages."""
    visitor: Visitor = app.extensions.setdefault("test_visitor", None) or Visitor(app, "bob")
    app.extensions["test_visitor"] = visitor
    text = stranger.text()
    if stranger.choice(True, False):
        page = stranger.choice(
            "/builds?page={}",
            "/builds?status={}",
            "/images?search={}",
            "/images/{}",
            "/builds/{}",
            "/builds/new?workflow={}",
            "/builds/new?from={}",
            "/images/a.sif/documents/{}",
            "/images/a.sif?machine={}",
            "/login?next={}",
            "/captchas/{}.png",
        )
        return expect(visitor.get(page.format(quote(text.encode("utf-8", "surrogatepass")))))
    visitor.csrf = getattr(visitor, "csrf", None) or csrf_token(visitor.get("/account"))  # type: ignore[attr-defined]
    form = NEW_BUILD | {
        stranger.choice(*NEW_BUILD, "machine", "mpi", "gpu"): text.encode(
            "utf-8", "replace"
        ).decode()
    }
    return expect(visitor.post("/builds/new", form, token=visitor.csrf))  # type: ignore[attr-defined]


def describe(stranger: Stranger, app: Flask, ada: Api) -> bool:
    """One description of a step, of the wrong shape or with something hostile in the right one."""
    entry = stranger.value(2)
    shape = stranger.choice(
        stranger.value(),
        {"apt": entry},
        {"apt": [entry]},
        {"pip": [entry]},
        {"spack": entry},
        {"spack": {"specs": [entry]}},
        {"spack": {"packages": {stranger.text(): entry}}},
        {"smoke": entry},
        {"spack": {"specs": ["zlib"], stranger.text(): entry}},
        {"spack": {"packages": {"all": {"variants": entry}}}},
    )
    text = stranger.choice(
        json.dumps(shape, ensure_ascii=False), stranger.text(), _nested(stranger), _tagged(stranger)
    )
    try:
        parsed = parse_description(text, "eflows4hpc.yaml")
    except BadDescription:
        return True
    for value in (*parsed.apt, *(parsed.pip or ())):
        assert not set(value) & set(";|&$`\n\0\\\"'") - set(
            ";'\"" if value in (parsed.pip or ()) else ""
        ), value
        assert not value.startswith("-")
    return True


def _nested(stranger: Stranger) -> str:
    """More structure than anybody needs: deep, or by references to references."""
    return stranger.choice(
        "apt: " + "[" * 3000 + MARK,
        "{a: " * 500 + MARK,
        "spack: {specs: [" + MARK + ", " * 5000 + "]}",
        f"a: &a [{MARK}]\n"
        + "".join(
            f"{after}: &{after} [*{name}, *{name}]\n"
            for name, after in itertools.pairwise("abcdefghi")
        ),
        "<<: *x\napt: [" + stranger.text() + "]",
    )


def _tagged(stranger: Stranger) -> str:
    tag = stranger.choice(
        "!!python/object/apply:os.system",
        "!!python/name:os.system",
        "!!binary",
        "!include",
        "!!set",
        "!<tag:yaml.org,2002:python/object/new:subprocess.Popen>",
    )
    return f'apt: {tag} ["{MARK} touch /tmp/x"]\n'


def look_up(stranger: Stranger, app: Flask, ada: Api) -> bool:
    """One name of a file, a document or an image, past all that the paths of calls keep out."""
    store: ImageStore = app.extensions["cic"].images
    text = stranger.choice(stranger.text(), f"../../passwd{MARK}", f"/etc/passwd\0{MARK}")
    assert store.by_name(text) is None
    assert store.by_sha256(text) is None
    assert store.by_identity(text) is None
    assert store.document("a" * 64, text) is None
    return True
