"""Builders elsewhere: a real BuildKit that shares nothing with this machine's Docker, through
buildx's drivers.

With the driver `remote`, it is that of a Docker daemon of the test's own, with containerd's image
store, on a host in miniature; a bridge brings it to a TCP port, as `buildkitd` would have one. With
`docker-container` it is `buildkitd` itself, in the image that CIC_TEST_BUILDKIT_IMAGE names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker.buildx import builder_platforms
from image_builder.docker.daemon import image_layers
from image_builder.host.process import run
from tests.support.daemon_images import remove_images
from tests.support.site import (
    BASE_IMAGE,
    BASE_IMAGE_ARM64,
    MACHINE,
    ImageRegistry,
    Site,
    running_service,
)
from tests.system.own_docker import own_docker
from tests.system.test_registries import forget, publish

pytestmark = [
    pytest.mark.system,
    pytest.mark.endurance,
]  # some minutes, most of them for the daemon

BASES = {"linux/amd64": BASE_IMAGE, "linux/arm64": BASE_IMAGE_ARM64}
REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "plain", "push": False}
FORWARD = """
import socket, sys, threading
def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    near, _ = server.accept()
    far = socket.create_connection((sys.argv[3], int(sys.argv[4])))
    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
"""
BUILDKIT_IMAGE = os.environ.get("CIC_TEST_BUILDKIT_IMAGE")
DRIVERS = [
    "remote",
    pytest.param(
        "docker-container",
        marks=pytest.mark.skipif(
            BUILDKIT_IMAGE is None,
            reason="CIC_TEST_BUILDKIT_IMAGE IS NOT SET: THE DRIVER docker-container IS NOT TESTED",
        ),
    ),
]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_builder_elsewhere_builds_and_keeps_layers_in_the_registry(
    site: Site, image_registry: ImageRegistry, tmp_path: Path, driver: str
) -> None:
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "hello.txt": "hello\n"})
    cache = f"{image_registry.host}/group/cache"
    with builder_elsewhere(driver, site, image_registry, tmp_path) as builder:
        configured = builder.with_environ(CIC_BUILD_BUILD_CACHE=cache)
        with running_service(configured) as service:
            built = service.build(REQUEST)
            log = service.call("GET", f"/build/{built['id']}/log").text
        remove_images(configured)
        name = configured.environ["CIC_BUILD_BUILDX_BUILDER"]
        buildx(configured, "prune", f"--builder={name}", "--all", "--force")
        elsewhere = configured.with_environ(
            CIC_BUILD_TMP_FOLDER=str(tmp_path / "elsewhere"),
            CIC_DATABASE=f"sqlite:///{tmp_path / 'elsewhere.sqlite'}",
        )
        with running_service(
            elsewhere, name="elsewhere"
        ) as service:  # it shares the registry alone
            again = service.build(REQUEST)
            second_log = service.call("GET", f"/build/{again['id']}/log").text
    assert built["status"] == "FINISHED", log[-4000:]
    assert built["sha256"] and f"--builder={name}" in log
    assert image_registry.tags("group/cache")
    assert again["status"] == "FINISHED", second_log[-4000:]
    outcomes = [
        re.findall(r"\] COPY step/ /plain/\n#\d+ (\w+)", text) for text in (log, second_log)
    ]
    # What is asked for once more in one build, its builder has.
    assert (outcomes[0][0], outcomes[1][0]) == ("DONE", "CACHED"), second_log[:12000]


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_a_builder_elsewhere_pushes_is_attested(
    site: Site, image_registry: ImageRegistry, tmp_path: Path, driver: str
) -> None:
    """What the registry gets is the image that was checked, with provenance and a bill of
    materials.
    """
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "hello.txt": "hello\n"})
    generator = f"{image_registry.host}/bases/fake-generator:1"
    request = {**REQUEST, "push": True}
    with (
        builder_elsewhere(driver, site, image_registry, tmp_path) as builder,
        published_generator(generator, builder, tmp_path),
    ):
        configured = builder.with_environ(
            CIC_BUILD_SBOM_GENERATOR=generator,
            CIC_BUILD_HTTPS_PROXY="http://proxy:canary-word@127.0.0.1:1",
        )
        with running_service(configured) as service:
            built = service.build(request)
            log = service.call("GET", f"/build/{built['id']}/log").text
            again = service.build(request)
        layers = image_layers(built["image_id"])
        index = image_registry.get("group/demo_plain_x86_64_nompi_nogpu", "manifests/latest")
        unable = configured.with_environ(
            CIC_BUILD_SBOM_GENERATOR=f"{image_registry.host}/bases/none:1"
        )
        with running_service(unable, name="unable") as service:
            plain = service.build({**request, "force": True})
            unable_log = service.call("GET", f"/build/{plain['id']}/log").text
        replaced = image_registry.get("group/demo_plain_x86_64_nompi_nogpu", "manifests/latest")
    assert built["status"] == "FINISHED", log[-4000:]
    pushed, attested = index["manifests"]
    assert attested["annotations"]["vnd.docker.reference.digest"] == pushed["digest"]
    config = read(image_registry, pushed, "config")
    assert config["rootfs"]["diff_ids"] == list(layers)
    statements = {
        statement["predicateType"]: statement for statement in read_layers(image_registry, attested)
    }
    assert set(statements) == {"https://slsa.dev/provenance/v0.2", "https://spdx.dev/Document"}
    for statement in statements.values():
        assert "sha256:" + statement["subject"][0]["digest"]["sha256"] == pushed["digest"]
    provenance = json.dumps(statements["https://slsa.dev/provenance/v0.2"])
    assert "bases/base" in provenance and "canary-word" not in provenance
    assert again["status"] == "FINISHED" and again["pushed_digest"] == built["pushed_digest"]
    assert plain["status"] == "FINISHED" and "is pushed without attestations" in unable_log, (
        unable_log[-4000:]
    )
    assert "manifests" not in replaced


@pytest.mark.usefixtures("arm64_base")
def test_each_platform_is_built_on_its_own_node(
    site: Site, image_registry: ImageRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node emulates, as all hosts are one machine here; that it is the one that is asked
    is what counts.
    """
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "hello.txt": "hello\n"})
    with builder_elsewhere(
        "remote", site, image_registry, tmp_path, platforms=tuple(BASES)
    ) as configured:
        monkeypatch.setenv("BUILDX_CONFIG", configured.environ["BUILDX_CONFIG"])
        native, _ = builder_platforms(configured.settings.library.build, run)
        nodes = nodes_alone(configured)
        held = [[held_by(configured, node) for node in nodes]]
        with running_service(configured) as service:
            for platform, cpu in (("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")):
                built = service.build(
                    {**REQUEST, "machine": {**MACHINE, "platform": platform, "architecture": cpu}}
                )
                assert built["status"] == "FINISHED", built
                held.append([held_by(configured, node) for node in nodes])
    assert native == list(BASES)
    nothing, amd64, both = held
    assert nothing == ["0B", "0B"]
    assert amd64[0] != "0B" and amd64[1] == "0B"
    assert both[0] == amd64[0] and both[1] != "0B"


