"""Defines the service's own settings; the library's are in `image_builder.settings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from image_builder.settings import LibrarySettings, Network, Section


def _split(value: Any) -> Any:
    """Return a list from the environment, where it is a text with commas."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


SecretList = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_split)]
NetworkList = Annotated[tuple[Network, ...], BeforeValidator(_split)]


MAX_ADDRESS = 254
_MAIL_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+"
)


def is_mail_address(text: str) -> bool:
    """Return whether a text is one mail address, of ASCII alone and without any quotes."""
    name = text.partition("@")[0]
    return len(text) <= MAX_ADDRESS and len(name) <= 64 and bool(_MAIL_ADDRESS.fullmatch(text))


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

    public_url: str | None = None
    """The address of the pages as users reach them, such as https://cic.example.org/image_creation.

    Links in mails and webhooks begin with it.
    """
    allowed_webhook_schemes: TextList = ("https",)
    """How addresses of webhooks may begin: https and http. With none, there are no webhooks."""
    allowed_webhook_networks: NetworkList = ()
    """Networks that webhooks may reach although they are private, or this machine's own."""
    webhook_proxy: str | None = None
    """The proxy that webhooks go through, which then has to keep them from what is inside."""
    smtp_host: str | None = None
    """The server that mail is handed to; with None, no mail is sent."""
    smtp_port: int | None = Field(default=None, ge=1, le=65535)
    """None is 587 with starttls, 465 with tls, and 25 with none."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    mail_sender: str | None = None
    """Whom mails come from: an address, such as cic@example.org."""
    needs_attention_after_s: float | None = Field(default=6 * 3600.0, gt=0)
    """How long a build may wait for its turn until its user is told; None is for ever."""
    keep_notices_s: float = Field(default=30 * 86400.0, ge=0)
    """How long users see which webhooks and mails were sent."""

    signup_open: bool = True
    confirm_users: bool = False
    """Whether a user who signed up waits until an administrator confirms."""

    calls_per_minute_per_user: int | None = Field(default=6000, ge=1)
    """How many calls and pages a user may ask for in a minute; None is as many as they like."""
    costly_calls_per_minute_per_user: int | None = Field(default=600, ge=1)
    """How many of them may be plans, builds, checks, scripts, and look-ups of the form."""
    calls_per_minute_per_address: int | None = Field(default=1200, ge=1)
    """How many calls and pages an address (IPv6: a /64) may ask for without a log-in."""
    call_counts_url: SecretStr | None = None
    """The Redis in which calls are counted: redis:// or rediss://.

    None is that of broker_url; without one, each process counts for itself.
    """
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
    max_uploads_bytes: int | None = Field(default=64 * 1024**3, ge=0)
    """How much disk the folders of all users may use; None is as much as there is."""
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

    @model_validator(mode="after")
    def _mail_has_what_it_needs(self) -> ServiceSettings:
        if self.smtp_host is None:
            return self
        if self.mail_sender is None or not is_mail_address(self.mail_sender):
            raise ValueError("mail needs mail_sender: write an address such as cic@example.org")
        if self.public_url is None:
            raise ValueError(
                "mail needs public_url, since it has links: "
                "write for example https://cic.example.org/image_creation"
            )
        if (self.smtp_user is None) != (self.smtp_password is None):
            raise ValueError("smtp_user and smtp_password go together: write both, or neither")
        if self.smtp_user is not None and self.smtp_security == "none":
            raise ValueError(
                "a password needs an encrypted connection: write starttls or tls for smtp_security"
            )
        return self

    @property
    def keeps_logs_in_database(self) -> bool:
        return (
            self.log_storage or ("database" if self.executor == "celery" else "folder")
        ) == "database"

    @field_validator("public_url", "webhook_proxy", mode="after")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[!-~]+", value):
            raise ValueError("must be an address that begins with https:// or http://")
        return value if value is None else value.rstrip("/")

    @field_validator("call_counts_url", mode="after")
    @classmethod
    def _redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match("rediss?://", value.get_secret_value()):
            raise ValueError("must begin with redis:// or rediss://")
        return value

    @field_validator("allowed_webhook_schemes", mode="after")
    @classmethod
    def _known_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if set(value) - {"https", "http"}:
            raise ValueError("may hold https and http")
        return value

    @field_validator("application_root", "download_links", mode="after")
    @classmethod
    def _no_outer_slashes(cls, value: str | None) -> str | None:
        return value if value is None else value.strip("/")


LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_safe_url(url: str) -> bool:
    """Return whether a URL is one over TLS, or one of this machine itself."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_plain = parts.username is None and parts.password is None and not parts.fragment
    is_printable = url.isascii() and url.isprintable() and " " not in url
    is_known = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    return bool(parts.hostname) and is_plain and is_printable and is_known


class OidcSettings(Section):
    """Says which OpenID provider logs users in, and what its claims mean here."""

    issuer: str | None = None
    """The provider's issuer identifier, written exactly as the provider writes it."""
    client_id: str | None = None
    client_secret: SecretStr | None = None
    device_client_id: str | None = None
    """A public client for the device flow of `cic login`; None offers none."""
    name: str = Field(default="your institute", min_length=1, max_length=60)
    scopes: TextList = ("openid", "profile")
    user_name_claim: str = "preferred_username"
    groups_claim: str | None = None
    administrator_groups: TextList = ()
    """Groups of the provider whose members are administrators; with none, operators name them."""
    groups_valid_s: float = Field(default=7 * 86400.0, ge=60)
    """How long groups and administrators' rights hold after the log-in that brought them."""
    token_valid_s: float = Field(default=30 * 86400.0, ge=60)
    """How long a token is good for that the device flow gives."""
    clock_leeway_s: float = Field(default=60.0, ge=0, le=300)
    """How far the provider's clock may be off."""
    redirect_uri: str | None = None
    """Where the provider sends browsers back; None derives it from the request."""
    local_accounts: bool = True
    """Whether passwords that this service keeps log in; tokens always do."""

    @property
    def is_on(self) -> bool:
        """Return whether pages offer the log-in."""
        return self.issuer is not None

    @property
    def has_device_flow(self) -> bool:
        return self.is_on and self.device_client_id is not None

    @field_validator("issuer", "redirect_uri", mode="after")
    @classmethod
    def _is_safe(cls, value: str | None) -> str | None:
        if value is not None and not is_safe_url(value):
            raise ValueError(
                "must be a URL that begins with https:// (http:// on this machine alone)"
            )
        return value

    @model_validator(mode="after")
    def _hangs_together(self) -> OidcSettings:
        if self.issuer is None:
            if not self.local_accounts:
                raise ValueError("without local_accounts nobody could log in: write an issuer, too")
            if self.client_id or self.device_client_id:
                raise ValueError("a client needs the provider's issuer: write issuer, too")
            return self
        if self.client_id is None:
            raise ValueError("issuer needs client_id: write what the provider calls this service")
        if "openid" not in self.scopes:
            raise ValueError("scopes must have openid among them")
        if self.administrator_groups and self.groups_claim is None:
            raise ValueError("administrator_groups needs groups_claim")
        return self


class Settings(Section):
    """Holds all settings that the service runs with."""

    library: LibrarySettings
    service: ServiceSettings
    oidc: OidcSettings = OidcSettings()
