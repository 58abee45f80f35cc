"""Defines what the library needs to know of its site: frozen, typed sections.

`config.load_settings` makes these from the operator's file and the environment; tests make them
directly. Sizes are bytes and durations seconds, and the names say so.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)


def _network(value: str) -> str:
    """Return an address or network in its plain form."""
    return str(ipaddress.ip_network(value))


Network = Annotated[str, AfterValidator(_network)]
"""An IP network such as `10.0.0.0/8`, or an address."""

_REGISTRY_HOST = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?\Z|\[[0-9A-Fa-f:]+\](?::[0-9]+)?\Z"
)
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


def registry_host(host: str) -> str:
    """Return the one name by which a registry is known; Docker's own has several."""
    return "docker.io" if host in _DOCKER_HUB else host.lower()


BUILTIN_DOCKERFILE = "Dockerfile.spack"
"""The value of `dockerfile` that names the recipe which comes with the library."""


GIT_SCHEMES = ("https", "http", "ssh", "git", "file")
"""How addresses of git repositories may begin, unless the site says otherwise."""


ORAS = "oras://"
"""How the address of a repository for SIFs begins."""


MIN_PASSWORD = 4
"""The length from which a password is masked by itself; a shorter one occurs in other words."""

MIN_TOKEN_LENGTH = 16
"""The length from which a URL's user without a password is taken for a token."""

MIN_KEY_LENGTH = 32
"""The least length of a key in `spack_cache_keys`: 128 bits, written in hexadecimal digits."""

_REPOSITORY = re.compile(rf"{ORAS}[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+")


SPACK_REPOSITORY = "https://github.com/spack/spack.git#v1.2.0"
SPACK_PACKAGES_REPOSITORY = "https://github.com/spack/spack-packages.git#v2026.06.0"
"""The newest release that is tested here, and the packages that were released with it."""

PKCS11 = "pkcs11:"
PKCS11_FORM = (
    f"{PKCS11}token=LABEL;object=LABEL?module-path=/path/to/module.so&pin-source=/path/to/pin"
)

SCAN_SBOM, SCAN_ARCHIVE = "{sbom}", "{archive}"
"""What in a scanner's arguments stands for the bill of materials, and for the image as an archive."""

_USERINFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#@\s]+)@")


def has_credentials(url: str) -> bool:
    """Return whether a URL contains a user, with or without a password."""
    return _USERINFO.match(url) is not None


def credentials_of(urls: Iterable[str]) -> tuple[SecretStr, ...]:
    """Return the secrets in some URLs, which output must not show, both escaped and plain.

    They are passwords, and users that have none and are long enough to be a token; the `git` of
    `ssh://git@` is no secret.
    """
    found: set[str] = set()
    for match in filter(None, map(_USERINFO.match, urls)):
        user, colon, password = match[1].partition(":")
        if password:
            found.add(match[1])
            found |= {text for text in (password, unquote(password)) if len(text) >= MIN_PASSWORD}
        elif not colon and len(user) >= MIN_TOKEN_LENGTH:
            found |= {user, unquote(user)}
    return tuple(map(SecretStr, sorted(found)))