def nodes_alone(site: Site) -> list[str]:
    """For each node of the site's builder a builder that has no other."""
    name = site.environ["CIC_BUILD_BUILDX_BUILDER"]
    endpoints = re.findall(
        r"^Endpoint:\s+(tcp://\S+)$", buildx(site, "inspect", name), re.MULTILINE
    )
    return [
        buildx(site, "create", f"--name={name}-only-{number}", "--driver=remote", endpoint).strip()
        for number, endpoint in enumerate(endpoints)
    ]


def held_by(site: Site, builder: str) -> str:
    """How much a builder's cache holds."""
    (total,) = re.findall(
        r"^Total:\s+(\S+)$", buildx(site, "du", f"--builder={builder}"), re.MULTILINE
    )
    return str(total)


def read(registry: ImageRegistry, manifest: dict[str, Any], part: str) -> Any:
    """A part of an image that an index of `demo_plain` names."""
    repository = "group/demo_plain_x86_64_nompi_nogpu"
    found = registry.get(repository, f"manifests/{manifest['digest']}")[part]
    return registry.get(repository, f"blobs/{found['digest']}") if part == "config" else found


def read_layers(registry: ImageRegistry, manifest: dict[str, Any]) -> list[Any]:
    return [
        registry.get("group/demo_plain_x86_64_nompi_nogpu", f"blobs/{layer['digest']}")
        for layer in read(registry, manifest, "layers")
    ]


@contextlib.contextmanager
def published_generator(name: str, configured: Site, folder: Path) -> Iterator[None]:
    """A fake of BuildKit's generators of bills of materials, in the registry: it finds one package
    in every image.
    """
    found = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://spdx.dev/Document",
        "predicate": {"spdxVersion": "SPDX-2.3", "packages": [{"name": "found"}]},
    }
    context = folder / "generator"
    context.mkdir()
    (context / "found.json").write_text(json.dumps(found))
    (context / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nCOPY found.json /\n"
        'ENTRYPOINT ["/bin/sh", "-c", "cp /found.json $BUILDKIT_SCAN_DESTINATION/found.spdx.json"]\n'
    )
    local = f"cic-test-generator-{secrets.token_hex(4)}"
    subprocess.run(
        ["docker", "build", "--quiet", f"--tag={local}", str(context)],
        check=True,
        capture_output=True,
    )
    try:
        publish(local, name, configured, folder)
        yield
    finally:
        subprocess.run(["docker", "rmi", "--force", local], capture_output=True)


