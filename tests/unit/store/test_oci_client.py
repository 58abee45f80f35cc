"""What a registry answers is bounded in size and in time before anything of it is parsed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from image_builder.build.buildcache.stores import RegistryStore
from image_builder.docker.label_names import RECORD, TITLE
from image_builder.errors import Cancelled
from image_builder.host.cancellation import CancelToken
from image_builder.store import oci_client
from image_builder.store.oci_client import Manifest, OciRepository, RegistryUnavailable
from image_builder.store.record import ImageRecord
from image_builder.store.registry import RegistryImages

Answer = Callable[[BaseHTTPRequestHandler], None]
PADDING = b" " * 5000


@contextlib.contextmanager
def registry(answer: Answer) -> Iterator[OciRepository]:
    """Yield the repository of a fake registry, which answers everything in one way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the client hangs up on what is too large
                answer(self)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield OciRepository(f"127.0.0.1:{server.server_address[1]}", "images")
    finally:
        server.shutdown()
        server.server_close()


def with_body(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MANIFEST", "TAGS", "TOKEN", "BLOB", "REDIRECT"):
        monkeypatch.setattr(oci_client, f"MAX_{name}_BYTES", len(PADDING))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda repository: repository.manifest("one"), "The manifest one"),
        (lambda repository: repository.tags(), "The list of tags"),
        (lambda repository: repository.small_blob("sha256:00"), "The blob sha256:00"),
    ],
)
def test_an_answer_that_is_too_large_is_named(
    call: Callable[[OciRepository], object], named: str
) -> None:
    with (
        registry(with_body(b"{}" + PADDING)) as repository,
        pytest.raises(RegistryUnavailable, match=f"^{named} is larger than 5000 bytes"),
    ):
        call(repository)


def test_what_is_just_small_enough_is_read() -> None:
    body = b"{}" + PADDING[2:]
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    with registry(with_body(body)) as repository:
        found = repository.manifest("one")
        assert found is not None and (found.content, found.digest) == ({}, digest)
        assert repository.tags() == [] and repository.small_blob(digest) == body
        with pytest.raises(RegistryUnavailable, match="is something else"):
            repository.small_blob(f"sha256:{'0' * 64}")


def test_pages_of_tags_are_bounded_together() -> None:
    endless = with_body(b'{"tags": ["one"]}', Link='</v2/images/tags/list?n=1>; rel="next"')
    with (
        registry(endless) as repository,
        pytest.raises(RegistryUnavailable, match="The list of tags is larger than 5000 bytes"),
    ):
        repository.tags()


def test_a_token_that_is_too_large_is_named() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/token"):
            with_body(b'{"token": "x"}' + PADDING)(handler)
        else:
            port = handler.server.server_address[1]  # type: ignore[misc]
            realm = f'Bearer realm="http://127.0.0.1:{port}/token"'
            with_body(b"", 401, WWW_Authenticate=realm)(handler)

    with (
        registry(answer) as repository,
        pytest.raises(RegistryUnavailable, match="The token is larger than 5000 bytes"),
    ):
        repository.tags()


def test_the_body_of_a_redirect_is_bounded() -> None:
    """Which requests reads before it follows."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.path.rpartition("=")[2])
        if handler.path.startswith("/moved"):
            with_body(b'{"tags": ["one"]}')(handler)
        else:
            with_body(b" " * size, 307, Location="/moved?n=1")(handler)

    with registry(answer) as repository:
        assert len(PADDING) > oci_client.PAGE and repository.tags() == ["one"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(oci_client, "PAGE", len(PADDING) + 1)
            with pytest.raises(RegistryUnavailable, match="A redirect is larger"):
                repository.tags()


def test_of_an_error_only_the_beginning_is_shown() -> None:
    with registry(with_body(b"no " * 5000, 500)) as repository:
        with pytest.raises(RegistryUnavailable, match="answers GET with 500: no no") as caught:
            repository.tags()
        assert len(caught.value.message) < 400


def test_an_answer_that_comes_byte_by_byte_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is in time; all of them together are not."""
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "400")
        handler.end_headers()
        for _ in range(400):
            handler.wfile.write(b" ")
            if over.wait(0.02):
                return

    monkeypatch.setattr(oci_client, "ANSWER_S", 0.2)
    with registry(answer) as repository:
        try:
            with pytest.raises(RegistryUnavailable, match=r"The manifest one takes .* too long"):
                repository.manifest("one")
        finally:
            over.set()


