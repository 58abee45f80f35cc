"""The arguments of buildx, and where credentials lie. What needs a daemon is in the system tests."""

from __future__ import annotations

import base64
import json
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from image_builder.docker import buildx, daemon
from image_builder.docker import registry as docker_registry
from image_builder.errors import ErrorCode, Unavailable
from image_builder.host.process import Command, Completed, ProcessFailed
from image_builder.settings import BuildSettings, LibrarySettings, RegistrySettings

CANARY = "canary-token"
REGISTRY = RegistrySettings.model_validate(
    {"url": "https://registry.example:5000/", "user": "ada", "token": CANARY}
)


def command(settings: BuildSettings, **more: object) -> Command:
    options: dict[str, object] = {
        "context": Path("/b/context"),
        "platform": "linux/arm64",
        "settings": settings,
        "target": "final",
        "environment": {"DOCKER_CONFIG": "/b/secrets/docker"},
        "labels": {},
        "secrets": {},
        "build_contexts": {},
        "output": "type=docker",
        "nonce": "",
    }
    return buildx.build_command(**{**options, **more})  # type: ignore[arg-type]


def test_a_plain_build(library_settings: LibrarySettings) -> None:
    build = library_settings.build
    made = command(build)
    assert made.argv == (
        "docker",
        "buildx",
        "build",
        "--progress=plain",
        "--provenance=false",
        "--platform=linux/arm64",
        "--target=final",
        "--file=/b/context/Dockerfile",
        "--output=type=docker",
        "/b/context",
    )
    assert (made.timeout_s, made.quiet_timeout_s) == (build.build_timeout_s, build.quiet_timeout_s)
    assert made.env == {"DOCKER_CONFIG": "/b/secrets/docker"}


def test_everything_that_can_be_asked_for(library_settings: LibrarySettings) -> None:
    build = library_settings.build.model_copy(
        update={"buildx_builder": "far", "https_proxy": "http://proxy:3128"}
    )
    made = command(
        build,
        labels={"b": "2; --push", "a": "--x"},
        secrets={"site": Path("/b/secrets/site")},
        build_contexts={"sources": Path("/srv/mirror")},
        nonce="again",
        cgroup="/steps",
        metadata_file=Path("/b/scratch/made"),
    )
    assert made.argv[8:] == (
        "--builder=far",
        "--cgroup-parent=/steps",
        "--label=a=--x",
        "--label=b=2; --push",
        "--secret=id=site,src=/b/secrets/site",
        "--build-context=sources=/srv/mirror",
        "--build-arg=https_proxy",
        "--build-arg=HTTPS_PROXY",
        "--build-arg=CIC_NONCE=again",
        "--metadata-file=/b/scratch/made",
        "--output=type=docker",
        "/b/context",
    )
    assert made.env["https_proxy"] == made.env["HTTPS_PROXY"] == "http://proxy:3128"


def test_steps_without_network(library_settings: LibrarySettings) -> None:
    assert "--network=none" in command(library_settings.build, without_network=True).argv


def test_an_attested_build(library_settings: LibrarySettings) -> None:
    made = command(
        library_settings.build,
        attested=("type=provenance,mode=min", "type=sbom,generator=x"),
        metadata_file=Path("/b/scratch/pushed.json"),
    )
    assert made.argv[4:6] == ("--attest=type=provenance,mode=min", "--attest=type=sbom,generator=x")
    assert "--metadata-file=/b/scratch/pushed.json" in made.argv
    assert not any("--provenance" in argument for argument in made.argv)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_value_asks_for_rights(label: str, value: str) -> None:
    """Labels are all that a user's words become here."""
    with tempfile.TemporaryDirectory() as folder:
        settings = BuildSettings(
            tmp_folder=Path(folder), builder_home=Path(folder), base_image="base:1"
        )
        made = command(settings, labels={f"cic.{label}": value})
    options = [word for word in made.argv[3:-1] if not word.startswith("--label=cic.")]
    assert [word.partition("=")[0] for word in options] == [
        "--progress",
        "--provenance",
        "--platform",
        "--target",
        "--file",
        "--output",
    ]
    assert len(made.argv) == 3 + len(options) + 2


