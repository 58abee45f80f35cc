"""What the library needs to know of its site: frozen, typed sections.

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
    """An address or network in its plain form."""
    return str(ipaddress.ip_network(value))


Network = Annotated[str, AfterValidator(_network)]
"""An IP network such as `10.0.0.0/8`, or an address."""

_REGISTRY_HOST = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?\Z|\[[0-9A-Fa-f:]+\](?::[0-9]+)?\Z"
)
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


def registry_host(host: str) -> str:
    """One name for each registry: Docker's own has several."""
    return "docker.io" if host in _DOCKER_HUB else host.lower()


BUILTIN_DOCKERFILE = "Dockerfile.spack"
"""The value of `dockerfile` that names the recipe which comes with the library."""


GIT_SCHEMES = ("https", "http", "ssh", "git", "file")
"""How addresses of git repositories may begin, unless the site says otherwise."""


ORAS = "oras://"
"""How the address of a repository for SIFs begins."""


MIN_PASSWORD = 4
"""A shorter one is hidden together with its user alone: it stands in every other word."""

MIN_TOKEN_LENGTH = 16
"""From which length on a URL's user without a password is taken for a token."""

MIN_KEY_LENGTH = 32
"""Of a key in `spack_cache_keys`: 128 bits, written in hexadecimal digits."""

_REPOSITORY = re.compile(rf"{ORAS}[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+")


SPACK_REPOSITORY = "https://github.com/spack/spack.git#v1.2.0"
SPACK_PACKAGES_REPOSITORY = "https://github.com/spack/spack-packages.git#v2026.06.0"
"""The newest release that is tested here, and the packages that came out with it."""

_USERINFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#@\s]+)@")


def has_credentials(url: str) -> bool:
    """Whether a URL holds a user, with or without a password."""
    return _USERINFO.match(url) is not None


def credentials_of(urls: Iterable[str]) -> tuple[SecretStr, ...]:
    """Return what output must not show of some URLs: passwords, and users that have none, as
    written and as they are meant; `ssh://git@` names nobody's secret.
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
    """A group of settings that never changes after the start; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Login(Section):
    """How to log in to one image registry; the token stands here or in a file."""

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
    """The image registry; without `url`, nothing is pushed."""

    url: str | None = None
    user: str | None = None
    token: SecretStr | None = None
    images_prefix: str = ""
    logins: Mapping[str, Login] = {}
    """Other registries, from which base images come: host to login."""

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
        """How to log in to the registry on this host (and port); nobody else's credentials."""
        return self.all_logins().get(registry_host(host))

    def all_logins(self) -> dict[str, Login]:
        """Every login, by host. That of the registry that images are pushed to goes before an entry
        of its host.
        """
        found = {registry_host(host): login for host, login in self.logins.items()}
        if self.url and self.user and self.token:
            found[registry_host(self.url.split("/")[0])] = Login(user=self.user, token=self.token)
        return found

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The tokens of all logins, which no output may show."""
        return tuple(login.token for login in self.all_logins().values())

    @field_validator("images_prefix", mode="before")
    @classmethod
    def _prefix_may_be_none(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("url", mode="after")
    @classmethod
    def _bare_host(cls, value: str | None) -> str | None:
        """`https://host/` names the same registry as `host`: image names hold no scheme."""
        if not value:
            return None
        return value.removeprefix("https://").removeprefix("http://").rstrip("/")


class RepositorySettings(Section):
    """Where workflows and packages come from: a git URL or a folder, each with an optional `#ref`."""

    workflow_repository: str
    default_workflow_repository_branch: str | None = None
    """What the version `latest` means; None: the registry's own default branch."""
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
        """The passwords in the repositories' URLs, which no output may show."""
        return credentials_of(filter(None, (self.workflow_repository, self.software_repository)))


