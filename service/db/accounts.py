"""Write and read users and their tokens; no other module writes them."""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from werkzeug.security import check_password_hash, generate_password_hash

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.state import ACTIVE
from service.db import builds, tables
from service.db.database import UtcTime, now, reading, writing
from service.db.models import FailedLogin, Token, User
from service.errors import TooManyFailures

USERS: sa.Table = User.__table__
TOKENS: sa.Table = Token.__table__
FAILED: sa.Table = FailedLogin.__table__

TOKEN_PREFIX = "cic_"
READ, WRITE, ADMIN = "read", "build", "admin"
SCOPES = (READ, WRITE, ADMIN)
"""The scopes of a token. A token of a user who is no administrator never gives ADMIN."""
MIN_PASSWORD, MAX_PASSWORD = 8, 256
MAX_TOKENS = 50
"""Of one user, made on the account's page or by the device flow."""
HASH_METHOD = "scrypt"


class Who(NamedTuple):
    """A user, with the columns that decide whether a login succeeds."""

    id: int
    name: str
    password_hash: str
    is_admin: bool
    is_active: bool
    is_confirmed: bool
    credential_version: int


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
IS_ADMIN = sa.and_(
    USERS.c.is_admin,
    sa.or_(
        USERS.c.admin_until.is_(None),
        USERS.c.admin_until > sa.bindparam("present", callable_=now, type_=UtcTime()),
    ),
).label("is_admin")
"""Whether a user is an administrator by now: what an OpenID provider says of that ends."""
WHO = (
    USERS.c.id,
    USERS.c.name,
    USERS.c.password_hash,
    IS_ADMIN,
    USERS.c.is_active,
    USERS.c.is_confirmed,
    USERS.c.credential_version,
)
_BY_NAME = sa.select(*WHO).where(sa.func.lower(USERS.c.name) == sa.bindparam("name"))
_BY_NAME_WITH_BUILD = (
    sa.select(*(column.label(f"who_{column.name}") for column in WHO), *builds.SHOWN_COLUMNS)
    .select_from(
        USERS.outerjoin(
            tables.BUILDS,
            sa.and_(
                tables.BUILDS.c.id == sa.bindparam("build_id"),
                tables.BUILDS.c.user_id == USERS.c.id,
                tables.BUILDS.c.deleted_at.is_(None),
            ),
        ).outerjoin(tables.RUNS, tables.RUNS.c.id == tables.BUILDS.c.run_id)
    )
    .where(sa.func.lower(USERS.c.name) == sa.bindparam("name"))
)
_BY_ID = sa.select(*WHO).where(USERS.c.id == sa.bindparam("id"))
_BY_TOKEN = (
    sa.select(
        *WHO,
        TOKENS.c.id.label("token_id"),
        TOKENS.c.scopes,
        TOKENS.c.expires_at,
        TOKENS.c.last_used_at,
    )
    .join_from(TOKENS, USERS)
    .where(TOKENS.c.digest == sa.bindparam("digest"))
)


def add_user(
    engine: Engine, name: str, password: str, *, is_admin: bool = False, is_confirmed: bool = True
) -> None:
    """Make a user.

    Raises `InvalidRequest` for an invalid name or password, or a name that is taken.
    """
    problems = [*name_problems(name), *password_problems(password)]
    if problems:
        raise InvalidRequest(problems)
    try:
        with writing(engine) as connection:
            insert_user(
                connection,
                name,
                hash_password(password),
                is_admin=is_admin,
                is_confirmed=is_confirmed,
            )
    except sa.exc.IntegrityError:
        raise InvalidRequest(
            [FieldProblem("name", f"there is a user {name} already", "choose another")]
        ) from None


def name_of(engine: Engine, user_id: int) -> str:
    """Return a user's name. Raises `NoResultFound` for a user who was removed."""
    with reading(engine) as connection:
        name: str = connection.execute(
            sa.select(USERS.c.name).where(USERS.c.id == user_id)
        ).scalar_one()
        return name


def insert_user(
    connection: Connection,
    name: str,
    password_hash: str,
    *,
    is_admin: bool = False,
    is_confirmed: bool = True,
) -> int:
    """Make a user of a valid name and password hash, within a transaction, and return the id.

    No password fits an empty hash.
    """
    made = connection.execute(
        USERS.insert().values(
            name=name,
            password_hash=password_hash,
            is_admin=is_admin,
            is_active=True,
            is_confirmed=is_confirmed,
            credential_version=1,
            created_at=now(),
        )
    )
    (user_id,) = made.inserted_primary_key or (0,)
    return int(user_id)