@contextlib.contextmanager
def builder_elsewhere(
    driver: str,
    site: Site,
    image_registry: ImageRegistry,
    folder: Path,
    *,
    platforms: Sequence[str] = ("linux/amd64",),
) -> Iterator[Site]:
    """The site with a builder that has a node for each platform; the base images are in the
    registry.
    """
    base, name = f"{image_registry.host}/bases/base-{{platform}}:1", f"cic-{secrets.token_hex(4)}"
    configured = site.with_environ(
        **image_registry.environ,
        CIC_BUILD_BASE_IMAGE=base,
        CIC_BUILD_BUILDX_BUILDER=name,
        BUILDX_CONFIG=str(folder / "buildx"),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(forget, image_registry.host)
        stack.callback(remove_images, configured)
        for number, platform in enumerate(platforms):
            publish(
                BASES[platform],
                base.replace("{platform}", platform.replace("/", "-")),
                configured,
                folder,
            )
            arguments = (
                stack.enter_context(remote_node(number, image_registry, folder))
                if driver == "remote"
                else (f"--driver-opt=image={BUILDKIT_IMAGE},network=host", "--bootstrap")
            )
            buildx(
                configured,
                "create",
                f"--name={name}",
                f"--node={name}-{number}",
                f"--platform={platform}",
                f"--driver={driver}",
                *(["--append"] if number else []),
                *arguments,
            )
            if number == 0:
                stack.callback(buildx, configured, "rm", name)
        yield configured


def buildx(site: Site, *arguments: str) -> str:
    """What buildx prints."""
    done = subprocess.run(
        ["docker", "buildx", *arguments], env=dict(site.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def remote_node(
    number: int, image_registry: ImageRegistry, folder: Path
) -> Iterator[tuple[str, ...]]:
    """A BuildKit on a host in miniature; yields what names it to buildx."""
    config = folder / f"daemon-{number}.json"
    config.write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    with (
        own_docker("--config-file", str(config)) as docker,
        cable(docker.host, number) as here,
        registry_there(docker.host, here, image_registry.host),
        bridge(docker.socket) as port,
    ):
        yield (f"tcp://127.0.0.1:{port}",)


@contextlib.contextmanager
def cable(namespace: int, number: int) -> Iterator[str]:
    """A cable between this machine and a daemon's host; yields this end's address."""
    near, here, there = (
        f"cic{secrets.token_hex(3)}",
        f"198.18.77.{4 * number + 1}",
        f"198.18.77.{4 * number + 2}",
    )
    subprocess.run(
        [
            "ip",
            "link",
            "add",
            near,
            "type",
            "veth",
            "peer",
            "name",
            "toward",
            "netns",
            str(namespace),
        ],
        check=True,
    )
    subprocess.run(["ip", "addr", "add", f"{here}/30", "dev", near], check=True)
    subprocess.run(["ip", "link", "set", near, "up"], check=True)
    for command in (f"addr add {there}/30 dev toward", "link set toward up"):
        subprocess.run(
            ["nsenter", f"--net=/proc/{namespace}/ns/net", "ip", *command.split()], check=True
        )
    try:
        yield here
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True)


@contextlib.contextmanager
def registry_there(namespace: int, near: str, host: str) -> Iterator[None]:
    """The registry on the loopback address of this machine, under the same address on the daemon's
    host.
    """
    port = host.rpartition(":")[2]
    here = [sys.executable, "-c", FORWARD, near, port, "127.0.0.1", port]
    there = [
        "nsenter",
        f"--net=/proc/{namespace}/ns/net",
        sys.executable,
        "-c",
        FORWARD,
        "127.0.0.1",
        port,
        near,
        port,
    ]
    with contextlib.ExitStack() as stack:
        for argv in (here, there):
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        yield


@contextlib.contextmanager
def bridge(daemon: Path) -> Iterator[int]:
    """A TCP port that leads to a daemon's BuildKit."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = server.accept()
                    threading.Thread(target=_connect, args=(near, daemon), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def _connect(near: socket.socket, daemon: Path) -> None:
    far = socket.socket(socket.AF_UNIX)
    far.connect(str(daemon))
    far.sendall(
        b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += far.recv(1)
    assert b" 101 " in answer
    threads = [
        threading.Thread(target=pump, daemon=True) for pump in (_pump(near, far), _pump(far, near))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    near.close(), far.close()


def _pump(source: socket.socket, sink: socket.socket) -> Callable[[], None]:
    def pump() -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    return pump
