"""Defines the service's own settings; the library's are in `image_builder.settings`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from image_builder.settings import LibrarySettings, Section


def _split(value: Any) -> Any:
    """Return a list from the environment, where it is a text with commas."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


SecretList = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ServiceSettings(Section):
    """Says how the service listens, whom it knows and what it allows."""

    database: str = "sqlite:///db.sqlite"
    port: int = Field(default=5000, ge=1, le=65535)
    host: str = "0.0.0.0"
    application_root: str = "image_creation"
    secret_key: SecretStr
    old_secret_keys: SecretList = ()
    """Keys that still open sessions after `secret_key` was changed; newest first."""

    captcha_web_site_key: str | None = None
    captcha_site_key: SecretStr | None = None
    captcha_verify_url: str = "https://www.google.com/recaptcha/api/siteverify"
    captcha_script_url: str = "https://www.google.com/recaptcha/api.js"
    captcha_hosts: TextList = ("https://www.google.com", "https://www.gstatic.com")
    """Hosts of the provider's script and of its requests, which the sign-up page allows."""

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    behind_proxy: int = Field(default=0, ge=0, le=5)
    """How many proxies in front are trusted to name the client and the scheme."""
    web_processes: int = Field(default=2, ge=1)
    web_threads: int = Field(default=64, ge=2)
    max_connections_per_address: int = Field(default=256, ge=8)
    """Open connections of one address (IPv6: one /64) to each web process. Behind a proxy, the
    proxy bounds them.
    """

    log_format: Literal["text", "json"] = "text"
    """How the service's own log lines look: text, or a JSON object in each line."""
    log_stream_s: float = Field(default=25.0, gt=0, le=30)
    """How long one answer follows a log, before the client asks again.

    Front servers end an answer after 30 s.
    """
    executor: Literal["pool", "celery"] = "pool"
    """Which workers build: those of this machine, or of any machine, through Celery's broker."""
    broker_url: SecretStr | None = None
    """Celery's broker: redis://, rediss://, amqp:// or amqps://."""
    broker_options: Mapping[str, Any] = {}
    """Celery's `broker_transport_options`."""
    log_storage: Literal["folder", "database"] | None = None
    """Where logs are stored; None is a folder with `pool`, and the database with `celery`."""
    lost_worker_after_s: float = Field(default=60.0, ge=5)
    """How long a worker of another host may be silent before its builds begin again elsewhere."""
    worker_platforms: TextList | None = None
    """Platforms that this worker builds for natively; None is what buildx says."""
    worker_emulated_platforms: TextList | None = None
    """Platforms that this worker emulates; None is what buildx says."""

    download_links: str | None = None
    """The URL path under which a front server serves `<tmp_folder>/images/`.

    Downloads become expiring links there.
    """
    public_downloads: bool = False
    """Whether finished SIFs are also in `<tmp_folder>/images/`, for everybody to download."""

    signup_open: bool = True
    confirm_users: bool = False
    """Whether a user who signed up waits until an administrator confirms."""

    max_active_builds_per_user: int | None = Field(default=None, ge=1)
    """How many builds of one user run at once; None is all slots but one.

    So no user has to wait until all builds of another one have ended.
    """
    max_queued_builds_per_user: int = Field(default=1000, ge=1)
    max_stored_bytes_per_user: int | None = Field(default=None, ge=1)
    max_upload_bytes: int = Field(default=64 * 1024**2, ge=1024)
    """How large a request with a folder may be; 8 of them are taken at a time."""
    max_uploads_bytes_per_user: int = Field(default=1024**3, ge=0)
    """How much disk the folders may use that one user sends: the least recently used go first."""
    keep_uploads_s: float = Field(default=30 * 86400.0, ge=0)
    """How long a folder that a user has sent is kept after its last use."""
    stop_timeout_s: float = Field(default=30.0, ge=0)
    """How long a stopping service waits for running builds before it queues them again."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a run that lost its worker is started before it fails."""
    max_retries: int = Field(default=2, ge=0)
    """How often a run is retried that failed because docker or a git registry did not answer."""
    retry_delay_s: float = Field(default=5.0, ge=0)
    """How long the first retry waits; each further one waits three times as long."""

    cleanup_every_s: float | None = Field(default=3600.0, gt=0)
    """How often the pool cleans up; with None, only the command does."""
    keep_unreferenced_s: float = Field(default=30 * 86400.0, ge=0)
    """How long images that no name and no build points to are kept after their last use."""
    keep_unused_s: float | None = Field(default=None, ge=0)
    """How long every other image is kept after its last use; None is for ever."""
    max_images_bytes: int | None = Field(default=None, ge=0)
    """How much disk finished SIFs may use; the least recently used are removed first."""
    keep_logs_s: float | None = Field(default=None, ge=0)
    """How long the log of a build is kept after its end; None is for ever."""
    keep_audit_s: float | None = Field(default=None, ge=0)
    """How long audit events are kept; None is for ever."""
    max_logs_bytes: int | None = Field(default=None, ge=0)
    """How much disk logs of builds that ended may use; the oldest are removed first."""
    max_build_cache_bytes: int | None = Field(default=None, ge=0)
    """The size that BuildKit's whole cache is reduced to; with None, it is left alone."""

    @model_validator(mode="after")
    def _celery_has_what_it_needs(self) -> ServiceSettings:
        if self.executor == "celery":
            if self.broker_url is None:
                raise ValueError(
                    "the executor celery needs broker_url: write for example redis://host:6379/0"
                )
            if not self.database.startswith("postgres"):
                raise ValueError(
                    "the executor celery needs a database that hosts share: "
                    "write postgresql://user:password@host/name for database"
                )
        return self

    @property
    def keeps_logs_in_database(self) -> bool:
        return (
            self.log_storage or ("database" if self.executor == "celery" else "folder")
        ) == "database"

    @field_validator("application_root", "download_links", mode="after")
    @classmethod
    def _no_outer_slashes(cls, value: str | None) -> str | None:
        return value if value is None else value.strip("/")


class Settings(Section):
    """Holds all settings that the service runs with."""

    library: LibrarySettings
    service: ServiceSettings
