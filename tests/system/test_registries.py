"""Several image registries, each with credentials of its own, which reach no other."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder.build import publish as build_publish
from image_builder.docker import daemon
from image_builder.docker import registry as docker_registry
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run as run_command
from tests.support.daemon_images import remove_images
from tests.support.site import (
    BASE_IMAGE,
    MACHINE,
    ImageRegistry,
    Site,
    own_tag,
    running_image_registry,
    running_service,
)

pytestmark = pytest.mark.system

REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}


def test_a_private_base_and_a_push_elsewhere_have_credentials_of_their_own(
    site: Site, image_registry: ImageRegistry, tmp_path: Path
) -> None:
    """The base's registry, the one that is pushed to, and a third that is asked and gets nobody's
    credentials.
    """
    with (
        running_image_registry(tmp_path / "bases") as bases,
        curious_registry() as (curious, heard),
    ):
        base = f"{bases.host}/bases/base:1"
        (tmp_path / "token").write_text(bases.password)
        logins = {bases.host: {"user": bases.user, "token_file": str(tmp_path / "token")}}
        configured = site.with_environ(
            **image_registry.environ,
            CIC_REGISTRY_LOGINS=json.dumps(logins),
            CIC_BUILD_BASE_IMAGE=base,
        )
        publish(BASE_IMAGE, base, configured, tmp_path)

        with running_service(configured) as service:
            built = service.build({**REQUEST, "push": True})
            log = service.call("GET", f"/build/{built['id']}/log").text
        with running_service(
            configured.with_environ(CIC_BUILD_BASE_IMAGE=f"{curious}/bases/base:1")
        ) as service:
            refused = service.build({**REQUEST, "force": True})
        remove_images(configured)
        forget(bases.host)

    assert built["status"] == "FINISHED", built
    assert image_registry.tags("group/demo_hello_x86_64_nompi_nogpu") == [own_tag(built), "latest"]
    assert refused["error_code"] == "BASE_IMAGE_UNAVAILABLE", refused
    assert heard and not any("authorization" in headers for headers in heard)
    for canary in (bases.password, image_registry.password):
        assert canary not in log + json.dumps([built, refused])
        for path in site.root.rglob("*"):
            if path.is_file() and not {"image-registry", "bases"} & set(path.parts):
                assert canary.encode() not in path.read_bytes() or path == tmp_path / "token", path


def forget(host: str) -> None:
    """Remove what was pulled from a registry."""
    with daemon.daemon() as client:
        for image in client.api.images():
            for digest in image.get("RepoDigests") or ():
                if digest.startswith(f"{host}/"):
                    client.images.remove(digest)


def publish(image: str, name: str, site: Site, folder: Path) -> None:
    """Push an image of this machine under a name, and let the machine forget that name."""
    registry = site.settings.library.registry
    daemon.tag_image(image, name)
    environment = docker_registry.write_docker_config(folder / "publisher", registry)
    build_publish.push_image(
        docker_registry.push_command(name, registry, environment=environment, timeout_s=600),
        run_command,
        on_line=print,
        cancel=CancelToken(),
    )
    daemon.remove_image(name)
    shutil.rmtree(folder / "publisher")


@contextlib.contextmanager
def curious_registry() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A registry that asks everybody for a password; its host, and the headers that it was sent."""
    heard: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="everybody"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", heard
        server.shutdown()