def set_password(engine: Engine, name: str, password: str) -> None:
    """Give a user another password; earlier sessions end, tokens stay valid."""
    if problems := password_problems(password):
        raise InvalidRequest(problems)
    change_user(engine, name, password_hash=hash_password(password))


def change_user(engine: Engine, name: str, **values: Any) -> None:
    """Change a user's columns; every server process sees it with its next query."""
    own_word = {"admin_until": None} if "is_admin" in values else {}
    with writing(engine) as connection:
        changed = connection.execute(
            USERS.update()
            .where(sa.func.lower(USERS.c.name) == name.lower())
            .values(**own_word, **values, credential_version=USERS.c.credential_version + 1)
        )
    if not changed.rowcount:
        raise _unknown(name)


def remove_user(engine: Engine, name: str) -> None:
    """Remove a user with all builds and tokens; runs that no other build wants stop."""
    row = by_name(engine, name)
    if row is None:
        raise _unknown(name)
    change_user(engine, name, is_active=False)
    with reading(engine) as connection:
        going_on = connection.scalars(
            sa.select(tables.BUILDS.c.id)
            .join(tables.RUNS, tables.RUNS.c.id == tables.BUILDS.c.run_id)
            .where(
                tables.BUILDS.c.user_id == row.id,
                tables.BUILDS.c.state.is_(None),
                tables.RUNS.c.state.in_(ACTIVE),
            )
        ).all()
    for build_id in going_on:
        builds.withdraw(engine, build_id, "The user was removed.")
    with writing(engine) as connection:
        connection.execute(USERS.delete().where(USERS.c.id == row.id))


def users(engine: Engine) -> Sequence[Any]:
    """Return every user, by name."""
    with reading(engine) as connection:
        return connection.execute(
            sa.select(*WHO, USERS.c.created_at).order_by(sa.func.lower(USERS.c.name))
        ).all()


def by_name(engine: Engine, name: str) -> Any | None:
    """Return the user of this name, whatever its case, or None."""
    with reading(engine) as connection:
        return connection.execute(_BY_NAME, {"name": name.lower()}).first()


def require_user(engine: Engine, name: str, *, field: str = "name") -> Any:
    """Return the user of this name. Raises `InvalidRequest`, which names the `field`."""
    row = by_name(engine, name)
    if row is None:
        raise _unknown(name, field)
    return row


def by_name_with_build(engine: Engine, name: str, build_id: str) -> tuple[Who | None, Any | None]:
    """Return the user of this name and, if it is theirs, the build.

    It is one query, since clients that poll a build ask it again and again.
    """
    with reading(engine) as connection:
        row = connection.execute(
            _BY_NAME_WITH_BUILD, {"name": name.lower(), "build_id": build_id}
        ).first()
    if row is None:
        return None, None
    return Who(*row[: len(WHO)]), row if row.id is not None else None


def by_id(engine: Engine, user_id: int) -> Any | None:
    """Return the user of this id, or None."""
    with reading(engine) as connection:
        return connection.execute(_BY_ID, {"id": user_id}).first()


def by_token(engine: Engine, token: str) -> Any | None:
    """Return the user of a token, with the token's scopes, or None if it is unknown or expired."""
    with reading(engine) as connection:
        row = connection.execute(_BY_TOKEN, {"digest": token_digest(token)}).first()
    return None if row is None or (row.expires_at is not None and row.expires_at <= now()) else row


def add_token(
    engine: Engine,
    user_id: int,
    name: str,
    *,
    scopes: Sequence[str] = SCOPES,
    expires_at: datetime.datetime | None = None,
) -> str:
    """Make a token and return it: only its digest is kept, so it is seen this once.

    Raises `InvalidRequest`, also for a user with many others.
    """
    _check_token(name, scopes)
    with writing(engine) as connection:
        return _insert_token(connection, user_id, name, scopes, expires_at)


def replace_token(
    engine: Engine,
    user_id: int,
    name: str,
    *,
    scopes: Sequence[str],
    expires_at: datetime.datetime,
) -> str:
    """Make a token in place of those of its name, and of those that have expired.

    Raises `InvalidRequest` for a user with many others.
    """
    _check_token(name, scopes)
    mine = TOKENS.c.user_id == user_id
    with writing(engine) as connection:
        connection.execute(
            TOKENS.delete().where(
                mine, sa.or_(TOKENS.c.name == name.strip(), TOKENS.c.expires_at <= now())
            )
        )
        return _insert_token(connection, user_id, name, scopes, expires_at)


