"""Define the tables: columns, keys and indexes only.

A **build** is what one user asked for; it points at a **run**, which makes one identity. A build's
own `state` is set when it has ended; until then it stands where its run stands.
"""

from __future__ import annotations

import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from image_builder.state import ACTIVE, BuildState
from service.db.database import UtcTime, db, now

PRIVATE, SITE = "private", "site"
Time = UtcTime()
State = sa.Enum(BuildState, native_enum=False, length=16, create_constraint=False)
IS_ACTIVE = "state IN ({})".format(
    ", ".join(f"'{state.value}'" for state in BuildState if state in ACTIVE)
)


class User(db.Model):  # type: ignore[name-defined,misc]
    """Who may use the service. `credential_version` grows whenever what proves the user changes."""

    __tablename__ = "users"
    __table_args__ = (sa.Index("one_user_of_a_name", sa.text("lower(name)"), unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(sa.String(256))
    is_admin: Mapped[bool] = mapped_column(default=False)
    admin_until: Mapped[datetime.datetime | None] = mapped_column(Time)
    """When `is_admin` ends, if an OpenID provider said it; None: an operator did."""
    is_active: Mapped[bool] = mapped_column(default=True)
    is_confirmed: Mapped[bool] = mapped_column(default=True)
    credential_version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class Token(db.Model):  # type: ignore[name-defined,misc]
    """A secret that stands for a user; only its digest is kept."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(sa.String(100))
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    expires_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    last_used_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class Run(db.Model):  # type: ignore[name-defined,misc]
    """The work that makes one identity.

    `join_key` is what requests must share to share the run while it is active.
    """

    __tablename__ = "runs"
    __table_args__ = (
        sa.Index(
            "one_active_run",
            "join_key",
            unique=True,
            sqlite_where=sa.text(IS_ACTIVE),
            postgresql_where=sa.text(IS_ACTIVE),
        ),
        sa.Index("runs_by_state", "state", "created_at"),
        sa.Index("runs_by_identity", "identity", "ended_at"),
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    join_key: Mapped[str] = mapped_column(sa.String(100))
    identity: Mapped[str | None] = mapped_column(sa.String(100))
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id", ondelete="SET NULL"))
    platform: Mapped[str] = mapped_column(sa.String(40))
    target: Mapped[str] = mapped_column(sa.String(60), default="")
    force: Mapped[bool] = mapped_column(default=False)
    state: Mapped[BuildState] = mapped_column(State)
    stage: Mapped[str | None] = mapped_column(sa.String(40))
    message: Mapped[str | None] = mapped_column(sa.Text)
    hint: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[str | None] = mapped_column(sa.String(40))
    progress_done: Mapped[int | None]
    progress_total: Mapped[int | None]
    progress_what: Mapped[str | None] = mapped_column(sa.String(200))
    worker: Mapped[str | None] = mapped_column(sa.String(100), index=True)
    heartbeat_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    attempts: Mapped[int] = mapped_column(default=0)
    retries: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime.datetime | None] = mapped_column(Time)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    started_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    building_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    converting_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    ended_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    audit: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class Build(db.Model):  # type: ignore[name-defined,misc]
    """A user's request, the names that it gives, and the file that was made.

    `visibility` says who may see the image: everybody (`SITE`), or the user and those with whom it
    is shared (`PRIVATE`).
    """

    __tablename__ = "builds"
    __table_args__ = (
        sa.Index("builds_by_user", "user_id", "created_at"),
        sa.Index("builds_by_image", "image_id"),
        sa.Index("builds_by_filename", "filename"),
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    run_id: Mapped[str] = mapped_column(sa.ForeignKey("runs.id"), index=True)
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    inputs: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    image_id: Mapped[str] = mapped_column(sa.String(500))
    filename: Mapped[str | None] = mapped_column(sa.String(255))
    engine: Mapped[str] = mapped_column(sa.String(20))
    push: Mapped[bool] = mapped_column(default=False)
    visibility: Mapped[str] = mapped_column(sa.String(16), default=SITE, server_default=SITE)
    warnings: Mapped[list[str]] = mapped_column(sa.JSON)
    state: Mapped[BuildState | None] = mapped_column(State)
    message: Mapped[str | None] = mapped_column(sa.Text)
    hint: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[str | None] = mapped_column(sa.String(40))
    sha256: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    size_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    pushed_digest: Mapped[str | None] = mapped_column(sa.String(100))
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    ended_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    log_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    """How much of its run's log is this build's: what comes after it was made for others. None: all
    of it.
    """


class TimelineRow(db.Model):  # type: ignore[name-defined,misc]
    """What ran in a run, and when, as `image_builder.timeline` writes it."""

    __tablename__ = "timelines"
    __table_args__ = (sa.Index("timelines_by_time", "written_at"),)

    run_id: Mapped[str] = mapped_column(
        sa.String(36), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    document: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    written_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class Share(db.Model):  # type: ignore[name-defined,misc]
    """A user with whom the owner of a private image shares it."""

    __tablename__ = "shares"

    image_id: Mapped[str] = mapped_column(sa.String(500), primary_key=True)
    owner_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class Subject(db.Model):  # type: ignore[name-defined,misc]
    """Whom an OpenID provider knows by `subject`, and who that is here."""

    __tablename__ = "subjects"

    issuer: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    subject: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class UsedOnce(db.Model):  # type: ignore[name-defined,misc]
    """The digest of something that logs in once, kept until it would be refused anyway."""

    __tablename__ = "used_once"

    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    until: Mapped[datetime.datetime] = mapped_column(Time, index=True)


class Group(db.Model):  # type: ignore[name-defined,misc]
    """Users with whom images are shared together: an operator's (`is_local`), or a provider's."""

    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    is_local: Mapped[bool]
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class Membership(db.Model):  # type: ignore[name-defined,misc]
    """A user in a group; `until` ends what a provider said."""

    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(
        sa.ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    until: Mapped[datetime.datetime | None] = mapped_column(Time)


class GroupShare(db.Model):  # type: ignore[name-defined,misc]
    """A group with which the owner of a private image shares it."""

    __tablename__ = "group_shares"

    image_id: Mapped[str] = mapped_column(sa.String(500), primary_key=True)
    owner_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    group_id: Mapped[int] = mapped_column(
        sa.ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class UploadRow(db.Model):  # type: ignore[name-defined,misc]
    """A folder that a user has sent, by its git tree."""

    __tablename__ = "uploads"

    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    tree: Mapped[str] = mapped_column(sa.String(40), primary_key=True, index=True)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    used_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class GitCredential(db.Model):  # type: ignore[name-defined,misc]
    """With what a user logs in to a git host; `sealed` is encrypted (`service.sealing`)."""

    __tablename__ = "git_credentials"
    __table_args__ = (sa.UniqueConstraint("user_id", "host", name="one_credential_of_a_host"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    host: Mapped[str] = mapped_column(sa.String(255))
    login: Mapped[str] = mapped_column(sa.String(100))
    sealed: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class WebhookRow(db.Model):  # type: ignore[name-defined,misc]
    """An address that is told of a user's builds; `sealed` is its secret, encrypted."""

    __tablename__ = "webhooks"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(sa.String(500))
    events: Mapped[list[str]] = mapped_column(sa.JSON)
    sealed: Mapped[str] = mapped_column(sa.Text)
    is_on: Mapped[bool] = mapped_column(default=True)
    why_off: Mapped[str | None] = mapped_column(sa.String(200))
    """Why the service turned it off by itself."""
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class MailAddress(db.Model):  # type: ignore[name-defined,misc]
    """Where a user gets mail, once the user has shown to read it there."""

    __tablename__ = "mail_addresses"

    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    address: Mapped[str] = mapped_column(sa.String(254))
    events: Mapped[list[str]] = mapped_column(sa.JSON)
    is_on: Mapped[bool] = mapped_column(default=True)
    confirmed_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    changed_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class Notice(db.Model):  # type: ignore[name-defined,misc]
    """What a user is told of a build, by one webhook or by mail: sent, or still to be sent.

    It is written in the transaction that moves the build. `outcome` is None until it was sent or
    given up; `claimed_until` keeps other senders from it.
    """

    __tablename__ = "notices"
    __table_args__ = (
        sa.UniqueConstraint("build_id", "event", "channel", name="one_notice_of_an_event"),
        sa.Index("notices_by_time", "outcome", "next_try_at"),
        sa.Index("notices_by_user", "user_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    build_id: Mapped[str | None] = mapped_column(sa.ForeignKey("builds.id", ondelete="CASCADE"))
    webhook_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("webhooks.id", ondelete="CASCADE"), index=True
    )
    channel: Mapped[str] = mapped_column(sa.String(40))
    event: Mapped[str] = mapped_column(sa.String(40))
    facts: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    next_try_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    claimed_until: Mapped[datetime.datetime | None] = mapped_column(Time)
    tries: Mapped[int] = mapped_column(default=0)
    tried: Mapped[list[dict[str, Any]]] = mapped_column(sa.JSON)
    outcome: Mapped[str | None] = mapped_column(sa.String(16))
    ended_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class FailedLogin(db.Model):  # type: ignore[name-defined,misc]
    """The number of recent failed logins for a `key`: a user's name, or an address."""

    __tablename__ = "failed_logins"

    key: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    count: Mapped[int] = mapped_column(default=0)
    until: Mapped[datetime.datetime] = mapped_column(Time)


class Captcha(db.Model):  # type: ignore[name-defined,misc]
    """A question to somebody who signs up.

    Its row is removed with the first answer; `shown` counts pictures and sounds.
    """

    __tablename__ = "captchas"

    id: Mapped[str] = mapped_column(sa.String(43), primary_key=True)
    answer: Mapped[str] = mapped_column(sa.String(16))
    address: Mapped[str] = mapped_column(sa.String(64), index=True)
    shown: Mapped[int] = mapped_column(default=0)
    until: Mapped[datetime.datetime] = mapped_column(Time)
    sound: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    """The question as WAV, made at the first request for it: that takes a core for a while."""


class Session(db.Model):  # type: ignore[name-defined,misc]
    """A browser that is logged in; only the digest of its cookie's secret is kept."""

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    credential_version: Mapped[int]
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    until: Mapped[datetime.datetime] = mapped_column(Time)


class AuditEvent(db.Model):  # type: ignore[name-defined,misc]
    """Who did what, when. The user's name stays when the user goes."""

    __tablename__ = "audit_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(Time, default=now, index=True)
    user: Mapped[str | None] = mapped_column(sa.String(64))
    action: Mapped[str] = mapped_column(sa.String(40))
    subject: Mapped[str | None] = mapped_column(sa.String(300))
    address: Mapped[str | None] = mapped_column(sa.String(64))


class WorkerRow(db.Model):  # type: ignore[name-defined,misc]
    """A worker that is there, or was a moment ago: what it can build, and how much of it at once."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(sa.String(100), primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(60))
    version: Mapped[str] = mapped_column(sa.String(40))
    platforms: Mapped[list[str]] = mapped_column(sa.JSON)
    emulated: Mapped[list[str]] = mapped_column(sa.JSON)
    targets: Mapped[list[str]] = mapped_column(sa.JSON)
    slots: Mapped[int]
    busy: Mapped[int] = mapped_column(default=0)
    is_stopping: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
    heartbeat_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)


class LogPiece(db.Model):  # type: ignore[name-defined,misc]
    """A part of a run's log, where logs are kept in the database. The run may be gone."""

    __tablename__ = "log_pieces"

    run_id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    start_byte: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    end_byte: Mapped[int] = mapped_column(sa.BigInteger)
    data: Mapped[bytes] = mapped_column(sa.LargeBinary)
    written_at: Mapped[datetime.datetime] = mapped_column(Time, default=now)
