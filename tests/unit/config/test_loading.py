"""The operator's settings: the file of the first documentation, the environment, and what stops a
start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from config import ConfigError, ServiceSettings, load_library_settings, load_settings
from config.loading import SECTIONS
from image_builder.errors import Misconfigured
from tests.conftest import DATA, PROJECT
from tests.support.signing import make_key

SEED = DATA / "seed" / "configuration.py"
"""As the project's first documentation shows it, placeholders and all."""

FILLED = {
    "_put_username": "builder",
    "_put_token": "canary-token",
    "/path/to/software-catalog": "/srv/software-catalog",
    "/path/to/tmp": "/srv/tmp",
    "/path/to/image_creation/": "/srv/image_creation/",
    "_put_here_the_secret_key": "canary-secret-key",
    "_put_captcha_web_site_key": "web",
    "_put_captcha_site_key": "site",
}

ENOUGH = {"CIC_BUILD_TMP_FOLDER": "/srv/tmp", "CIC_SECRET_KEY": "canary-secret-key"}
"""What the shipped file leaves to be said."""


def filled(tmp_path: Path, **more: str) -> Path:
    """The first documentation's file with an operator's values; `more` are lines at its end."""
    text = SEED.read_text()
    for placeholder, value in FILLED.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    file = tmp_path / "configuration.py"
    file.write_text(text + "".join(f"{key} = {value}\n" for key, value in more.items()))
    return file


def complaint(path: Path | None, environ: dict[str, str], load: Any = load_settings) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return str(caught.value)


class TestTheFirstDocumentationsFile:
    def test_filled_in_it_starts_unchanged(self, tmp_path: Path) -> None:
        settings = load_settings(filled(tmp_path), {})
        library, service = settings.library, settings.service
        assert (library.registry.url, library.registry.user) == ("ghcr.io", "builder")
        assert library.registry.images_prefix == "ghcr.io/eflows4hpc/"
        assert library.registry.token == SecretStr("canary-token")
        assert (
            library.repositories.workflow_repository
            == "https://github.com/eflows4hpc/workflow-registry.git"
        )
        assert library.repositories.software_repository == "/srv/software-catalog/"
        build = library.build
        assert (build.tmp_folder, build.builder_home) == (
            Path("/srv/tmp"),
            Path("/srv/image_creation"),
        )
        assert (build.base_image, build.dockerfile) == (
            "ghcr.io/eflows4hpc/spack_base:0.19.2",
            "Dockerfile.spack",
        )
        assert (build.spack_cfg, build.max_concurrent_builds, build.singularity_sudo) == (
            "/srv/software-catalog/cfg",
            3,
            True,
        )
        assert (service.database, service.port, service.host) == (
            "sqlite:///db.sqlite",
            5000,
            "0.0.0.0",
        )
        assert (service.application_root, service.captcha_web_site_key) == ("image_creation", "web")
        assert service.secret_key == SecretStr("canary-secret-key")

    def test_without_a_registry(self, tmp_path: Path) -> None:
        lines = {
            "registry_cfg": "{'url': None, 'user': None, 'token': None, 'images_prefix': None}"
        }
        registry = load_settings(filled(tmp_path, **lines), {}).library.registry
        assert (registry.url, registry.user, registry.token, registry.images_prefix) == (
            None,
            None,
            None,
            "",
        )

    def test_placeholders_stop_the_start_all_at_once(self) -> None:
        message = complaint(SEED, {})
        for key in (
            "registry_cfg['user']",
            "registry_cfg['token']",
            "repositories_cfg['software_repository']",
            "build_cfg['tmp_folder']",
            "build_cfg['builder_home']",
            "build_cfg['spack_cfg']",
            "secret_key",
        ):
            assert f"\n  {key} is not set" in message
        assert "write a long random text" in message
        assert "CIC_BUILD_TMP_FOLDER in the environment" in message
        assert "captcha" not in message

    def test_credentials_of_no_registry_may_stay_placeholders(self) -> None:
        message = complaint(SEED, {"CIC_REGISTRY_URL": ""})
        assert "registry_cfg" not in message and "secret_key" in message

    def test_the_library_needs_none_of_the_services_keys(self, tmp_path: Path) -> None:
        file = tmp_path / "configuration.py"
        text = filled(tmp_path).read_text()
        file.write_text(text[: text.index("database =")])
        assert load_library_settings(file, {}).build.tmp_folder == Path("/srv/tmp")
        assert "secret_key: field required" in complaint(file, {})

    def test_the_library_names_its_own_placeholders(self) -> None:
        message = complaint(SEED, {}, load_library_settings)
        assert "build_cfg['tmp_folder']" in message and "secret_key" not in message


