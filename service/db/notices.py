"""Keep the notices that users get: written with what they tell of, claimed by who sends them.

A notice is claimed for some time, in which nobody else sends it; a sender that is killed leaves it
to the next one. So it is sent at least once, with one id at every try.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from image_builder.state import BuildState
from service.db.ageing import Ageing
from service.db.database import clock, now, reading, writing
from service.db.models import MailAddress, Notice, WebhookRow
from service.db.tables import BUILDS, RUNS, USERS
from service.errors import TooManyRequests
from service.notices.events import Event, facts_of

NOTICES: sa.Table = Notice.__table__
ENDED = Ageing(NOTICES, "ended_at", least_s=86400.0)
"""Those of today are counted by `ask_for_confirmation`."""
WEBHOOKS: sa.Table = WebhookRow.__table__
ADDRESSES: sa.Table = MailAddress.__table__

MAIL = "mail"
SENT, GIVEN_UP, DROPPED = "sent", "given up", "dropped"
MAX_TRIED = 5
"""How many of the last tries of a notice are kept."""
MAX_SAID = 200
MAX_CONFIRMATIONS = 5
"""Mails a day that ask one user, or one address, for a confirmation."""

_STATUS = sa.func.coalesce(BUILDS.c.state, RUNS.c.state).label("status")
_FACTS = (
    BUILDS.c.id,
    BUILDS.c.user_id,
    BUILDS.c.image_id,
    BUILDS.c.filename,
    BUILDS.c.error_code,
    BUILDS.c.sha256,
    BUILDS.c.created_at,
    BUILDS.c.ended_at,
    RUNS.c.started_at,
    _STATUS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claimed:
    """A notice that is to be sent now, by whoever holds this."""

    id: str
    user_id: int
    webhook_id: int | None
    event: Event
    facts: Mapping[str, Any]
    created_at: datetime.datetime
    tries: int
    """This one included."""
    tried: Sequence[Mapping[str, Any]]
    is_wanted: bool
    """False for a user who was blocked meanwhile."""


def tell_of_ended(
    connection: Connection, build_ids: Collection[str], *, with_mail: bool = True
) -> None:
    """Write the notices of builds that end in this transaction.

    `with_mail` False tells webhooks alone: the user sees at once how the build ended.
    """
    if build_ids:
        rows = _subscribers(connection, BUILDS.c.id.in_(list(build_ids)), with_mail=with_mail)
        _write(
            connection,
            rows,
            lambda row: Event.FINISHED if row.status is BuildState.FINISHED else Event.FAILED,
        )


def tell_of_delay(connection: Connection, run_id: str, error_code: str) -> None:
    """Write the notices of a run's builds that begin anew since something went wrong."""
    waiting = sa.and_(BUILDS.c.run_id == run_id, BUILDS.c.state.is_(None))
    rows = _subscribers(connection, waiting)
    _write(connection, rows, lambda _: Event.NEEDS_ATTENTION, error_code=error_code)


def tell_of_waiting(engine: Engine, after_s: float) -> None:
    """Write the notices of builds whose turn has not come for so long."""
    horizon = now() - datetime.timedelta(seconds=after_s)
    waiting = sa.and_(
        BUILDS.c.state.is_(None),
        BUILDS.c.created_at < horizon,
        RUNS.c.state == BuildState.PENDING,
        ~sa.exists().where(
            NOTICES.c.build_id == BUILDS.c.id, NOTICES.c.event == Event.NEEDS_ATTENTION.value
        ),
    )
    with reading(engine) as connection:
        if not _subscribers(connection, waiting):
            return
    with writing(engine) as connection:
        rows = _subscribers(connection, waiting)
        _write(connection, rows, lambda _: Event.NEEDS_ATTENTION)


def add_test(engine: Engine, user_id: int, webhook_id: int) -> str:
    """Write a notice that tells a user's webhook nothing, and return its id.

    Raises `TooManyRequests` while an earlier one waits.
    """
    channel = _channel(webhook_id)
    with writing(engine) as connection:
        waiting = sa.select(NOTICES.c.id).where(
            NOTICES.c.webhook_id == webhook_id,
            NOTICES.c.event == Event.TEST.value,
            NOTICES.c.outcome.is_(None),
        )
        if connection.execute(waiting).first() is not None:
            raise TooManyRequests(  # when its receiver answers, nobody knows
                "A test of this webhook is under way.", hint="Wait for its outcome."
            )
        return _insert_one(connection, user_id, Event.TEST, channel, {}, webhook_id=webhook_id)


