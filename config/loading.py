"""Turns `configuration.py` and the environment into typed settings.

Every key of the file can be given as `CIC_<NAME>` in the environment, those of the sections as
`CIC_<SECTION>_<NAME>`; with `_FILE` behind it, the value is read from the file named there. The
environment wins.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import runpy
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from config.settings import OidcSettings, ServiceSettings, Settings
from image_builder.errors import Misconfigured
from image_builder.proof import keys
from image_builder.settings import (
    BuildSettings,
    LibrarySettings,
    Login,
    ProofSettings,
    RegistrySettings,
    RepositorySettings,
    ScanSettings,
)

PROJECT = Path(__file__).resolve().parent.parent
DEFAULT_FILE = PROJECT / "config" / "configuration.py"

SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "registry_cfg": ("REGISTRY", RegistrySettings),
    "repositories_cfg": ("REPOSITORIES", RepositorySettings),
    "build_cfg": ("BUILD", BuildSettings),
    "proof_cfg": ("PROOF", ProofSettings),
    "scan_cfg": ("SCAN", ScanSettings),
}
"""The sections by their names in the file: the name in the environment, and the model."""
SERVICE_SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {"oidc_cfg": ("OIDC", OidcSettings)}
"""The same of the service alone, which the library does not read."""

_log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"_put_|/path/to(/|$)|<.*>\Z|change_?me\Z", re.IGNORECASE)
_PUBLIC_SECRETS = frozenset(
    {"", "secret", "secret_key", "dev", "development", "password", "test", "default"}
)
_MAY_BE_PLACEHOLDERS = frozenset({"captcha_web_site_key", "captcha_site_key"})
"""Keys that a service can do without: their placeholder means that they are not set."""


class ConfigError(Misconfigured):
    """The settings do not suffice to start; the message lists every wrong key and what to write."""


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the service's settings, the library's among them. Raises `ConfigError`."""
    source = _Source(path, environ)
    library = _library(source)
    service = source.model(ServiceSettings, source.values, "", "")
    own = {
        name: source.model(model, source.section(name), name, prefix)
        for name, (prefix, model) in SERVICE_SECTIONS.items()
    }
    if library is not None and service is not None:
        source.hold_together(library, service)  # type: ignore[arg-type]
    source.fail_if_wrong()
    source.warn_of_unknown_keys()
    return Settings(library=library, service=service, oidc=own["oidc_cfg"])  # type: ignore[arg-type]