class TestTheShippedFile:
    def test_two_values_are_enough(self) -> None:
        settings = load_settings(environ=ENOUGH)
        assert settings.library.build.builder_home == PROJECT
        assert settings.library.registry.url is None
        assert settings.service.captcha_web_site_key is None

    def test_nothing_starts_with_what_is_public(self) -> None:
        message = complaint(None, {})
        assert "build_cfg['tmp_folder']" in message and "\n  secret_key" in message

    @pytest.mark.parametrize(
        "secret", ["", " ", "secret", "SECRET_KEY", "dev", "changeme", "<your key>", "_put_x"]
    )
    def test_public_secrets(self, secret: str) -> None:
        assert "\n  secret_key" in complaint(None, {**ENOUGH, "CIC_SECRET_KEY": secret})


class TestEnvironment:
    def test_it_goes_before_the_file(self, tmp_path: Path) -> None:
        settings = load_settings(
            filled(tmp_path),
            {
                "CIC_DATABASE": "sqlite:///other.sqlite",
                "CIC_PORT": "8080",
                "CIC_REGISTRY_URL": "https://registry.example/",
                "CIC_REPOSITORIES_WORKFLOW_REPOSITORY": "file:///srv/w",
                "CIC_BUILD_TMP_FOLDER": "/srv/other",
                "CIC_BUILD_SINGULARITY_SUDO": "False",
                "CIC_BUILD_BASE_IMAGE": "base:{platform}",
            },
        )
        assert (settings.service.database, settings.service.port) == (
            "sqlite:///other.sqlite",
            8080,
        )
        assert settings.library.registry.url == "registry.example"
        assert settings.library.repositories.workflow_repository == "file:///srv/w"
        assert settings.library.build.tmp_folder == Path("/srv/other")
        assert settings.library.build.singularity_sudo is False
        assert settings.library.build.base_image_for("linux/arm64") == "base:linux-arm64"

    def test_it_names_the_file(self, tmp_path: Path) -> None:
        file = filled(tmp_path, port="1234")
        assert load_settings(environ={"CIC_CONFIG": str(file)}).service.port == 1234

    def test_a_value_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("canary-from-file\n")
        settings = load_settings(environ={**ENOUGH, "CIC_SECRET_KEY_FILE": str(tmp_path / "key")})
        assert settings.service.secret_key == SecretStr("canary-from-file")

    def test_a_value_file_that_is_not_there(self, tmp_path: Path) -> None:
        message = complaint(None, {**ENOUGH, "CIC_REGISTRY_TOKEN_FILE": str(tmp_path / "nothing")})
        assert "CIC_REGISTRY_TOKEN_FILE names a file that cannot be read" in message

    def test_a_mapping_is_json(self) -> None:
        images = {"linux/amd64": "base:amd", "linux/arm64": "base:arm"}
        build = load_settings(
            environ={**ENOUGH, "CIC_BUILD_BASE_IMAGE": json.dumps(images)}
        ).library.build
        assert [build.base_image_for(name) for name in (*images, "linux/ppc64le")] == [
            "base:amd",
            "base:arm",
            None,
        ]

    def test_logins_are_a_mapping_too(self, tmp_path: Path) -> None:
        logins = {"base.example:5000": {"user": "reader", "token": "canary-token"}}
        (tmp_path / "logins.json").write_text(json.dumps(logins))
        for given in (
            {"CIC_REGISTRY_LOGINS": json.dumps(logins)},
            {"CIC_REGISTRY_LOGINS_FILE": str(tmp_path / "logins.json")},
        ):
            login = load_settings(None, {**ENOUGH, **given}).library.registry.login_for(
                "base.example:5000"
            )
            assert login is not None and login.token == SecretStr("canary-token")

    @pytest.mark.parametrize("image", ["{platform}", "base", "base:1"])
    def test_an_image_is_no_mapping(self, image: str) -> None:
        assert (
            load_settings(
                environ={**ENOUGH, "CIC_BUILD_BASE_IMAGE": image}
            ).library.build.base_image
            == image
        )

    def test_lists_have_commas(self) -> None:
        settings = load_settings(
            environ={
                **ENOUGH,
                "CIC_OLD_SECRET_KEYS": "one, two",
                "CIC_REPOSITORIES_ALLOWED_GIT_SCHEMES": "https, ssh",
                "CIC_REPOSITORIES_ALLOWED_GIT_HOSTS": "git.example.org, 10.0.0.1",
            }
        )
        assert settings.service.old_secret_keys == (SecretStr("one"), SecretStr("two"))
        assert settings.library.repositories.allowed_git_schemes == ("https", "ssh")
        assert settings.library.repositories.allowed_git_hosts == ("git.example.org", "10.0.0.1")

    def test_empty_is_none_where_none_is_allowed(self) -> None:
        settings = load_settings(environ={**ENOUGH, "CIC_BUILD_SPACK_CFG": "", "CIC_TLS_KEY": ""})
        assert (settings.library.build.spack_cfg, settings.service.tls_key) == (None, None)

    def test_another_spack_is_not_given_the_packages_of_the_default(self) -> None:
        build = load_settings(environ=ENOUGH).library.build
        assert build.spack_repository and "#v1.2" in build.spack_repository
        assert build.spack_packages_repository and "#v2026" in build.spack_packages_repository
        older = {**ENOUGH, "CIC_BUILD_SPACK_REPOSITORY": "/opt/spack-0.23"}
        assert load_settings(environ=older).library.build.spack_packages_repository is None

    def test_every_key_can_be_given(self) -> None:
        """Each key's default, written as text, comes back as it was."""
        for prefix, model in (*SECTIONS.values(), ("", ServiceSettings)):
            for key, field in model.model_fields.items():
                if field.is_required() or key == "dockerfile":
                    continue
                default = field.get_default()
                text = (
                    ",".join(default)
                    if isinstance(default, tuple)
                    else ""
                    if default is None
                    else str(default)
                )
                name = "_".join(filter(None, ("CIC", prefix, key.upper())))
                settings = load_settings(environ={**ENOUGH, name: text})
                assert getattr(section_of(settings, prefix), key) == default, name


