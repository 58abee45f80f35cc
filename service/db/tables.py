"""Share tables, columns and row locks among the writers of builds and runs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from image_builder import hints
from image_builder.errors import CicError
from image_builder.state import ACTIVE, BuildState
from service.db.models import Build, Run, User

RUNS: sa.Table = Run.__table__
BUILDS: sa.Table = Build.__table__
USERS: sa.Table = User.__table__

RUNNING = ACTIVE - {BuildState.PENDING}


def locked(rows: sa.Select[Any], *, skip: bool = False) -> sa.Select[Any]:
    """Lock the selected rows against other writers until the transaction ends.

    With `skip`, rows that others have locked are left out.
    """
    return rows.with_for_update(key_share=True, skip_locked=skip, of=None if not skip else RUNS)


def lock_run(connection: Connection, run_id: str) -> None:
    connection.execute(locked(sa.select(RUNS.c.id).where(RUNS.c.id == run_id)))


def wanting(run_id: str, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Select the builds that wait for something of a run, the oldest first.

    Those that are to be pushed come last: the shared part is done then, and who has withdrawn
    meanwhile gets no push.
    """
    return (
        sa.select(*columns)
        .where(BUILDS.c.run_id == run_id, BUILDS.c.state.is_(None))
        .order_by(BUILDS.c.push, BUILDS.c.created_at, BUILDS.c.id)
    )


def wanted(connection: Connection, run_id: str) -> bool:
    return connection.execute(wanting(run_id, BUILDS.c.id).limit(1)).first() is not None


def failure(error: CicError) -> dict[str, Any]:
    """Return the columns of a row that ended with an error: why, and what to do next."""
    excerpt = "\n".join(getattr(error, "details", ()))
    return {
        "state": BuildState.FAILED,
        "error_code": error.code.value,
        "hint": error.hint or hints.usual(error.code),
        "message": f"{error.message}\n{excerpt}" if excerpt else error.message,
    }


Kind = tuple[str, str]
"""What matters of a run: its platform (`linux/arm64`) and its target (`neoverse_v2`)."""