def _check_token(name: str, scopes: Sequence[str]) -> None:
    if not 1 <= len(name.strip()) <= 100 or not name.isprintable():
        raise InvalidRequest(
            [FieldProblem("name", "is not a name for a token", "write 1 to 100 characters")]
        )
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidRequest(
            [FieldProblem("scopes", "are not known", f"choose from {', '.join(SCOPES)}")]
        )


def _insert_token(
    connection: Connection,
    user_id: int,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime.datetime | None,
) -> str:
    others = sa.select(sa.func.count()).select_from(TOKENS).where(TOKENS.c.user_id == user_id)
    if (connection.scalar(others) or 0) >= MAX_TOKENS:
        raise InvalidRequest(
            [FieldProblem("name", "is one too many: there are many tokens", "revoke some first")]
        )
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        TOKENS.insert().values(
            user_id=user_id,
            name=name.strip(),
            digest=token_digest(token),
            scopes=list(scopes),
            created_at=now(),
            expires_at=expires_at,
        )
    )
    return token


def tokens_of(engine: Engine, user_id: int) -> Sequence[Any]:
    """Return a user's tokens, without the secrets."""
    columns = (
        TOKENS.c.id,
        TOKENS.c.name,
        TOKENS.c.scopes,
        TOKENS.c.created_at,
        TOKENS.c.expires_at,
        TOKENS.c.last_used_at,
    )
    with reading(engine) as connection:
        return connection.execute(
            sa.select(*columns).where(TOKENS.c.user_id == user_id).order_by(TOKENS.c.id)
        ).all()


def revoke_token(engine: Engine, user_id: int, token_id: int) -> bool:
    """Remove one of a user's tokens; return False when they have none of this id."""
    with writing(engine) as connection:
        return bool(
            connection.execute(
                TOKENS.delete().where(TOKENS.c.id == token_id, TOKENS.c.user_id == user_id)
            ).rowcount
        )


def note_token_use(engine: Engine, token_id: int) -> None:
    """Remember when a token was last used."""
    with writing(engine, durable=False) as connection:
        connection.execute(
            TOKENS.update().where(TOKENS.c.id == token_id).values(last_used_at=now())
        )


def failed_logins(engine: Engine, key: str) -> int:
    """Return how often logging in failed of late, for this key."""
    with reading(engine) as connection:
        return (
            connection.scalar(
                sa.select(FAILED.c.count).where(FAILED.c.key == key, FAILED.c.until > now())
            )
            or 0
        )


def require_few_failures(engine: Engine, key: str, limit: int, *message: str) -> None:
    """Raise `TooManyFailures` (with `message`) where logging in failed `limit` times of late."""
    moment = now()
    failed = sa.select(FAILED.c.until).where(
        FAILED.c.key == key, FAILED.c.until > moment, FAILED.c.count >= limit
    )
    with reading(engine) as connection:
        until = connection.scalar(failed)
    if until is not None:
        raise TooManyFailures((until - moment).total_seconds(), *message)


def note_failed_login(engine: Engine, key: str, window_s: float) -> None:
    """Count one more failed login; the count begins anew `window_s` after its first."""
    moment = now()
    with writing(engine, durable=False) as connection:
        connection.execute(FAILED.delete().where(FAILED.c.until <= moment))
        if not connection.execute(
            FAILED.update().where(FAILED.c.key == key).values(count=FAILED.c.count + 1)
        ).rowcount:
            connection.execute(
                FAILED.insert().values(
                    key=key, count=1, until=moment + datetime.timedelta(seconds=window_s)
                )
            )


def hash_password(password: str) -> str:
    return generate_password_hash(password, HASH_METHOD)


def is_password(password_hash: str, password: str) -> bool:
    return check_password_hash(password_hash, password)


def token_digest(token: str) -> str:
    """Return the digest that is kept of a token.

    A token is long and random, so a plain digest gives nothing away.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def password_problems(password: str) -> list[FieldProblem]:
    """Return what keeps a text from being a password."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        return [
            FieldProblem(
                "password",
                f"must have {MIN_PASSWORD} to {MAX_PASSWORD} characters",
                "choose another",
            )
        ]
    return []


def name_problems(name: str) -> list[FieldProblem]:
    """Return what keeps a text from being the name of a user."""
    if not _NAME.fullmatch(name) or name.lower().startswith(TOKEN_PREFIX):
        return [
            FieldProblem(
                "name",
                "cannot be the name of a user",
                "write letters, digits, '.', '_', '@' and '-', beginning with a letter or digit",
            )
        ]
    return []


def _unknown(name: str, field: str = "name") -> InvalidRequest:
    return InvalidRequest([FieldProblem(field, f"there is no user {name[:64]}", "see users list")])