class BuildSettings(Section):
    """How images are built and where their files lie."""

    tmp_folder: Path
    builder_home: Path
    base_image: str | Mapping[str, str]
    runtime_base_image: str | Mapping[str, str] | None = None
    """What slim images are put on, with nothing that only builds; None: `os_image`."""
    slim: bool = False
    """Whether images are slim where neither request nor workflow says, and there is no
    `post_inst.sh`.
    """
    os_image: str | Mapping[str, str] = "debian:12"
    """What `BASE`/`BASE` builds the base image on: an image, or a mapping from platform to image.
    """
    spack_repository: str | None = SPACK_REPOSITORY
    """The Spack in the base image that `BASE`/`BASE` builds: a git URL or a folder, with an
    optional `#ref`.
    """
    spack_packages_repository: str | None = None
    """The packages that go with a Spack from 1.0 on; before, they are part of Spack. Left out together
    with `spack_repository`: those of the default's release.
    """
    dockerfile: str = BUILTIN_DOCKERFILE
    spack_cfg: str | None = None
    max_concurrent_builds: int = Field(default=3, ge=1)
    singularity_sudo: bool = False

    storage: str = "folder"
    """Where finished SIFs lie: `folder` is `<tmp_folder>/store`, a path another folder, which
    several machines may share; `oras://host/repository` an OCI registry.
    """
    buildx_builder: str | None = None
    """A builder made with `docker buildx create`; None is docker's default one."""
    build_cache: str | None = None
    """A repository of an image registry in which builders keep layers for each other; not for the
    docker driver.
    """
    attestations: bool = True
    """Whether pushed images say how they came about, where the builder keeps that: all drivers but
    docker.
    """
    sbom_generator: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
    """An image that makes a software bill of materials for BuildKit, which is attested too; None:
    there is none.
    """
    build_jobs: int | None = Field(default=None, ge=1)
    """Compile jobs of one build; None: the machine's cores divided among the concurrent builds."""
    ca_bundle: Path | None = None
    """PEM file that apt, pip, git and Spack trust inside the build, and that is not left in the
    image.
    """
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    pip_index_url: str | None = None
    spack_mirror: str | None = None
    """A Spack source mirror (URL, or a folder of this machine) asked before the packages' own URLs.
    """
    apt_mirror: str | None = None
    """A mirror of Debian's or Ubuntu's archive, asked in its place inside the build."""
    spack_cache: str = "mount"
    """Where builds share built packages: `mount`, a cache mount of the builder; a folder or a
    repository of an OCI registry, which build hosts may share, with such a mount before it; or
    `none`.
    """
    spack_cache_keys: SecretStr | None = None
    """With what this service signs the packages that it puts into that folder or repository, and
    takes none that are not signed: keys in words of their own. The first signs, and all verify.
    """

    unexecutable_targets: Literal["warn", "refuse"] = "warn"
    """What a request gets whose target this host's CPU cannot execute, when Spack has to build for
    it.
    """
    steps_cgroup: str | None = Field(
        default="cic-builds", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$"
    )
    """The control group of all build steps; None: they have no limits of memory, processes and CPU.
    """
    steps_memory_bytes: int | None = Field(default=None, ge=64 * 1024**2)
    """What all of them together may use; None: 7/8 of the machine's memory."""
    steps_pids: int | None = Field(default=16_384, ge=16)
    steps_cpus: float | None = Field(default=None, ge=0.1)
    """None: all of the machine's."""
    blocked_networks: tuple[Network, ...] = (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "fe80::/10",
        "fd00:ec2::254/128",
    )
    """What build steps must not reach beside this host and other containers."""
    reachable_networks: tuple[Network, ...] = ()
    """What they reach although it lies on this host or in a blocked network."""
    require_isolation: bool = False
    """Build nothing while build steps could reach this host's services, or have no limits."""

    machines: Path | None = None
    """YAML file with the site's own machines, added to the catalogue that is shipped."""

    total_timeout_s: float | None = Field(default=48 * 3600.0, gt=0)
    """Of one build in all; the others are of one command each."""
    build_timeout_s: float = Field(default=24 * 3600.0, gt=0)
    quiet_timeout_s: float = Field(default=4 * 3600.0, gt=0)
    convert_timeout_s: float = Field(default=2 * 3600.0, gt=0)
    push_timeout_s: float = Field(default=2 * 3600.0, gt=0)
    smoke_timeout_s: float = Field(default=300.0, gt=0)
    log_max_bytes: int = Field(default=64 * 1024**2, gt=0)
    min_free_bytes: int = Field(default=1024**3, ge=0)
    """Free disk under `tmp_folder` below which no stage begins."""

    sif_compressor: Literal["zstd", "gzip", "xz", "lzo", "lz4"] = "zstd"
    """How a SIF's files are compressed. zstd takes a third of gzip's time and is read by Linux 4.14
    and later; a site whose kernels were built without it sets gzip, which every kernel reads.
    """
    sif_compression_level: int | None = Field(default=None, ge=1, le=22)
    """None: 3 for zstd, 6 for gzip. The other compressors have none."""

    @property
    def mirrors_folder(self) -> Path:
        """Where mirrors of git repositories and copies of folders are kept."""
        return self.tmp_folder / "mirrors"

    @property
    def builds_folder(self) -> Path:
        """Where each build that is going on has a folder of its own."""
        return self.tmp_folder / "builds"

    @model_validator(mode="before")
    @classmethod
    def _packages_of_the_default(cls, values: Any) -> Any:
        """Another Spack is not given packages that were made for the default one."""
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
        """The proxy settings that are set, by the name of the environment variable."""
        values = {
            "http_proxy": self.http_proxy,
            "https_proxy": self.https_proxy,
            "no_proxy": self.no_proxy,
        }
        return {name: value for name, value in values.items() if value}

    @property
    def has_plain_proxies(self) -> bool:
        """Whether no proxy's address holds a user and password: any step may then know it."""
        return not any(map(has_credentials, self.proxies.values()))

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The keys and passwords among these settings, which no output may show."""
        urls = (
            *self.proxies.values(),
            *filter(None, (self.apt_mirror, self.spack_mirror, self.spack_repository)),
            *filter(None, (self.spack_packages_repository, self.spack_cfg)),
        )
        keys = self.spack_cache_keys.get_secret_value().split() if self.spack_cache_keys else []
        return (*(SecretStr(key) for key in keys), *credentials_of(urls))

    @property
    def spack_mirror_folder(self) -> Path | None:
        """The Spack source mirror, if it is a folder of this machine."""
        return (
            Path(self.spack_mirror)
            if self.spack_mirror and self.spack_mirror.startswith("/")
            else None
        )

    @property
    def has_package_place(self) -> bool:
        """Whether build hosts share built packages through a folder or a registry."""
        return self.spack_cache not in ("mount", "none")

    def jobs_per_build(self) -> int:
        """Compile jobs of one build: what was set, else its share of the CPUs that build steps may
        use.
        """
        cpus = min(self.steps_cpus or math.inf, os.cpu_count() or 1)
        return self.build_jobs or max(1, int(cpus) // self.max_concurrent_builds)

    def base_image_for(self, platform: str) -> str | None:
        """The base image for a platform such as `linux/arm64`, or None where the mapping has none.

        `{platform}` in a plain value becomes `linux-arm64`: a reference cannot hold a second slash
        there.
        """
        return _for_platform(self.base_image, platform)

    def runtime_base_for(self, platform: str) -> str | None:
        """What the slim images of a platform are put on, in the same notation."""
        return _for_platform(self.runtime_base_image or self.os_image, platform)

    def os_image_for(self, platform: str) -> str | None:
        """The operating system's image for a platform, in the same notation."""
        return _for_platform(self.os_image, platform)


def _for_platform(images: str | Mapping[str, str], platform: str) -> str | None:
    return (
        images.replace("{platform}", platform.replace("/", "-"))
        if isinstance(images, str)
        else images.get(platform)
    )


class LibrarySettings(Section):
    """Everything that `image_builder` needs; `cic_builder.py` loads no more than this."""

    registry: RegistrySettings = RegistrySettings()
    repositories: RepositorySettings
    build: BuildSettings

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Every credential of every setting; `host.secrets.redactor` masks them in a log."""
        return (*self.registry.secrets, *self.repositories.secrets, *self.build.secrets)
