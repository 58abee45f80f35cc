"""Pushing to an image registry that asks for a password, and to one that never answers."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from pydantic import SecretStr

from image_builder.build import publish
from image_builder.build.context import BuildContext, Built
from image_builder.build.log import DigestingObserver
from image_builder.build.publish import PushFailed
from image_builder.docker import daemon
from image_builder.docker import registry as docker_registry
from image_builder.errors import Cancelled, ErrorCode, LimitReached, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed, run
from image_builder.observer import SilentObserver
from image_builder.settings import RegistrySettings
from tests.support.silent_registry import silent_registry
from tests.support.site import BASE_IMAGE, RUNTIME_BASE_IMAGE, ImageRegistry, free_port

pytestmark = pytest.mark.system


@contextlib.contextmanager
def named(host: str) -> Iterator[str]:
    """The base image under a name in a registry; the name is removed at the end."""
    image_id = f"{host}/cic-test-push-{secrets.token_hex(4)}:1"
    daemon.tag_image(BASE_IMAGE, image_id)
    try:
        yield image_id
    finally:
        daemon.remove_image(image_id)


def push(
    image_id: str,
    registry: RegistrySettings,
    folder: Path,
    *,
    cancel: CancelToken | None = None,
    timeout_s: float = 600.0,
) -> tuple[str | None, list[str]]:
    """Push; returns the digest and the lines that were heard."""
    heard: list[str] = []
    environment = docker_registry.write_docker_config(folder / "docker", registry)
    command = docker_registry.push_command(
        image_id, registry, environment=environment, timeout_s=timeout_s
    )
    return publish.push_image(
        command, run, on_line=heard.append, cancel=cancel or CancelToken()
    ), heard


def settings_of(registry: ImageRegistry, password: str | None = None) -> RegistrySettings:
    return RegistrySettings(
        url=registry.host, user=registry.user, token=SecretStr(password or registry.password)
    )


def test_the_registry_has_what_was_pushed(image_registry: ImageRegistry, tmp_path: Path) -> None:
    with named(image_registry.host) as image_id:
        digest, heard = push(image_id, settings_of(image_registry), tmp_path)
        repository = image_id.split("/", 1)[1].removesuffix(":1")
        answer = requests.head(
            f"http://{image_registry.host}/v2/{repository}/manifests/1",
            timeout=10,
            auth=(image_registry.user, image_registry.password),
            headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        )
        assert answer.headers["Docker-Content-Digest"] == digest
        assert image_registry.password not in "\n".join(heard)
        assert any("Pushed" in line for line in heard)


@dataclasses.dataclass(frozen=True)
class PushedInputs:
    """Of a build's inputs, what a push looks at."""

    image_id: str


def test_a_name_that_another_run_takes_before_the_push_is_pushed_again(
    image_registry: ImageRegistry, tmp_path: Path
) -> None:
    """Both runs tag the same name in the daemon, and `docker push` reads it when it starts."""
    pushes: list[str] = []

    def racing(command: Command, **how: Any) -> Completed:
        pushes.append(command.name)
        if len(pushes) == 1:
            daemon.tag_image(RUNTIME_BASE_IMAGE, image_id)
        return run(command, **how)

    image = daemon.find_image(BASE_IMAGE)
    assert image is not None
    registry = settings_of(image_registry)
    with named(image_registry.host) as image_id:
        environment = docker_registry.write_docker_config(tmp_path / "docker", registry)
        command = docker_registry.push_command(
            image_id, registry, environment=environment, timeout_s=600
        )
        context = BuildContext(
            request=cast("Any", None),
            inputs=cast("Any", PushedInputs(image_id)),
            settings=cast("Any", None),
            workspace=cast("Any", None),
            observer=DigestingObserver(SilentObserver()),
            cancel=CancelToken(),
            runner=racing,
            log=cast("Any", None),
            submitted_at=lambda: 0.0,
        )
        built = Built(image=image, reused=False, labels={})
        digest = publish.push_until_it_is_this(context, command, built)
        repository = docker_registry.repository_of(image_id)
        assert f"{repository}@{digest}" in daemon.image_digests(image)
        assert len(pushes) == 2 and daemon.find_image(image_id) == image


def test_a_wrong_password_is_told_without_being_told(
    image_registry: ImageRegistry, tmp_path: Path
) -> None:
    with named(image_registry.host) as image_id:
        with pytest.raises(PushFailed, match="did not take") as caught:
            push(image_id, settings_of(image_registry, "canary-wrong"), tmp_path)
        assert "canary" not in str(caught.value)
        assert image_registry.tags(image_id.split("/", 1)[1].removesuffix(":1")) == []


def test_a_registry_that_is_not_there_may_be_there_later(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    with named(host) as image_id:
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            push(image_id, RegistrySettings(url=host), tmp_path)
        assert caught.value.code is ErrorCode.IMAGE_REGISTRY_UNAVAILABLE


def test_a_push_to_a_registry_that_says_nothing_can_be_cancelled(tmp_path: Path) -> None:
    with silent_registry() as (host, reached), named(host) as image_id:
        cancel = CancelToken()
        threading.Thread(
            target=lambda: (reached.wait(), cancel.cancel("Enough.")), daemon=True
        ).start()
        with pytest.raises(Cancelled, match="Enough"):
            push(image_id, RegistrySettings(url=host), tmp_path, cancel=cancel)
        assert reached.is_set()


def test_a_push_has_its_time(tmp_path: Path) -> None:
    with (
        silent_registry() as (host, _),
        named(host) as image_id,
        pytest.raises(LimitReached, match="docker push"),
    ):
        push(image_id, RegistrySettings(url=host), tmp_path, timeout_s=1.0)