def test_credentials_lie_in_a_file_of_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "docker"
    environment = docker_registry.write_docker_config(folder, REGISTRY)
    file = folder / "config.json"
    assert environment["DOCKER_CONFIG"] == str(folder)
    assert CANARY not in str(environment)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, file)] == [0o700, 0o600]
    auths = json.loads(file.read_text())["auths"]
    assert list(auths) == ["registry.example:5000"]
    assert base64.b64decode(auths["registry.example:5000"]["auth"]) == f"ada:{CANARY}".encode()
    assert docker_registry.write_docker_config(folder, REGISTRY) == environment, (
        "a second stage writes it again"
    )


@pytest.mark.parametrize("host", ["docker.io", "https://index.docker.io/", "docker.io/group"])
def test_docker_hub_has_a_key_of_its_own(tmp_path: Path, host: str) -> None:
    docker_registry.write_docker_config(
        tmp_path / "docker", REGISTRY.model_copy(update={"url": host.removeprefix("https://")})
    )
    assert list(json.loads((tmp_path / "docker/config.json").read_text())["auths"]) == [
        "https://index.docker.io/v1/"
    ]


@pytest.mark.parametrize("missing", ["url", "user", "token"])
def test_without_credentials_there_are_none(tmp_path: Path, missing: str) -> None:
    registry = REGISTRY.model_copy(update={missing: None})
    docker_registry.write_docker_config(tmp_path / "docker", registry)
    assert json.loads((tmp_path / "docker/config.json").read_text()) == {"auths": {}}
    assert docker_registry.auth_config("registry.example:5000/a:1", registry) is None


@pytest.mark.parametrize(
    ("reference", "is_ours"),
    [
        ("registry.example:5000/group/a:1", True),
        ("registry.example/group/a:1", False),
        ("a:1", False),
        ("registry.example:5000.evil.example/a:1", False),
        ("evil.example/registry.example:5000/a", False),
    ],
)
def test_credentials_go_to_their_own_registry_alone(reference: str, is_ours: bool) -> None:
    expected = {"username": "ada", "password": CANARY} if is_ours else None
    assert docker_registry.auth_config(reference, REGISTRY) == expected


def test_builders_keep_layers_for_each_other(library_settings: LibrarySettings) -> None:
    build = library_settings.build.model_copy(update={"buildx_builder": "far"})
    kept = ("r.example/cache:one", "r.example/cache:two")
    assert command(build, cache_from=kept, cache_to=kept[1]).argv[8:] == (
        "--builder=far",
        "--cache-from=type=registry,ref=r.example/cache:one",
        "--cache-from=type=registry,ref=r.example/cache:two",
        "--cache-to=type=registry,ref=r.example/cache:two,mode=max,ignore-error=true",
        "--output=type=docker",
        "/b/context",
    )
    assert not any("cache" in word for word in command(build).argv)


@pytest.mark.parametrize(
    ("lines", "native", "emulated"),
    [
        (
            ["Platforms:        linux/amd64, linux/amd64/v2, linux/arm64, linux/386"],
            ["linux/amd64"],
            ["linux/arm64"],
        ),
        (
            [
                "Name: a",
                "Platforms: linux/arm64/v8*, linux/amd64*",
                "Platforms: linux/amd64, linux/ppc64le",
            ],
            ["linux/arm64", "linux/amd64"],
            ["linux/ppc64le"],
        ),
        (["Error: no such node"], [], []),
    ],
)
def test_each_node_is_its_first_platform_and_emulates_the_others(
    library_settings: LibrarySettings, lines: list[str], native: list[str], emulated: list[str]
) -> None:
    build = library_settings.build.model_copy(update={"buildx_builder": "far"})

    def fake_runner(asked: Command, *, on_line: Callable[[str], None], **_: object) -> Completed:
        assert asked.argv == ("docker", "buildx", "inspect", "--bootstrap", "--", "far")
        for line in lines:
            on_line(line)
        return Completed(tail=())

    assert buildx.builder_platforms(build, fake_runner) == (native, emulated)  # type: ignore[arg-type]


def test_proxies_are_told_in_both_spellings(library_settings: LibrarySettings) -> None:
    build = library_settings.build.model_copy(update={"http_proxy": "http://p", "no_proxy": "a,b"})
    assert buildx.proxy_arguments(build) == {
        "http_proxy": "http://p",
        "HTTP_PROXY": "http://p",
        "no_proxy": "a,b",
        "NO_PROXY": "a,b",
    }


