"""The database through the service's versions: whatever an earlier one wrote is there after the
upgrade.
"""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy.engine import Engine

from service.db.database import HEAD, MIGRATIONS, db, init_database, migrate, writing
from tests.conftest import PROJECT

pytestmark = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
REVISIONS = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()][::-1]
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5)
OF_TYPE = {
    sa.Integer: 1,
    sa.Boolean: True,
    sa.DateTime: MOMENT,
    sa.JSON: "{}",
    sa.LargeBinary: b"bytes",
    sa.Float: 1.5,
}


def fill(engine: Engine) -> dict[str, list[Any]]:
    """One row in each table of whatever version, every column set; what the tables hold then."""
    tables = sa.MetaData()
    with writing(engine) as connection:
        tables.reflect(connection)
        for table in tables.sorted_tables:
            if table.name != "alembic_version":
                connection.execute(
                    table.insert().values(
                        {column.name: value_of(column) for column in table.columns}
                    )
                )
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table))]
            for table in tables.sorted_tables
        }


def value_of(column: sa.Column[Any]) -> Any:
    if column.name == "state":
        return "FINISHED"
    if column.foreign_keys and not isinstance(column.type, sa.Integer):
        return "id"
    kept = next((value for kind, value in OF_TYPE.items() if isinstance(column.type, kind)), None)
    return column.name if kept is None else kept


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_an_earlier_version_wrote_is_kept(revision: str, tmp_path: Path) -> None:
    app = Flask("test")
    init_database(app, f"sqlite:///{tmp_path / 'db.sqlite'}")
    with app.app_context():
        upgrade(directory=str(MIGRATIONS), revision=revision)
        before = fill(db.engine)
    assert {"users", "tokens", "runs", "builds", "audit_events", "failed_logins"} <= set(before)
    migrate(app, tmp_path / "lock")
    with app.app_context(), db.engine.connect() as connection:
        assert (
            connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            == HEAD
            == REVISIONS[-1]
        )
        tables = sa.MetaData()
        tables.reflect(connection)
        for name, rows in before.items():
            if name != "alembic_version":
                earlier = [column.name for column in tables.tables[name].columns][: len(rows[0])]
                kept = connection.execute(
                    sa.select(*(tables.tables[name].c[column] for column in earlier))
                )
                assert [tuple(row) for row in kept] == rows, name
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
        assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []
        db.engine.dispose()


def test_copies_made_while_others_write_are_whole(tmp_path: Path) -> None:
    """A process moves one unit from account to account all the time; in every copy, the sum is what
    it was.
    """
    live = tmp_path / "live.sqlite"
    writer = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, units INTEGER, padding TEXT)")
connection.executemany("INSERT INTO accounts VALUES (?, 10, ?)", [(n, "x" * 2000) for n in range(500)])
turn = 0
while True:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE accounts SET units = units - 1 WHERE id = ?", (turn % 500,))
    connection.execute("UPDATE accounts SET units = units + 1 WHERE id = ?", ((turn * 7 + 3) % 500,))
    connection.execute("COMMIT")
    turn += 1
    if turn == 10:
        print("ready", flush=True)
"""
    from service.db.database import copy_sqlite

    started = subprocess.Popen(
        [sys.executable, "-c", writer, str(live)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == "ready\n"
        seen = set()
        for number in range(5):
            copy = tmp_path / f"copy-{number}.sqlite"
            copy_sqlite(live, copy)
            connection = sqlite3.connect(copy)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*), sum(units) FROM accounts").fetchone() == (
                500,
                5000,
            )
            seen.add(connection.execute("SELECT group_concat(units) FROM accounts").fetchone()[0])
            connection.close()
            assert {path.name for path in tmp_path.iterdir() if path.name.startswith("copy-")} == {
                f"copy-{done}.sqlite" for done in range(number + 1)
            }
        assert len(seen) > 1  # it did write meanwhile
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