class Section(BaseModel):
    """Groups settings that never change after the start; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Login(Section):
    """Says how to log in to one image registry, with the token or a file that contains it."""

    user: str = Field(min_length=1)
    token: SecretStr
    token_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _token_of_file(cls, values: Any) -> Any:
        if (
            not isinstance(values, Mapping)
            or values.get("token_file") is None
            or values.get("token") is not None
        ):
            return values
        try:
            return {**values, "token": Path(values["token_file"]).read_text("utf-8").rstrip("\r\n")}
        except (OSError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"token_file cannot be read: {error}") from None


class RegistrySettings(Section):
    """Describes the image registry; without `url`, nothing is pushed."""

    url: str | None = None
    user: str | None = None
    token: SecretStr | None = None
    images_prefix: str = ""
    private: bool = False
    """Whether nobody but the service reads the image registry, and an `oras` storage.

    Private images are pushed and stored only there.
    """
    logins: Mapping[str, Login] = {}
    """The logins of other registries, from which base images are pulled, by host."""

    @field_validator("logins", mode="after")
    @classmethod
    def _by_host(cls, value: Mapping[str, Login]) -> Mapping[str, Login]:
        for host in value:
            if not _REGISTRY_HOST.match(host):
                raise ValueError(
                    f"{host[:100]!r} is not a registry's host, such as registry.example.org:5000"
                )
        return value

    def login_for(self, host: str) -> Login | None:
        """Return how to log in to the registry on this host (and port), or None."""
        return self.all_logins().get(registry_host(host))

    def all_logins(self) -> dict[str, Login]:
        """Return every login, by host.

        That of the registry that images are pushed to replaces an entry of its host.
        """
        found = {registry_host(host): login for host, login in self.logins.items()}
        if self.url and self.user and self.token:
            found[registry_host(self.url.split("/")[0])] = Login(user=self.user, token=self.token)
        return found

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Return the tokens of all logins, which no output may show."""
        return tuple(login.token for login in self.all_logins().values())

    @field_validator("images_prefix", mode="before")
    @classmethod
    def _prefix_may_be_none(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("url", mode="after")
    @classmethod
    def _bare_host(cls, value: str | None) -> str | None:
        """Return the host of `https://host/`, as image names contain no scheme."""
        if not value:
            return None
        return value.removeprefix("https://").removeprefix("http://").rstrip("/")


class RepositorySettings(Section):
    """Says where workflows and packages are: git URLs or folders, each with an optional `#ref`."""

    workflow_repository: str
    default_workflow_repository_branch: str | None = None
    """The branch that the version `latest` means; None is the registry's own default branch."""
    software_repository: str | None = None
    allow_unlisted_commits: bool = False
    """Whether a version may be a commit on no branch and no tag of the workflow registry: hosts
    such as GitHub serve the commits of everybody's forks by their hashes.
    """
    mirror_max_age_s: float = Field(default=30.0, ge=0)
    git_timeout_s: float = Field(default=300.0, gt=0)
    allowed_git_schemes: tuple[str, ...] = GIT_SCHEMES
    allowed_git_hosts: tuple[str, ...] | None = None
    """The hosts that git talks to; None: those that the settings and the catalogue's packages name.
    """
    step_max_files: int = Field(default=10_000, gt=0)
    step_max_bytes: int = Field(default=512 * 1024**2, gt=0)

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Return the passwords in the repositories' URLs, which no output may show."""
        return credentials_of(filter(None, (self.workflow_repository, self.software_repository)))


class BuildSettings(Section):
    """Says how images are built and where their files are."""

    tmp_folder: Path
    builder_home: Path
    base_image: str | Mapping[str, str]
    runtime_base_image: str | Mapping[str, str] | None = None
    """The image that slim images are built on, without build tools; None is `os_image`."""
    slim: bool = False
    """Whether images are slim if neither request nor workflow says, and there is no `post_inst.sh`."""
    os_image: str | Mapping[str, str] = "debian:12"
    """The image that `BASE`/`BASE` builds the base image on, or a mapping from platform to image."""
    spack_repository: str | None = SPACK_REPOSITORY
    """The Spack of the base image that `BASE`/`BASE` builds: a git URL or a folder.

    Both may have a `#ref`.
    """
    spack_packages_repository: str | None = None
    """The packages for a Spack from 1.0 on; before, they are part of Spack.

    Without this and `spack_repository`, it is the packages of the default's release.
    """
    dockerfile: str = BUILTIN_DOCKERFILE
    spack_cfg: str | None = None
    max_concurrent_builds: int = Field(default=3, ge=1)
    singularity_sudo: bool = False

    storage: str = "folder"
    """Where finished SIFs are stored.

    `folder` is `<tmp_folder>/store`, a path another folder, which several machines may share;
    `oras://host/repository` is an OCI registry.
    """
    buildx_builder: str | None = None
    """A builder from `docker buildx create`; None is docker's default one."""
    build_cache: str | None = None
    """A repository of an image registry in which builders share layers; not for the docker driver."""
    attestations: bool = True
    """Whether pushed images have attestations of provenance, with all drivers but docker."""
    sbom_generator: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
    """The image that makes a software bill of materials for BuildKit, which is attested, too.

    With None, there is none.
    """
    build_jobs: int | None = Field(default=None, ge=1)
    """Compile jobs of one build; None divides the machine's cores among the concurrent builds."""
    ca_bundle: Path | None = None
    """PEM file that apt, pip, git and Spack trust inside the build; it is not left in the image."""
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    pip_index_url: str | None = None
    spack_mirror: str | None = None
    """A Spack source mirror (a URL or a folder), which is asked before the packages' own URLs."""
    apt_mirror: str | None = None
    """A mirror of Debian's or Ubuntu's archive, used in its place inside the build."""
    spack_cache: str = "mount"
    """Where builds share built packages: the build cache.

    It is `mount`, a cache mount of the builder; a folder or a repository of an OCI registry, which
    build hosts may share, with such a mount before it; or `none`.
    """
    spack_cache_keys: SecretStr | None = None
    """Keys, separated by blanks, with which packages in that folder or repository are signed.

    The first signs, and all verify. Unsigned packages are not used then.
    """

    unexecutable_targets: Literal["warn", "refuse"] = "warn"
    """The answer to a request for which Spack has to build what this host's CPU cannot execute."""
    steps_cgroup: str | None = Field(
        default="cic-builds", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$"
    )
    """The control group of all build steps; with None, memory, processes and CPU are not limited."""
    steps_memory_bytes: int | None = Field(default=None, ge=64 * 1024**2)
    """The memory of all build steps together; None is 7/8 of the machine's memory."""
    steps_pids: int | None = Field(default=16_384, ge=16)
    steps_cpus: float | None = Field(default=None, ge=0.1)
    """The CPUs of all build steps together; None is all of the machine's."""
    blocked_networks: tuple[Network, ...] = (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "fe80::/10",
        "fd00:ec2::254/128",
    )
    """Networks that build steps must not reach, besides this host and other containers."""
    reachable_networks: tuple[Network, ...] = ()
    """Networks that build steps may reach although they are of this host or blocked."""
    require_isolation: bool = False
    """Build nothing while build steps could reach this host's services, or have no limits."""

    uploads_folder: Path | None = None
    """Where folders that users send are kept, which several hosts may share.

    With None, it is a folder below `tmp_folder`.
    """
    machines: Path | None = None
    """YAML file with the site's own machines, added to the catalogue that is shipped."""

    total_timeout_s: float | None = Field(default=48 * 3600.0, gt=0)
    """The limit of one whole build; the limits below are of one command each."""
    build_timeout_s: float = Field(default=24 * 3600.0, gt=0)
    quiet_timeout_s: float = Field(default=4 * 3600.0, gt=0)
    convert_timeout_s: float = Field(default=2 * 3600.0, gt=0)
    push_timeout_s: float = Field(default=2 * 3600.0, gt=0)
    smoke_timeout_s: float = Field(default=300.0, gt=0)
    log_max_bytes: int = Field(default=64 * 1024**2, gt=0)
    min_free_bytes: int = Field(default=1024**3, ge=0)
    """Free disk under `tmp_folder` below which no stage begins; below half of it, there or where
    Docker keeps its layers, a stage is ended.
    """
    max_image_bytes: int | None = Field(default=64 * 1024**3, gt=0)
    """How large an image may be, unpacked."""

    sif_compressor: Literal["zstd", "gzip", "xz", "lzo", "lz4"] = "zstd"
    """How a SIF's files are compressed.

    zstd takes a third of gzip's time and is read by Linux 4.14 and later; a site whose kernels were
    built without it sets gzip, which every kernel reads.
    """
    sif_compression_level: int | None = Field(default=None, ge=1, le=22)
    """The level of compression; None is 3 for zstd and 6 for gzip. The others have no levels."""

    @property
    def mirrors_folder(self) -> Path:
        """Return the folder for mirrors of git repositories and copies of folders."""
        return self.tmp_folder / "mirrors"

    @property
    def uploads(self) -> Path:
        """Return the folder for folders that users send, each by its tree."""
        return self.uploads_folder or self.tmp_folder / "uploads"

    @property
    def builds_folder(self) -> Path:
        """Return the folder in which each running build has a folder of its own."""
        return self.tmp_folder / "builds"

    @model_validator(mode="before")
    @classmethod
    def _packages_of_the_default(cls, values: Any) -> Any:
        """Set the default's packages only for the default Spack, as another needs its own."""
        named = {"spack_repository", "spack_packages_repository"}
        if not isinstance(values, Mapping) or named & set(values):
            return values
        return {**values, "spack_packages_repository": SPACK_PACKAGES_REPOSITORY}

    @field_validator("dockerfile", mode="after")
    @classmethod
    def _the_recipe(cls, value: str) -> str:
        if Path(value).name != BUILTIN_DOCKERFILE:
            raise ValueError(
                f"only {BUILTIN_DOCKERFILE}, the recipe that comes with the service, can be used"
            )
        return value

    @field_validator("storage", mode="after")
    @classmethod
    def _folder_or_repository(cls, value: str) -> str:
        if value != "folder" and not value.startswith("/") and not _REPOSITORY.fullmatch(value):
            raise ValueError(
                "must be folder, a path that begins with /, or a repository such as "
                "oras://registry.example.org/group/images"
            )
        return value

    @field_validator("spack_cache", mode="after")
    @classmethod
    def _a_known_place(cls, value: str) -> str:
        if (
            value not in ("mount", "none")
            and not value.startswith("/")
            and not _REPOSITORY.fullmatch(value)
        ):
            raise ValueError(
                "must be mount, none, a path that begins with /, or a repository such as "
                "oras://registry.example.org/group/packages"
            )
        return value

    @field_validator("spack_cache_keys", mode="after")
    @classmethod
    def _long_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and any(
            len(key) < MIN_KEY_LENGTH for key in value.get_secret_value().split() or [""]
        ):
            raise ValueError(
                f"must hold keys of {MIN_KEY_LENGTH} characters or more, for example from: "
                "python3 -c 'import secrets; print(secrets.token_hex(32))'"
            )
        return value

    @field_validator("base_image", mode="after")
    @classmethod
    def _some_base(cls, value: str | Mapping[str, str]) -> str | Mapping[str, str]:
        if not value:
            raise ValueError("must name an image, or map platforms to images")
        return value

    @field_validator("pip_index_url", mode="after")
    @classmethod
    def _no_password_for_strangers(cls, value: str | None) -> str | None:
        if value is not None and has_credentials(value):
            raise ValueError(
                "must hold no user and password: what a package's build runs could read them. "
                "Name an index that needs none, such as a mirror that logs in by itself"
            )
        return value

    @property
    def proxies(self) -> dict[str, str]:
        """Return the proxy settings that are set, by the name of the environment variable."""
        values = {
            "http_proxy": self.http_proxy,
            "https_proxy": self.https_proxy,
            "no_proxy": self.no_proxy,
        }
        return {name: value for name, value in values.items() if value}

    @property
    def has_plain_proxies(self) -> bool:
        """Return whether no proxy's address has credentials, so that build steps may see it."""
        return not any(map(has_credentials, self.proxies.values()))

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Return the keys and passwords among these settings, which no output may show."""
        urls = (
            *self.proxies.values(),
            *filter(None, (self.apt_mirror, self.spack_mirror, self.spack_repository)),
            *filter(None, (self.spack_packages_repository, self.spack_cfg)),
        )
        keys = self.spack_cache_keys.get_secret_value().split() if self.spack_cache_keys else []
        return (*(SecretStr(key) for key in keys), *credentials_of(urls))

    @property
    def spack_mirror_folder(self) -> Path | None:
        """Return the Spack source mirror, if it is a folder of this machine."""
        return (
            Path(self.spack_mirror)
            if self.spack_mirror and self.spack_mirror.startswith("/")
            else None
        )

    @property
    def has_package_place(self) -> bool:
        """Return whether build hosts share built packages through a folder or a registry."""
        return self.spack_cache not in ("mount", "none")

    def jobs_per_build(self) -> int:
        """Return the compile jobs of one build: the setting, or its share of the CPUs.

        These are the CPUs that build steps may use.
        """
        cpus = min(self.steps_cpus or math.inf, os.cpu_count() or 1)
        return self.build_jobs or max(1, int(cpus) // self.max_concurrent_builds)

    def base_image_for(self, platform: str) -> str | None:
        """Return the base image for a platform such as `linux/arm64`, or None if it has none.

        `{platform}` in a plain value becomes `linux-arm64`: a reference cannot contain a second
        slash there.
        """
        return _for_platform(self.base_image, platform)

    def runtime_base_for(self, platform: str) -> str | None:
        """Return the image that a platform's slim images are built on, in the same notation."""
        return _for_platform(self.runtime_base_image or self.os_image, platform)

    def os_image_for(self, platform: str) -> str | None:
        """Return the operating system's image for a platform, in the same notation."""
        return _for_platform(self.os_image, platform)


def _for_platform(images: str | Mapping[str, str], platform: str) -> str | None:
    return (
        images.replace("{platform}", platform.replace("/", "-"))
        if isinstance(images, str)
        else images.get(platform)
    )


class TokenKey(Section):
    """Names a key on a PKCS#11 token, as a `pkcs11:` URI does (RFC 7512)."""

    module: Path
    token: str
    object: str
    pin_file: Path | None = None

    def __str__(self) -> str:
        return f"PKCS#11 token {self.token!r} (key {self.object!r})"

    @classmethod
    def of_uri(cls, uri: str) -> TokenKey:
        """Return the key that a URI names. Raises `ValueError`."""
        path, _, query = uri.removeprefix(PKCS11).partition("?")
        pairs = [part.partition("=") for part in (*path.split(";"), *query.split("&")) if part]
        given = {name: unquote(value) for name, _, value in pairs}
        if "pin-value" in given:
            raise ValueError("write the PIN into a file, and pin-source=/path/to/it in its place")
        known = {"token", "object", "module-path", "pin-source"}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"{unknown[0]} is not known; write {PKCS11_FORM}")
        if len(given) != len(pairs) or not all(map(given.get, ("token", "object", "module-path"))):
            raise ValueError(f"write {PKCS11_FORM}")
        pin = given.get("pin-source")
        return cls(
            module=Path(given["module-path"]),
            token=given["token"],
            object=given["object"],
            pin_file=Path(pin.removeprefix("file:")) if pin else None,
        )


