"""Finished images in a real registry: the contract, and that clusters get from it what was put
there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from image_builder.build.signing import beside_sifs
from image_builder.errors import ErrorCode
from image_builder.host.process import Command, run
from image_builder.proof.keys import Signer, read_signer
from image_builder.settings import BuildSettings, RegistrySettings
from image_builder.store.image_store import open_images
from image_builder.store.oci_client import OciRepository, RegistryUnavailable
from image_builder.store.record import SIGNED
from image_builder.store.registry import RegistryImages
from service.cleanup import Cleanup
from service.db.database import make_engine
from tests.conftest import PROJECT
from tests.support.images_contract import *  # noqa: F403  the tests of the contract
from tests.support.images_contract import IDENTITY, NAME, OTHER_IDENTITY, publish, record, sha256
from tests.support.signing import make_key, openssl_verifies
from tests.support.site import ImageRegistry, Site, running_image_registry, running_service

pytestmark = pytest.mark.system
REPOSITORY = "group/images"


@pytest.fixture(scope="module")
def shared_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRegistry]:
    with running_image_registry(tmp_path_factory.mktemp("registry") / "root") as registry:
        yield registry


def opened_in(
    registry: ImageRegistry, folder: Path, repository: str, signer: Signer | None = None
) -> RegistryImages:
    build = BuildSettings(
        tmp_folder=folder,
        builder_home=PROJECT,
        base_image="base:1",
        storage=f"oras://{registry.host}/{repository}",
    )
    found = open_images(
        build,
        RegistrySettings(url=registry.host, user=registry.user, token=registry.password),
        beside=beside_sifs(signer),
    )
    assert isinstance(found, RegistryImages)
    return found


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A repository of this test's own."""
    return f"{REPOSITORY}/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"


@pytest.fixture
def images(shared_registry: ImageRegistry, repository: str, tmp_path: Path) -> RegistryImages:
    return opened_in(shared_registry, tmp_path / "here", repository)