@pytest.mark.parametrize("body", [b"[]", b"no", b'{"tags": "one"}', b'{"tags": [1]}', b"[" * 4000])
def test_what_is_no_list_of_tags_is_an_error_of_the_registry(body: bytes) -> None:
    with registry(with_body(body)) as repository, pytest.raises(RegistryUnavailable):
        repository.tags()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"annotations": None, "layers": None},
        {"annotations": ["one"], "layers": {"digest": "sha256:00"}},
        {"annotations": {"one": 1}, "layers": [None, "one", {}, {"digest": "sha256:00"}]},
        {"layers": [{"digest": "sha256:../..", "size": 1}, {"digest": 1, "size": 1}]},
    ],
)
def test_a_manifest_of_anybody_has_no_layers_or_annotations_but_whole_ones(
    tmp_path: Path, content: dict[str, object]
) -> None:
    manifest = Manifest(digest="sha256:00", content=content)
    assert (manifest.annotations, manifest.layers) == ({}, [])
    with registry(with_body(json.dumps(content).encode())) as repository:
        images = RegistryImages(repository, tmp_path)
        assert images.by_name("one.sif") is None and images.by_identity("1" * 64) is None
        assert images.documents("1" * 64) == () and images.document("1" * 64, "one") is None


def test_layers_are_those_of_any_algorithm() -> None:
    layers = [{"digest": "sha512:00", "size": 1}, {"digest": "a+b.c:x_Y-=", "size": 0}]
    content = {"layers": layers, "annotations": {"one": "1", "two": 2}}
    manifest = Manifest(digest="sha256:00", content=content)
    assert (manifest.layers, manifest.annotations) == (layers, {"one": "1"})


def test_a_registry_that_leaves_headers_out_is_an_error_of_the_registry() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(202 if handler.command == "POST" else found)
        handler.send_header("Location" if handler.command == "POST" else "X", "http://[")
        handler.end_headers()

    with registry(answer) as repository:
        found = 200
        with pytest.raises(RegistryUnavailable, match="how large"):
            repository.put_blob(b"one")
        found = 404
        with pytest.raises(RegistryUnavailable, match="an address that is none"):
            repository.put_blob(b"one")


@pytest.mark.parametrize(
    "host", ["a..b", f"{'a' * 64}.test", "127.0.0.1:99999", "[::1", "ftp.test:x"]
)
def test_a_host_that_cannot_be_one_is_an_error_of_the_registry(host: str) -> None:
    """Wherever a registry names another one."""
    address = f"http://{host}/x"

    def upload(handler: BaseHTTPRequestHandler) -> None:
        with_body(b"", 202 if handler.command == "POST" else 404, Location=address)(handler)

    with (
        registry(upload) as repository,
        pytest.raises(RegistryUnavailable, match=r"does not answer|an address that is none"),
    ):
        repository.put_blob(b"one")
    for answer in (
        with_body(b'{"tags": []}', Link=f'<{address}>; rel="next"'),
        with_body(b"", 401, WWW_Authenticate=f'Bearer realm="{address}"'),
        with_body(b"", 307, Location=address),
    ):
        with (
            registry(answer) as repository,
            pytest.raises(RegistryUnavailable, match=r"does not answer|no token|that is none"),
        ):
            repository.tags()


def test_a_record_is_one_only_if_all_of_its_layers_are(tmp_path: Path) -> None:
    record = ImageRecord(identity="1" * 64, image_id="one:1", platform="linux/amd64")
    annotations = {RECORD: record.model_dump_json()}
    for layers, is_one in (([], True), (None, False), ([None], False), ([{}], False)):
        content = {"annotations": annotations, "layers": layers}
        with registry(with_body(json.dumps(content).encode())) as repository:
            found = RegistryImages(repository, tmp_path).by_identity("1" * 64)
            assert (found is not None) == is_one


@pytest.mark.parametrize("told", [4000, 6000])
def test_of_a_package_no_more_is_read_than_its_manifest_says(tmp_path: Path, told: int) -> None:
    """The blob is whole, and 5000 bytes long."""
    digest = f"sha256:{hashlib.sha256(PADDING).hexdigest()}"
    layer = {"digest": digest, "size": told, "annotations": {TITLE: "v3/one"}}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        is_blob = "/blobs/" in handler.path
        with_body(PADDING if is_blob else json.dumps({"layers": [layer]}).encode())(handler)

    with registry(answer) as repository:
        store = RegistryStore(repository, "cache", scratch=tmp_path, cancel=CancelToken())
        assert store.available(["a"]) == {"a"}
        assert (store.pull(["a"]) / "v3/one").exists() == (told == 6000)
        assert sum(path.is_file() for path in tmp_path.rglob("*")) == (told == 6000)


def test_a_blob_that_comes_byte_by_byte_can_be_cancelled(tmp_path: Path) -> None:
    over, cancel = threading.Event(), CancelToken()
    layer = {"digest": f"sha256:{'0' * 64}", "size": 400, "annotations": {TITLE: "v3/one"}}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "/blobs/" not in handler.path:
            return with_body(json.dumps({"layers": [layer]}).encode())(handler)
        handler.send_response(200)
        handler.send_header("Content-Length", "400")
        handler.end_headers()
        handler.wfile.write(b" ")
        cancel.cancel()
        while not over.wait(0.02):
            handler.wfile.write(b" ")
        return None

    with registry(answer) as repository:
        store = RegistryStore(repository, "cache", scratch=tmp_path, cancel=cancel)
        assert store.available(["a"]) == {"a"}
        try:
            with pytest.raises(Cancelled):
                store.pull(["a"])
        finally:
            over.set()