def load_library_settings(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> LibrarySettings:
    """Return what the library needs, from the same file; the service's keys may be missing.

    Raises `ConfigError`.
    """
    source = _Source(path, environ)
    library = _library(source)
    source.fail_if_wrong()
    return library  # type: ignore[return-value]


def _library(source: _Source) -> LibrarySettings | None:
    sections = {
        name: source.model(model, source.section(name), name, prefix)
        for name, (prefix, model) in SECTIONS.items()
    }
    if any(section is None for section in sections.values()):
        return None
    source.read_keys(sections["proof_cfg"])  # type: ignore[arg-type]
    return LibrarySettings(
        registry=sections["registry_cfg"],  # type: ignore[arg-type]
        repositories=sections["repositories_cfg"],  # type: ignore[arg-type]
        build=sections["build_cfg"],  # type: ignore[arg-type]
        proof=sections["proof_cfg"],  # type: ignore[arg-type]
        scan=sections["scan_cfg"],  # type: ignore[arg-type]
    )


class _Source:
    """Reads a configuration file and the environment, and collects what is wrong with them."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.path = path or Path(environ.get("CIC_CONFIG") or DEFAULT_FILE)
        self.values = self._read_file()
        self.problems: list[str] = []

    def _read_file(self) -> dict[str, Any]:
        try:
            values = runpy.run_path(str(self.path))
        except FileNotFoundError:
            raise ConfigError(
                f"There is no configuration file {self.path}.",
                hint="Write one, or name another with CIC_CONFIG.",
            ) from None
        except Exception as error:
            raise ConfigError(
                f"The configuration file {self.path} cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error
        return {key: value for key, value in values.items() if not key.startswith("__")}

    def section(self, name: str) -> dict[str, Any]:
        """Return the values of a section; for `build_cfg` with what may be left out."""
        given = self.values.get(name, {})
        if not isinstance(given, Mapping):
            self.problems.append(f"{name} must be a dictionary")
            return {}
        return ({"builder_home": PROJECT} if name == "build_cfg" else {}) | dict(given)

    def model(
        self, model: type[BaseModel], given: Mapping[str, Any], section: str, prefix: str
    ) -> BaseModel | None:
        """Return one section as its model, or None with the problems noted."""
        label = (lambda key: f"{section}[{key!r}]") if section else (lambda key: key)
        values = {
            key: value for key, value in given.items() if section or key in model.model_fields
        }
        values.update(self._from_environment(model, prefix))
        before = len(self.problems)
        for key in list(values):
            if self._is_placeholder(key, values[key]):
                if key in _MAY_BE_PLACEHOLDERS:
                    del values[key]
                elif not _unused(section, values):
                    self.problems.append(
                        f"{label(key)} is not set to a value of your own ({_hint(key, prefix)})"
                    )
        try:
            settings = model.model_validate(values)
        except ValidationError as error:
            self.problems += [
                _unknown_key(label(".".join(map(str, detail["loc"]))), detail["loc"], model)
                if detail["type"] == "extra_forbidden"
                else f"{label('.'.join(map(str, detail['loc'])))}: {detail['msg'].lower()} "
                f"({_hint(str(detail['loc'][0]) if detail['loc'] else section, prefix)})"
                for detail in error.errors(include_url=False, include_input=False)
            ]
            return None
        return settings if len(self.problems) == before else None

    def warn_of_unknown_keys(self) -> None:
        """Warn of keys that are not read and may be slips, and go on.

        A file of the first version of this service may have such keys, and still works.
        """
        known = (*SECTIONS, *SERVICE_SECTIONS, *ServiceSettings.model_fields)
        for key, value in self.values.items():
            if (
                key in known
                or key.startswith("_")
                or callable(value)
                or isinstance(value, types.ModuleType)
            ):
                continue
            close = difflib.get_close_matches(key.lower(), known, n=1)
            _log.warning(
                "%s: there is no key %s%s. A name of your own may begin with '_'.",
                self.path,
                key,
                f", and {close[0]} is one" if close else "",
            )

    def read_keys(self, settings: ProofSettings) -> None:
        """Note a problem if a key cannot be used: it stops the start, not the first build."""
        try:
            keys.published(settings)
        except Misconfigured as error:
            self.problems.append(f"proof_cfg: {error.message} {error.hint}")

    def hold_together(self, library: LibrarySettings, service: ServiceSettings) -> None:
        """Note a problem if several hosts would not find the same images."""
        if service.executor == "celery" and library.build.storage == "folder":
            self.problems.append(
                "build_cfg['storage'] must be one for all hosts when executor is celery (write a "
                "folder that they share, or oras://host/repository; CIC_BUILD_STORAGE does the same)"
            )

    def fail_if_wrong(self) -> None:
        if self.problems:
            raise ConfigError(
                f"The configuration {self.path} cannot be used:\n  " + "\n  ".join(self.problems)
            )

    @staticmethod
    def _is_placeholder(key: str, value: Any) -> bool:
        if (
            key == "secret_key"
            and isinstance(value, str)
            and value.strip().lower() in _PUBLIC_SECRETS
        ):
            return True
        return isinstance(value, (str, Path)) and bool(_PLACEHOLDER.search(str(value)))

    def _from_environment(self, model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, field in model.model_fields.items():
            name = "_".join(part for part in ("CIC", prefix, key.upper()) if part)
            text = self.environ.get(name)
            if f"{name}_FILE" in self.environ:
                text = self._read_value_file(f"{name}_FILE")
            if text is not None:
                yield key, _parsed(text, field)

    def _read_value_file(self, name: str) -> str:
        try:
            return Path(self.environ[name]).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{name} names a file that cannot be read: {error}")
            return ""


def _unknown_key(label: str, path: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Return that there is no such key, and the nearest one, or else all of the section."""
    known = sorted(model.model_fields if len(path) == 1 else Login.model_fields)
    near = difflib.get_close_matches(str(path[-1]).lower(), known, n=1)
    if near:
        return f"{label} is not a key (did you mean {near[0]}?)"
    return f"{label} is not a key (leave it out; there are {', '.join(known)})"


def _unused(section: str, values: Mapping[str, Any]) -> bool:
    """Return whether a section is not used: credentials for a server that is not named."""
    needed = {"registry_cfg": "url", "oidc_cfg": "issuer"}
    return section in needed and not values.get(needed[section])


def _parsed(text: str, field: FieldInfo) -> Any:
    """Return a value from the environment as the field's type.

    Empty is None if None is allowed, commas separate a list, JSON is a mapping.
    """
    if text == "" and type(None) in get_args(field.annotation):
        return None
    if tuple in {get_origin(kind) for kind in (field.annotation, *get_args(field.annotation))}:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


_HINTS = {
    "secret_key": "write a long random text, for example from: "
    "python3 -c 'import secrets; print(secrets.token_hex(32))'",
    "tmp_folder": "write the folder in which images are made and kept, for example /var/lib/cic",
    "software_repository": "write the folder or git URL of the software catalogue, or None",
    "spack_cfg": "write the folder or git URL of the site's Spack configuration, or None",
    "workflow_repository": "write the git URL of the workflow registry",
    "base_image": "write the name of an image with Spack in it",
    "user": "write the image registry's user, or None",
    "token": "write the image registry's token, or None",
}


def _hint(key: str, prefix: str) -> str:
    name = "_".join(part for part in ("CIC", prefix, key.upper()) if part)
    return f"{_HINTS.get(key, 'write a value')}; {name} in the environment does the same"