def ask_for_confirmation(engine: Engine, user_id: int, address: str) -> None:
    """Write the mail that asks a user to confirm an address.

    Raises `TooManyRequests` when the user, or anybody for this address, has asked often today.
    """
    begin = now() - datetime.timedelta(days=1)
    today = (NOTICES.c.event == Event.CONFIRM.value, NOTICES.c.created_at > begin)
    asked = NOTICES.c.facts["address"].as_string() == address
    with writing(engine) as connection:
        for whose in (NOTICES.c.user_id == user_id, asked):
            counted = sa.select(NOTICES.c.created_at).where(*today, whose)
            counted = counted.order_by(NOTICES.c.created_at.desc())
            first = connection.scalar(counted.limit(1).offset(MAX_CONFIRMATIONS - 1))
            if first is not None:  # as many were sent, and the first of them counts until then
                raise TooManyRequests(
                    "Mails for a confirmation were sent often enough today.",
                    hint="Look for one of them, or come back tomorrow.",
                    retry_after_s=(first - begin).total_seconds(),
                )
        _insert_one(connection, user_id, Event.CONFIRM, MAIL, {"address": address})


def claim(engine: Engine, lease_s: float) -> Claimed | None:
    """Take the next notice that is due, for `lease_s`; None when there is none.

    Of each user, one at a time is sent: who has slow receivers waits for them alone.
    """
    with reading(engine) as connection:
        if connection.execute(_due(clock(connection))).first() is None:
            return None
    with writing(engine, durable=False) as connection:
        moment = clock(connection)
        row = connection.execute(_due(moment).with_for_update(skip_locked=True, of=NOTICES)).first()
        if row is None:
            return None
        connection.execute(
            NOTICES.update()
            .where(NOTICES.c.id == row.id)
            .values(
                tries=row.tries + 1,
                claimed_until=moment + datetime.timedelta(seconds=lease_s),
            )
        )
    return Claimed(
        id=row.id,
        user_id=row.user_id,
        webhook_id=row.webhook_id,
        event=Event(row.event),
        facts=row.facts,
        created_at=row.created_at,
        tries=row.tries + 1,
        tried=row.tried,
        is_wanted=row.is_active,
    )


def end(
    engine: Engine, claimed: Claimed, outcome: str, said: str, *, status: int | None = None
) -> None:
    """Write down that a notice was sent, given up or dropped."""
    with writing(engine) as connection:
        values = {"outcome": outcome, "ended_at": now(), "next_try_at": None}
        _record(connection, claimed, said, status, values)


def put_off(
    engine: Engine, claimed: Claimed, pause_s: float, said: str, *, status: int | None = None
) -> None:
    """Write down that a notice is to be tried again after a pause."""
    with writing(engine, durable=False) as connection:
        later = clock(connection) + datetime.timedelta(seconds=pause_s)
        _record(connection, claimed, said, status, {"next_try_at": later})


def of_user(engine: Engine, user_id: int, *, limit: int = 50) -> list[Any]:
    """Return a user's latest notices, newest first, each with the address of its webhook."""
    rows = (
        sa.select(NOTICES, WEBHOOKS.c.url)
        .select_from(NOTICES.outerjoin(WEBHOOKS, WEBHOOKS.c.id == NOTICES.c.webhook_id))
        .where(NOTICES.c.user_id == user_id)
        .order_by(NOTICES.c.created_at.desc(), NOTICES.c.id)
        .limit(limit)
    )
    with reading(engine) as connection:
        return list(connection.execute(rows))