class ProofSettings(Section):
    """Says with what an image shows what it is made of, and by whom."""

    sbom: bool = True
    """Whether images have a software bill of materials, also in their SIFs."""
    provenance: bool = True
    """Whether images have a statement of how they came about, also in their SIFs."""
    builder_id: str = Field(default="urn:cic:builder", pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[!-~]+$")
    """The URI by which statements name this service as who built."""
    key: Path | TokenKey | None = None
    """The private key that signs images, in PEM: Ed25519 or ECDSA on P-256; None signs nothing.

    A `pkcs11:` URI names one on a token.
    """
    old_public_keys: Path | None = None
    """Public keys that were used before, in PEM, which are published beside the present one."""

    @field_validator("key", mode="before")
    @classmethod
    def _on_a_token(cls, key: Any) -> Any:
        is_uri = isinstance(key, str) and key.startswith(PKCS11)
        return TokenKey.of_uri(key) if is_uri else key


class ScanSettings(Section):
    """Says which program looks for known vulnerabilities in images, and what it may find."""

    command: tuple[str, ...] = ()
    """A program with its arguments, which prints SARIF; empty scans nothing."""
    timeout_s: float = Field(default=600.0, gt=0)
    fail_on: Literal["low", "medium", "high", "critical"] | None = None
    """The severity from which on a build fails; None lets every build pass."""

    @field_validator("command")
    @classmethod
    def _has_something_to_scan(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        known = (SCAN_SBOM, SCAN_ARCHIVE)
        if command and not any(name in word for word in command[1:] for name in known):
            raise ValueError(f"write {' or '.join(known)} where the scanner takes what it scans")
        return command

    @model_validator(mode="after")
    def _fails_by_a_scanner(self) -> ScanSettings:
        if self.fail_on is not None and not self.command:
            raise ValueError("fail_on needs a command that scans")
        return self

    def wants(self, placeholder: str) -> bool:
        """Return whether the scanner is given a file."""
        return any(placeholder in word for word in self.command)


class LibrarySettings(Section):
    """Holds everything that `image_builder` needs; `cic_builder.py` loads no more than this."""

    registry: RegistrySettings = RegistrySettings()
    repositories: RepositorySettings
    build: BuildSettings
    proof: ProofSettings = ProofSettings()
    scan: ScanSettings = ScanSettings()

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Return every credential of every setting; `host.secrets.redactor` masks them in logs."""
        return (*self.registry.secrets, *self.repositories.secrets, *self.build.secrets)
