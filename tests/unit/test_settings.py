"""Which settings hold credentials: every one of them is known, and none reaches a stranger's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from image_builder.host.secrets import MASK, Secret, redactor
from image_builder.settings import (
    BuildSettings,
    LibrarySettings,
    Login,
    RegistrySettings,
    RepositorySettings,
    credentials_of,
    has_credentials,
)

PASSWORD = "canary-p%40ss"
URL = f"https://user:{PASSWORD}@host.test/path"


def settings(**build: Any) -> LibrarySettings:
    return LibrarySettings(
        repositories=RepositorySettings(
            workflow_repository=URL.replace("canary", "canary-w"),
            software_repository=URL.replace("canary", "canary-s"),
        ),
        registry=RegistrySettings(
            url="registry.test",
            user="u",
            token=Secret("canary-token"),
            logins={"other.test": Login(user="u", token=Secret("canary-login"))},
        ),
        build=BuildSettings(
            tmp_folder=Path("/t"), builder_home=Path("/h"), base_image="base", **build
        ),
    )


def test_every_credential_of_every_setting_is_masked() -> None:
    """Each setting that is text and may hold a URL is tried, so that a new one is not forgotten."""
    urls = [
        name
        for name, field in BuildSettings.model_fields.items()
        if field.annotation in (str, str | None)
        and name.endswith(("_proxy", "_mirror", "_url", "_repository", "_cfg"))
        and name not in ("no_proxy", "pip_index_url")
    ]
    assert len(urls) >= 6, urls
    given = {name: URL.replace("canary", f"canary-{name}") for name in urls}
    made = settings(**given, spack_cache_keys=Secret("canary-key-" + "0" * 32))
    redact = redactor(made.secrets)
    for name, url in given.items():
        for text in (url, f"canary-{name}-p%40ss", f"canary-{name}-p@ss"):
            assert "canary" not in redact(f"error: {text} failed") and MASK in redact(text), name
    for text in ("canary-token", "canary-login", "canary-key-" + "0" * 32, "canary-w-p@ss"):
        assert redact(text) == MASK


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        (URL, True),
        ("https://token@host.test", True),
        ("https://host.test/a@b", False),
        ("http://proxy.test:3128", False),
        ("localhost,.example.org", False),
        ("/srv/mirror", False),
        ("git@github.com:group/name", False),
    ],
)
def test_which_urls_hold_credentials(url: str, holds: bool) -> None:
    assert has_credentials(url) is holds


def test_a_user_that_is_no_secret_masks_nothing() -> None:
    assert credentials_of(["ssh://git@host.test/x", "https://u@host.test", "x"]) == ()
    token = "ghp_0123456789abcdef0123"
    assert token in [secret.get_secret_value() for secret in credentials_of([f"https://{token}@h"])]
    short = [secret.get_secret_value() for secret in credentials_of(["http://u:pw@h"])]
    assert short == ["u:pw"]


def test_an_index_for_pip_holds_no_password() -> None:
    with pytest.raises(ValidationError, match="what a package's build runs could read them"):
        settings(pip_index_url=URL)
    assert settings(pip_index_url="https://host.test/simple").build.pip_index_url