def section_of(settings: Any, prefix: str) -> BaseModel:
    sections = {
        "": settings.service,
        "REGISTRY": settings.library.registry,
        "BUILD": settings.library.build,
        "PROOF": settings.library.proof,
        "SCAN": settings.library.scan,
        "REPOSITORIES": settings.library.repositories,
    }
    return sections[prefix]


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("environ", "key"),
        [
            ({"CIC_PORT": "many"}, "port"),
            ({"CIC_PORT": "0"}, "port"),
            ({"CIC_BUILD_MAX_CONCURRENT_BUILDS": "0"}, "build_cfg['max_concurrent_builds']"),
            ({"CIC_BUILD_BASE_IMAGE": ""}, "build_cfg['base_image']"),
            ({"CIC_REPOSITORIES_GIT_TIMEOUT_S": "soon"}, "repositories_cfg['git_timeout_s']"),
            ({"CIC_BUILD_BASE_IMAGE": '{"linux/amd64": 1}'}, "build_cfg['base_image"),
        ],
    )
    def test_a_wrong_value_is_named(self, environ: dict[str, str], key: str) -> None:
        assert f"\n  {key}" in complaint(None, {**ENOUGH, **environ})

    def test_a_key_that_cannot_be_used_stops_the_start(self, tmp_path: Path) -> None:
        key = make_key(tmp_path / "key.pem", "ed25519")
        given = {**ENOUGH, "CIC_PROOF_KEY": str(key)}
        assert load_settings(environ=given).library.proof.key == key
        key.chmod(0o644)
        for load in (load_settings, load_library_settings):
            assert f"Run chmod 600 {key}" in complaint(None, given, load)
        given["CIC_PROOF_KEY"] = str(tmp_path / "nothing.pem")
        assert "nothing.pem cannot be read" in complaint(None, given)

    def test_all_of_them_at_once(self) -> None:
        message = complaint(
            None,
            {"CIC_PORT": "x", "CIC_BUILD_BUILD_JOBS": "x", "CIC_REPOSITORIES_STEP_MAX_FILES": "x"},
        )
        for key in (
            "port",
            "build_cfg['build_jobs']",
            "repositories_cfg['step_max_files']",
            "secret_key",
            "build_cfg['tmp_folder']",
        ):
            assert f"\n  {key}" in message

    def test_an_unknown_key_of_a_section_is_an_error(self, tmp_path: Path) -> None:
        file = filled(
            tmp_path,
            more="build_cfg.update(concurrent_builds=3)\nrepositories_cfg.update(workflow_repo=1)\n"
            "registry_cfg['colour'] = 'red'\nregistry_cfg['tokens'] = 1",
        )
        message = complaint(file, {})
        assert (
            "build_cfg['concurrent_builds'] is not a key (did you mean max_concurrent_builds?)"
            in (message)
        )
        assert (
            "repositories_cfg['workflow_repo'] is not a key (did you mean workflow_repository?)"
            in (message)
        )
        assert "registry_cfg['tokens'] is not a key (did you mean token?)" in message
        assert (
            "registry_cfg['colour'] is not a key (leave it out; there are images_prefix, "
            in message
        )

    def test_an_unknown_key_of_a_login_is_an_error(self, tmp_path: Path) -> None:
        login = "{'host': {'user': 'me', 'tokn': 'x', 'token': 'x'}}"
        file = filled(tmp_path, more=f"registry_cfg['logins'] = {login}")
        assert "registry_cfg['logins.host.tokn'] is not a key (did you mean token?)" in complaint(
            file, {}
        )

    def test_the_first_services_default_branch_is_read(self, tmp_path: Path) -> None:
        file = filled(
            tmp_path, more="repositories_cfg['default_workflow_repository_branch'] = 'release'"
        )
        repositories = load_settings(file, {}).library.repositories
        assert repositories.default_workflow_repository_branch == "release"

    def test_a_section_that_is_no_dictionary(self, tmp_path: Path) -> None:
        assert "registry_cfg must be a dictionary" in complaint(
            filled(tmp_path, registry_cfg="'ghcr.io'"), {}
        )

    def test_no_file(self, tmp_path: Path) -> None:
        assert "There is no configuration file" in complaint(tmp_path / "none.py", {})

    @pytest.mark.parametrize(
        "text", ["port = = 1", "import nothing_of_this_name", "1 / 0", "\0", "port = '\udcff'"]
    )
    def test_a_file_that_cannot_be_run(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "configuration.py"
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        message = complaint(file, {})
        assert str(file) in message and "cannot be read" in message

    def test_it_is_the_operators_fault(self) -> None:
        assert issubclass(ConfigError, Misconfigured)

    def test_no_secret_is_told(self, tmp_path: Path) -> None:
        file = filled(
            tmp_path,
            port="'x'",
            old_secret_keys="7",
            registry_cfg="{'url': 'r', 'user': 1, 'token': 'canary-token', 'images_prefix': 2}",
        )
        message = complaint(file, {"CIC_DATABASE": "sqlite:///x"})
        assert "canary" not in message
        settings = load_settings(filled(tmp_path), {})
        assert "canary" not in f"{settings!r} {settings} {settings.model_dump()}"


def test_a_key_that_nobody_reads_is_told_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = filled(tmp_path)
    expected = load_settings(file, {})
    assert caplog.messages == []
    file.write_text(
        file.read_text()
        + "\nimport os\ndef helper(): pass\n_mine = 1\nprot = 7\nregistry_config = {}\n"
        "something = 'canary'\n"
    )

    assert load_settings(file, {}) == expected

    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "there is no key prot, and port is one. A name of your own may begin with '_'.",
        "there is no key registry_config, and registry_cfg is one. A name of your own may begin with '_'.",
        "there is no key something. A name of your own may begin with '_'.",
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_a_registrys_url_is_its_host(tmp_path: Path) -> None:
    for written in ("ghcr.io", "https://ghcr.io/", "http://ghcr.io"):
        environ = {"CIC_REGISTRY_URL": written}
        assert load_settings(filled(tmp_path), environ).library.registry.url == "ghcr.io"


def test_a_download_path_has_no_outer_slashes() -> None:
    service = load_settings(
        environ={
            **ENOUGH,
            "CIC_DOWNLOAD_LINKS": "/images/files/",
            "CIC_APPLICATION_ROOT": "/image_creation/",
        }
    ).service
    assert (service.download_links, service.application_root) == ("images/files", "image_creation")


def test_a_service_of_several_hosts_is_told_what_it_needs() -> None:
    several = {**ENOUGH, "CIC_EXECUTOR": "celery"}
    assert "redis://host:6379/0" in complaint(None, several)
    several["CIC_BROKER_URL"] = "redis://:canary-password@redis.example.org/0"
    assert "postgresql://" in complaint(None, several)
    several["CIC_DATABASE"] = "postgresql://cic:canary-password@db.example.org/cic"
    told = complaint(None, several)
    assert "CIC_BUILD_STORAGE" in told and "canary-password" not in told
    for storage in ("/srv/shared", "oras://registry.example.org/images"):
        settings = load_settings(None, {**several, "CIC_BUILD_STORAGE": storage})
        assert settings.service.keeps_logs_in_database and "canary-password" not in repr(
            settings.service.broker_url
        )
    assert not load_settings(None, ENOUGH).service.keeps_logs_in_database


def test_a_scanner_is_a_list_of_words_with_something_to_scan() -> None:
    said = {**ENOUGH, "CIC_SCAN_COMMAND": "grype,sbom:{sbom},-o,sarif", "CIC_SCAN_FAIL_ON": "high"}
    scan = load_library_settings(None, said).scan
    assert scan.command == ("grype", "sbom:{sbom}", "-o", "sarif") and scan.fail_on == "high"
    assert load_library_settings(None, ENOUGH).scan.command == ()
    for wrong, why in (
        ({"CIC_SCAN_COMMAND": "grype,-o,sarif"}, "write {sbom} or {archive}"),
        ({"CIC_SCAN_COMMAND": "{sbom}"}, "write {sbom} or {archive}"),
        ({"CIC_SCAN_FAIL_ON": "high"}, "fail_on needs a command"),
        ({**said, "CIC_SCAN_FAIL_ON": "severe"}, "'low', 'medium', 'high' or 'critical'"),
    ):
        assert why in complaint(None, {**ENOUGH, **wrong}, load_library_settings), wrong