def test_another_machine_sees_what_was_put_there_at_once(
    images: RegistryImages, shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    there = opened_in(shared_registry, tmp_path / "there", repository)
    assert there.names() == {}
    first = publish(images, b"one")
    assert there.by_name(NAME) == first and set(there.names()) == {NAME}
    second = publish(images, b"two", record(OTHER_IDENTITY))
    assert there.by_name(NAME) == second
    with there.opened(second.sha256 or "") as file:
        assert file.read() == b"two"


def test_what_another_machine_names_meanwhile_stays(
    images: RegistryImages, shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    there = opened_in(shared_registry, tmp_path / "there", repository)
    published = publish(images, b"one")
    renamed = published.model_copy(update={"filename": "other.sif"})

    def somebody_comes() -> bool:
        there.point(renamed)
        return False

    assert not images.remove(published.sha256 or "", unless=somebody_comes)
    assert there.by_name("other.sif") == images.by_name("other.sif") == renamed
    with there.opened(published.sha256 or "") as file:
        assert file.read() == b"one"
    assert images.remove(published.sha256 or "") and there.by_name("other.sif") is None


def test_what_is_named_while_it_is_deleted_stays(
    images: RegistryImages,
    shared_registry: ImageRegistry,
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even between the last look and the deletion: what is deleted is what was looked at, and
    nothing newer.
    """
    there = opened_in(shared_registry, tmp_path / "there", repository)
    published = publish(images, b"one")
    delete, coming = OciRepository.delete_manifest, [published]

    def late(repository: OciRepository, digest: str) -> bool:
        while coming and repository is images.repository:
            there.point(coming.pop())
        return delete(repository, digest)

    monkeypatch.setattr(OciRepository, "delete_manifest", late)
    assert images.remove(published.sha256 or "")
    assert (
        not coming
        and there.by_name(NAME) == published
        and there.by_sha256(published.sha256 or "") == published
    )
    with there.opened(published.sha256 or "") as file:
        assert file.read() == b"one"


def test_a_name_whose_sif_is_gone_is_none(images: RegistryImages) -> None:
    """As when one machine removes a SIF while another, whose lists are older, gives it a name."""
    published = publish(images, b"one")
    found = images.repository.manifest(f"sha256.{published.sha256}")
    assert found is not None and images.names() == {NAME: published}
    images.repository.delete_manifest(found.digest)
    assert images.by_name(NAME) is images.by_identity(IDENTITY) is None
    assert images.names() == {} and images.images() == []
    assert publish(images, b"one") == images.by_name(NAME)


def test_lists_ask_again_for_what_they_have_known_for_long(
    images: RegistryImages,
    shared_registry: ImageRegistry,
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = opened_in(shared_registry, tmp_path / "there", repository)
    publish(images, b"one")
    assert set(there.names()) == {NAME}
    second = publish(images, b"two", record(OTHER_IDENTITY))
    third = publish(images, b"three", record("c" * 64, "new.sif"))
    assert there.names()["new.sif"] == third
    monkeypatch.setattr("image_builder.store.registry.LIST_AGE_S", 0.0)
    assert there.names() == {NAME: second, "new.sif": third}


def test_a_list_of_many_tags_has_all_of_them(
    images: RegistryImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_builder.store.oci_client.PAGE", 3)
    names = {f"image-{number}.sif" for number in range(5)}
    for number, name in enumerate(sorted(names)):
        publish(images, f"{number}".encode(), record(f"{number:064x}", name))
    assert set(images.names()) == names
    assert len(images.images()) == 5


def signature_of(registry: ImageRegistry, repository: str, tag: str) -> tuple[bytes, str]:
    """What is signed of the artifact that a tag means, and the signature, as cosign finds them."""
    digest = registry.digest(repository, tag)
    (layer,) = registry.get(repository, f"manifests/{digest.replace(':', '-')}.sig")["layers"]
    payload = registry.get(repository, f"blobs/{layer['digest']}")
    assert payload["critical"]["image"]["docker-manifest-digest"] == digest
    assert payload["critical"]["identity"]["docker-reference"] == f"{registry.host}/{repository}"
    signed = json.dumps(payload, separators=(",", ":")).encode()
    assert layer["digest"] == f"sha256:{sha256(signed)}"
    return signed, layer["annotations"]["dev.cosignproject.cosign/signature"]


def test_a_signed_sif_is_signed_as_cosign_reads_it(
    shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    """Under its name, which gets another artifact each time that it is given; none stays behind."""
    signer = read_signer(make_key(tmp_path / "key.pem", "p256"))
    images = opened_in(shared_registry, tmp_path / "here", repository, signer)
    published = publish(images, b"one", record(**{SIGNED: True}))
    tag = NAME.removesuffix(".sif")

    first = signature_of(shared_registry, repository, tag)
    images.point(published)
    second = signature_of(shared_registry, repository, tag)
    assert first[0] != second[0]
    for content, signature in (first, second):
        assert openssl_verifies(tmp_path, content, signature, signer.public_pem)
    signatures = [one for one in shared_registry.tags(repository) if one.endswith(".sig")]
    assert len(signatures) == 1 and set(images.names()) == {NAME}

    assert images.remove(published.sha256 or "")
    assert not [one for one in shared_registry.tags(repository) if one.endswith(".sig")]


def test_what_was_made_without_a_key_is_not_signed_later(
    shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    signer = read_signer(make_key(tmp_path / "key.pem", "p256"))
    images = opened_in(shared_registry, tmp_path / "here", repository, signer)
    publish(images, b"one")
    name = f"sha256-{'1' * 64}.sig.sif"
    publish(images, b"two", record(OTHER_IDENTITY, name))
    assert not [one for one in shared_registry.tags(repository) if one.endswith(".sig")]
    assert set(images.names()) == {NAME, name}


def test_singularity_pulls_the_very_file(
    images: RegistryImages, shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    sif = tmp_path / "made.sif"
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "hello").write_text("hello\n")
    run(
        Command(
            name="singularity build",
            argv=("singularity", "build", str(sif), str(tmp_path / "root")),
            timeout_s=120,
        )
    )
    content = sif.read_bytes()
    publish(images, content)
    pulled, address = tmp_path / "pulled.sif", images.address_of(NAME)
    assert address == f"oras://{shared_registry.host}/{repository}:{NAME.removesuffix('.sif')}"
    environment = {
        **os.environ,
        "APPTAINER_CACHEDIR": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    for engine in ("APPTAINER", "SINGULARITY"):
        environment |= {
            f"{engine}_DOCKER_USERNAME": shared_registry.user,
            f"{engine}_DOCKER_PASSWORD": shared_registry.password,
        }
    done = subprocess.run(
        ["singularity", "pull", "--no-https", str(pulled), address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sha256(pulled.read_bytes()) == sha256(content)


def test_a_broken_upload_is_offered_nowhere(images: RegistryImages) -> None:
    with images.temporary_path() as temporary:
        temporary.write_bytes(b"not what the digest says")
        with pytest.raises(RegistryUnavailable) as caught:
            images.publish(temporary, record(), sha256=sha256(b"one"))
    assert caught.value.code is ErrorCode.IMAGE_REGISTRY_UNAVAILABLE
    assert images.names() == {} and images.by_identity(IDENTITY) is None
    assert publish(images, b"one").sha256 == sha256(b"one")


def test_a_wrong_password_is_told(shared_registry: ImageRegistry, tmp_path: Path) -> None:
    wrong = OciRepository(shared_registry.host, REPOSITORY, credentials=("pusher", "wrong"))
    with pytest.raises(RegistryUnavailable, match="401"):
        RegistryImages(wrong, tmp_path).names()
    with pytest.raises(RegistryUnavailable, match="wants a log-in"):
        OciRepository(shared_registry.host, REPOSITORY).tags()
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        OciRepository("127.0.0.1:1", REPOSITORY).tags()


class _FakeTokenRegistry(BaseHTTPRequestHandler):
    """A fake: it has one tag, wants a token for it, and gives that for the right password. Debian's
    has no such log-in without a certificate authority of its own.
    """

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.path.startswith("/token?service=fake&scope=repository%3Aimages%3A"):
            is_right = (
                self.headers.get("Authorization")
                == requests.Request("GET", "http://x", auth=("ada", "right"))
                .prepare()
                .headers["Authorization"]
            )
            self._answer(200 if is_right else 401, '{"token": "good"}' if is_right else "{}")
        elif self.headers.get("Authorization") == "Bearer good":
            self._answer(200, '{"tags": ["one"]}')
        else:
            self._answer(
                401, "{}", f'Bearer realm="http://127.0.0.1:{port}/token",service="fake",scope="x"'
            )

    def _answer(self, status: int, body: str, challenge: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_registries_that_want_a_token_get_one() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _FakeTokenRegistry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    try:
        assert OciRepository(host, "images", credentials=("ada", "right")).tags() == ["one"]
        with pytest.raises(RegistryUnavailable, match="no token"):
            OciRepository(host, "images", credentials=("ada", "wrong")).tags()
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def cut_after(registry: ImageRegistry, limit_bytes: int) -> Iterator[str]:
    """A fake network: whatever passes through this address to the registry is cut after so many
    bytes of an answer.
    """
    import socket
    import socketserver

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            host, _, port = registry.host.partition(":")
            with socket.create_connection((host, int(port))) as far:

                def upload() -> None:
                    with contextlib.suppress(OSError):
                        while part := self.request.recv(65536):
                            far.sendall(part)

                threading.Thread(target=upload, daemon=True).start()
                left = limit_bytes
                with contextlib.suppress(OSError):
                    while left > 0 and (part := far.recv(min(65536, left))):
                        self.request.sendall(part)
                        left -= len(part)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    with Server(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_download_goes_on_where_the_connection_broke(
    images: RegistryImages, shared_registry: ImageRegistry, repository: str, tmp_path: Path
) -> None:
    content = os.urandom(1_500_000)
    digest = publish(images, content).sha256 or ""
    with cut_after(shared_registry, 400_000) as host:
        cut = OciRepository(
            host, repository, credentials=(shared_registry.user, shared_registry.password)
        )
        with RegistryImages(cut, tmp_path / "there").opened(digest) as file:
            parts = list(iter(lambda: file.read(100_000), b""))
    assert b"".join(parts) == content


def test_clean_up_is_the_same(images: RegistryImages, site: Site) -> None:
    from builder_service import create_app

    create_app(site.settings).extensions["cic"].engine.dispose()
    engine = make_engine(site.settings.service.database)
    publish(images, b"one", record(IDENTITY, "one.sif"))
    kept = publish(images, b"two", record(OTHER_IDENTITY, "two.sif"))
    images.pin(kept.sha256 or "")
    images.keep_documents("c" * 64, {"spack.lock": "{}"})
    service = site.settings.service.model_copy(
        update={"max_images_bytes": 0, "keep_unreferenced_s": 0.0}
    )
    settings = site.settings.model_copy(update={"service": service})
    assert [
        item.kind
        for item in Cleanup(engine, settings, images).run()
        if item.kind in ("SIF", "texts")
    ] == []
    cleanup = Cleanup(engine, settings, images, grace_s=0)
    assert {item.kind for item in cleanup.run(dry_run=True)} >= {"SIF", "texts"}
    gone = [item.kind for item in cleanup.run() if item.kind in ("SIF", "texts")]
    assert gone == ["SIF", "texts"] or gone == ["SIF", "texts", "texts"]
    assert set(images.names()) == {"two.sif"} and images.documents("c" * 64) == ()
    engine.dispose()


def test_the_service_keeps_and_sends_images_of_a_registry(
    site: Site, shared_registry: ImageRegistry, repository: str
) -> None:
    """A whole service with this one switch: submit, build, list, download in parts, and nothing
    left on its disk.
    """
    there = site.with_environ(
        CIC_BUILD_STORAGE=f"oras://{shared_registry.host}/{repository}",
        CIC_REGISTRY_URL=shared_registry.host,
        CIC_REGISTRY_USER=shared_registry.user,
        CIC_REGISTRY_TOKEN=shared_registry.password,
    )
    request = {
        "machine": {
            "platform": "linux/amd64",
            "architecture": "x86_64",
            "container_engine": "singularity",
        },
        "workflow": "demo",
        "step_id": "plain",
        "push": False,
    }
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "text": "hello\n"})
    with running_service(there) as service:
        status = service.build(request)
        assert status["status"] == "FINISHED", status
        listed = service.call("GET", "/image/").json()["images"]
        assert [(one["filename"], one["sha256"]) for one in listed] == [
            (status["filename"], status["sha256"])
        ]
        whole = service.call("GET", f"/images/download/{status['filename']}")
        assert sha256(whole.content) == status["sha256"]
        part = service.call(
            "GET", f"/images/download/{status['filename']}", headers={"Range": "bytes=1000-1999"}
        )
        assert (part.status_code, part.content) == (206, whole.content[1000:2000])
        assert (
            "Dockerfile" in service.call("GET", f"/image/{status['filename']}").json()["documents"]
        )
        again = service.build(request)
        assert again["sha256"] == status["sha256"]
    assert not list((there.tmp_folder / "store" / "sif").iterdir())