@pytest.mark.parametrize(
    ("driver", "sees"), [("docker", True), ("docker-container", False), ("kubernetes", False)]
)
def test_which_builders_see_the_daemons_images(
    library_settings: LibrarySettings, driver: str, sees: bool
) -> None:
    asked: list[tuple[str, ...]] = []

    def fake_inspect(command: Command, **_: object) -> Completed:
        asked.append(command.argv)
        return Completed(tail=(), stdout=f"Name: far\nDriver: {driver}\nNodes:\n".encode())

    far = library_settings.build.model_copy(update={"buildx_builder": "--help"})
    assert buildx.sees_local_images(far, fake_inspect) is sees
    assert asked == [("docker", "buildx", "inspect", "--", "--help")]
    assert buildx.sees_local_images(library_settings.build, fake_inspect)
    assert len(asked) == 1, "the default builder is not asked for"


def test_a_builder_that_is_not_there(library_settings: LibrarySettings) -> None:
    def fake_inspect(command: Command, **_: object) -> Completed:
        raise ProcessFailed(command, 1, ["ERROR: no builder"])

    with pytest.raises(ProcessFailed, match="no builder"):
        buildx.sees_local_images(
            library_settings.build.model_copy(update={"buildx_builder": "far"}), fake_inspect
        )


@pytest.mark.parametrize(
    "address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "nonsense://"]
)
def test_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(Unavailable, match="Docker daemon does not answer") as caught:
        daemon.find_by_identity("sha256:0")
    assert (caught.value.code, caught.value.hint != "") == (ErrorCode.DOCKER_UNAVAILABLE, True)


class TestLogins:
    """More than one registry, each with credentials of its own."""

    REGISTRY = RegistrySettings.model_validate(
        {
            "url": "registry.example:5000",
            "user": "ada",
            "token": CANARY,
            "logins": {
                "Base.example": {"user": "reader", "token": "other-token"},
                "index.docker.io": {"user": "hub", "token": "hub-token"},
            },
        }
    )

    @pytest.mark.parametrize(
        ("reference", "user"),
        [
            ("registry.example:5000/group/image:1", "ada"),
            ("base.example/spack:1", "reader"),
            ("debian:12", "hub"),
            ("docker.io/library/debian@sha256:" + "0" * 64, "hub"),
            ("registry.example/group/image", None),
            ("base.example.evil/spack", None),
            ("evil/base.example/spack", "hub"),
            ("localhost:5000/spack", None),
        ],
    )
    def test_each_registry_gets_its_own_and_no_other(
        self, reference: str, user: str | None
    ) -> None:
        found = docker_registry.auth_config(reference, self.REGISTRY)
        assert (found or {}).get("username") == user

    def test_dockers_client_finds_them_by_host(self, tmp_path: Path) -> None:
        docker_registry.write_docker_config(tmp_path / "docker", self.REGISTRY)
        auths = json.loads((tmp_path / "docker" / "config.json").read_text())["auths"]
        assert {
            host: base64.b64decode(entry["auth"]).decode() for host, entry in auths.items()
        } == {
            "registry.example:5000": f"ada:{CANARY}",
            "base.example": "reader:other-token",
            "https://index.docker.io/v1/": "hub:hub-token",
        }

    def test_every_token_is_blotted_out_of_a_push(self) -> None:
        made = docker_registry.push_command(
            "registry.example:5000/x:1", self.REGISTRY, environment={}, timeout_s=1
        )
        assert {secret.get_secret_value() for secret in made.secrets} == {
            CANARY,
            "other-token",
            "hub-token",
        }
        assert not {CANARY, "other-token", "hub-token"} & set(str(self.REGISTRY).split("'"))

    def test_a_token_may_lie_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("from-a-file\n")
        given = {
            "logins": {"base.example": {"user": "reader", "token_file": str(tmp_path / "token")}}
        }
        login = RegistrySettings.model_validate(given).login_for("base.example")
        assert login is not None and login.token.get_secret_value() == "from-a-file"

    @pytest.mark.parametrize(
        "logins",
        [
            {"https://base.example": {"user": "a", "token": "b"}},
            {"base.example/group": {"user": "a", "token": "b"}},
            {"base.example": {"user": "a"}},
            {"base.example": {"user": "a", "token_file": "/missing"}},
            {"": {"user": "a", "token": "b"}},
        ],
    )
    def test_what_is_no_login_is_refused(self, logins: dict[str, dict[str, str]]) -> None:
        with pytest.raises(ValidationError, match="logins"):
            RegistrySettings.model_validate({"logins": logins})