def _due(moment: datetime.datetime) -> sa.Select[Any]:
    """Select the notice that has been due for longest, of a user of whom none is being sent."""
    theirs = NOTICES.alias("theirs")
    is_served = sa.exists().where(
        theirs.c.user_id == NOTICES.c.user_id,
        theirs.c.outcome.is_(None),
        theirs.c.claimed_until > moment,
    )
    return (
        sa.select(NOTICES, USERS.c.is_active)
        .join_from(NOTICES, USERS, USERS.c.id == NOTICES.c.user_id)
        .where(NOTICES.c.outcome.is_(None), NOTICES.c.next_try_at <= moment, ~is_served)
        .order_by(NOTICES.c.next_try_at, NOTICES.c.id)
        .limit(1)
    )


def _record(
    connection: Connection,
    claimed: Claimed,
    said: str,
    status: int | None,
    values: Mapping[str, Any],
) -> None:
    """Write a try down, unless its sender took so long that another has the notice by now."""
    this = {"at": now().isoformat(timespec="seconds"), "status": status, "said": said[:MAX_SAID]}
    connection.execute(
        NOTICES.update()
        .where(
            NOTICES.c.id == claimed.id,
            NOTICES.c.tries == claimed.tries,
            NOTICES.c.outcome.is_(None),
        )
        .values(tried=[*claimed.tried, this][-MAX_TRIED:], claimed_until=None, **values)
    )


def _subscribers(
    connection: Connection, chosen: sa.ColumnElement[bool], *, with_mail: bool = True
) -> list[Any]:
    """The chosen builds, each with every channel that its user has: events and webhook."""
    base = BUILDS.join(RUNS, RUNS.c.id == BUILDS.c.run_id).join(
        USERS, sa.and_(USERS.c.id == BUILDS.c.user_id, USERS.c.is_active)
    )
    by_webhook = (
        sa.select(*_FACTS, WEBHOOKS.c.events, WEBHOOKS.c.id.label("webhook_id"))
        .select_from(base.join(WEBHOOKS, WEBHOOKS.c.user_id == BUILDS.c.user_id))
        .where(chosen, WEBHOOKS.c.is_on)
    )
    rows = list(connection.execute(by_webhook))
    if with_mail:
        by_mail = (
            sa.select(*_FACTS, ADDRESSES.c.events, sa.null().label("webhook_id"))
            .select_from(base.join(ADDRESSES, ADDRESSES.c.user_id == BUILDS.c.user_id))
            .where(chosen, ADDRESSES.c.is_on, ADDRESSES.c.confirmed_at.is_not(None))
        )
        rows += connection.execute(by_mail)
    return rows


def _write(
    connection: Connection, rows: Collection[Any], event_of: Any, *, error_code: str | None = None
) -> None:
    """Write what is not written yet, of those events that each channel's user has chosen."""
    moment = clock(connection)
    notices = []
    for row in rows:
        event = event_of(row)
        if event.value in row.events:
            facts = facts_of(row) | ({"error_code": error_code} if error_code else {})
            channel = _channel(row.webhook_id)
            new = _row(row.user_id, event, channel, facts, moment, webhook_id=row.webhook_id)
            notices.append(new | {"build_id": row.id})
    if notices:
        is_sqlite = connection.dialect.name == "sqlite"
        insert = sqlite.insert(NOTICES) if is_sqlite else postgresql.insert(NOTICES)
        connection.execute(insert.on_conflict_do_nothing(), notices)


def _insert_one(
    connection: Connection,
    user_id: int,
    event: Event,
    channel: str,
    facts: Mapping[str, Any],
    *,
    webhook_id: int | None = None,
) -> str:
    row = _row(user_id, event, channel, facts, clock(connection), webhook_id=webhook_id)
    connection.execute(NOTICES.insert().values(row))
    return str(row["id"])


def _row(
    user_id: int,
    event: Event,
    channel: str,
    facts: Mapping[str, Any],
    moment: datetime.datetime,
    *,
    webhook_id: int | None,
) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "user_id": user_id,
        "webhook_id": webhook_id,
        "channel": channel,
        "event": event.value,
        "facts": dict(facts),
        "created_at": moment,
        "next_try_at": moment,
        "tries": 0,
        "tried": [],
    }


def _channel(webhook_id: int | None) -> str:
    return MAIL if webhook_id is None else f"webhook {webhook_id}"
