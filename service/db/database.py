"""Open the database: its address, how its connections behave, and how its tables are made.

On SQLite, readers never wait for a writer (WAL), and a writer takes its place at once:
`writing(engine)` begins a transaction with BEGIN IMMEDIATE, so that two of them queue instead of
failing half-way. On PostgreSQL writers run side by side: one that reads in order to write locks the
rows (`with_for_update`, which SQLite leaves out) or takes an `AdvisoryLock`.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock
import sqlalchemy as sa
from flask import Flask, current_app, has_app_context
from flask_migrate import Migrate, stamp, upgrade
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import Connection, Engine

from config import load_settings
from config.loading import PROJECT
from image_builder.errors import Misconfigured, NotFound, Unavailable
from image_builder.host import files

MIGRATIONS = PROJECT / "migrations"
HEAD = "0010"
"""The newest migration; a test holds it against the folder."""

BUSY_TIMEOUT_S = 30.0
SILENT_CLIENT_S = 15.0
"""PostgreSQL ends a transaction in which a client is idle for so long, and releases its locks."""
WRITING = "cic_writing"
DURABLE = "cic_durable"
VERSION_TABLE = "alembic_version"


class DatabaseSilent(Unavailable):
    """The database cannot be reached, or is locked for longer than the service waits."""


class AdvisoryLock(enum.Enum):
    """The locks that transactions take turns at; their numbers are unique in the database."""

    CLAIM = 0x636963_01
    MIGRATE = 0x636963_02
    LOG_IN = 0x636963_03


class UtcTime(sa.types.TypeDecorator[datetime.datetime]):
    """A moment in UTC: aware in Python, whatever the database keeps."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: sa.Dialect
    ) -> datetime.datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(datetime.timezone.utc).replace(tzinfo=None)

    def process_result_value(
        self, value: datetime.datetime | None, dialect: sa.Dialect
    ) -> datetime.datetime | None:
        if value is None:
            return None
        return (
            value.replace(tzinfo=datetime.timezone.utc)
            if value.tzinfo is None
            else value.astimezone(datetime.timezone.utc)
        )


def now() -> datetime.datetime:
    """Return the present moment, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


class Database(SQLAlchemy):
    """Flask-SQLAlchemy whose `create_all` and `drop_all` also work in a bare interpreter.

    Without an application they use the configured database. Tables made that way carry the newest
    migration's stamp; those that an earlier version made are upgraded.
    """

    def create_all(self, bind_key: Any = "__all__") -> None:
        with _application(self):
            if "users" in sa.inspect(self.engine).get_table_names():
                _upgrade(self.engine)
                return
            super().create_all(bind_key)
            stamp(directory=str(MIGRATIONS))

    def drop_all(self, bind_key: Any = "__all__") -> None:
        with _application(self):
            super().drop_all(bind_key)
            with writing(self.engine) as connection:
                connection.execute(sa.text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))

    def _make_engine(self, bind_key: str | None, options: dict[str, Any], app: Flask) -> Engine:
        return make_engine(options["url"])


db = Database()
migrations = Migrate(db=db, directory=str(MIGRATIONS))


def init_database(app: Flask, url: str) -> None:
    """Connect an application to the database at `url`."""
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url(url)
    db.init_app(app)
    migrations.init_app(app, db)


def database_url(url: str) -> sa.URL:
    """Return the URL with a relative SQLite path made absolute.

    `sqlite:///db.sqlite` is in the folder of `builder_service.py`, whatever the working directory:
    there the first versions of this service had it, which ran on a Flask-SQLAlchemy that counted
    from the application's own folder.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise Misconfigured(
            "database is not a URL.", hint="Write for example sqlite:///db.sqlite."
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(database=str(PROJECT / parsed.database))
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def make_engine(url: str | sa.URL) -> Engine:
    """Return an engine whose connections wait for each other instead of failing."""
    parsed = database_url(url) if isinstance(url, str) else url
    if parsed.get_backend_name() != "sqlite":
        return _make_server_engine(parsed)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        parsed,
        pool_size=10,
        max_overflow=100,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_server_engine(url: sa.URL) -> Engine:
    """PostgreSQL. A server that is cut off is noticed within half a minute, by either side."""
    if url.drivername != "postgresql+psycopg":
        raise Misconfigured(
            f"database cannot be a {url.get_backend_name()[:40]} URL.",
            hint="Write for example sqlite:///db.sqlite or postgresql://user@host/name.",
        )
    options = (
        f"-c timezone=UTC -c idle_in_transaction_session_timeout={int(SILENT_CLIENT_S * 1000)} "
        f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)}"
    )
    arguments = {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": options,
    }
    try:
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_size=5, max_overflow=15, connect_args=arguments
        )
    except ModuleNotFoundError as error:
        raise Misconfigured(
            f"database names PostgreSQL, and {error.name} is not installed.",
            hint="Install requirements-cluster.txt.",
        ) from None
    sa.event.listen(engine, "before_cursor_execute", _without_nul, retval=True)
    return engine


