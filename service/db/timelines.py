"""Keep what ran in a run, and when: one document for each run, as its worker wrote it last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.db.ageing import Ageing
from service.db.database import now, reading, writing
from service.db.models import TimelineRow
from service.db.tables import RUNS

TIMELINES: sa.Table = TimelineRow.__table__
WRITTEN = Ageing(TIMELINES, "written_at")


def write(engine: Engine, run_id: str, worker: str, document: Mapping[str, Any]) -> None:
    """Keep a run's document in the place of its earlier one, if the run is this worker's."""
    values = {"document": dict(document), "written_at": now()}
    with writing(engine, durable=False) as connection:
        owner = connection.scalar(sa.select(RUNS.c.worker).where(RUNS.c.id == run_id))
        if owner != worker:
            return
        kept = connection.execute(
            TIMELINES.update().where(TIMELINES.c.run_id == run_id).values(**values)
        )
        if not kept.rowcount:
            connection.execute(TIMELINES.insert().values(run_id=run_id, **values))


def document(engine: Engine, run_id: str) -> dict[str, Any] | None:
    """Return a run's document, or None."""
    with reading(engine) as connection:
        found: dict[str, Any] | None = connection.scalar(
            sa.select(TIMELINES.c.document).where(TIMELINES.c.run_id == run_id)
        )
        return found