def _without_nul(
    _connection: Connection,
    _cursor: Any,
    statement: str,
    parameters: Any,
    _context: Any,
    _many: bool,
) -> tuple[str, Any]:
    """Replace NUL, which PostgreSQL's texts cannot hold, so that such a name matches no row."""

    def cleaned(row: Any) -> Any:
        return {
            key: value.replace("\0", "\ufffd") if isinstance(value, str) else value
            for key, value in row.items()
        }

    return statement, cleaned(parameters) if isinstance(parameters, dict) else [
        cleaned(row) for row in parameters
    ]


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, see _begin_sqlite
    for pragma in (
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
        "journal_mode=WAL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction: a writer at once, a reader of single rows none, others deferred."""
    options = connection.get_execution_options()
    writes = options.get(WRITING)
    if writes is not False:
        # With WAL, NORMAL leaves a commit to the next one that is FULL, or to a checkpoint.
        synchronous = "FULL" if options.get(DURABLE, True) else "NORMAL"
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def writing(engine: Engine, *, durable: bool = True) -> Iterator[Connection]:
    """Open a transaction that may write; it is committed at the end, and rolled back on an error.

    A committed transaction is on the disk, also when the machine stops then. What is written often
    and easily renewed (heartbeats, progress, counts) does not wait for the disk: `durable` False.
    """
    with _translated(), engine.connect() as plain:
        connection = plain.execution_options(**{WRITING: True, DURABLE: durable})
        with connection.begin():
            yield connection


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection for single queries; each sees what was committed last."""
    with _translated(), engine.connect() as plain:
        if engine.dialect.name == "sqlite":
            yield plain.execution_options(**{WRITING: False})
        else:
            yield plain.execution_options(isolation_level="AUTOCOMMIT")


def take_lock(connection: Connection, what: AdvisoryLock) -> None:
    """Let no other transaction past this point until this one has ended.

    On SQLite writers take turns anyway.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(what.value)))


def clock(connection: Connection) -> datetime.datetime:
    """Return the present moment by the database's clock: for times that different hosts compare."""
    if connection.dialect.name == "sqlite":
        return now()
    moment: datetime.datetime = connection.scalar(
        sa.select(sa.func.clock_timestamp(type_=UtcTime()))
    )  # type: ignore[assignment]
    return moment


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise `DatabaseSilent` for a silent database, and `NotFound` for an impossible value."""
    try:
        yield
    except (sa.exc.DataError, OverflowError):
        raise NotFound("Nothing has such a name or number.") from None
    except sa.exc.OperationalError as error:
        raise DatabaseSilent(
            "The database does not answer.", hint="Try again in a while."
        ) from error


def copy_sqlite(live: Path, file: Path) -> None:
    """Copy an SQLite database that may be in use; an earlier `file` is replaced in one step.

    Raises `OSError` or `sqlite3.Error`.
    """
    with files.replacing(file) as fresh:
        fresh.touch(mode=0o600, exist_ok=False)  # it holds password hashes
        with (
            contextlib.closing(
                sqlite3.connect(f"file:{quote(str(live))}?mode=ro", uri=True)
            ) as source,
            contextlib.closing(sqlite3.connect(fresh)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE").close()  # one file, whole by itself


def migrate(app: Flask, lock: Path) -> None:
    """Make or upgrade the tables.

    Processes that start together take turns: through the file `lock`, and hosts that share a
    database through a lock in it.
    """
    with app.app_context():
        if _version(db.engine) == HEAD:
            return
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock), _hosts_take_turns(db.engine):
            if _version(db.engine) == HEAD:
                return
            _upgrade(db.engine)


def _upgrade(engine: Engine) -> None:
    """Bring tables up to the newest migration. Raises `Misconfigured` for those of others."""
    if _version(engine) is None and "users" in sa.inspect(engine).get_table_names():
        raise Misconfigured(
            "The database holds tables that another program made.",
            hint="Name another one with `database`, or move that file away.",
        )
    upgrade(directory=str(MIGRATIONS))


@contextlib.contextmanager
def _hosts_take_turns(engine: Engine) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        yield
        return
    with reading(engine) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(AdvisoryLock.MIGRATE.value)))
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(AdvisoryLock.MIGRATE.value)))


def _version(engine: Engine) -> str | None:
    """The migration that the database stands at, or None where there is none."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        version: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
        return version


@contextlib.contextmanager
def _application(database: Database) -> Iterator[None]:
    """Enter the present application, or in a bare interpreter one that knows the database alone."""
    if has_app_context() and current_app.extensions.get("sqlalchemy") is database:
        yield
        return
    app = Flask("builder_service", root_path=str(PROJECT))
    init_database(app, load_settings().service.database)
    with app.app_context():
        yield
