"""Counts and removes rows that have become old."""

from __future__ import annotations

import dataclasses
import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.db.database import now, reading, writing


@dataclasses.dataclass(frozen=True)
class Ageing:
    """The rows of a table by the time in one of its columns, none of which is old before `least_s`."""

    table: sa.Table
    column: str
    least_s: float = 0.0

    def count(self, engine: Engine, age_s: float) -> int:
        """Return how many rows are older than that."""
        counted = sa.select(sa.func.count()).select_from(self.table).where(self._older(age_s))
        with reading(engine) as connection:
            return connection.scalar(counted) or 0

    def remove(self, engine: Engine, age_s: float) -> int:
        """Remove the rows that are older than that, and return how many there were."""
        with writing(engine, durable=False) as connection:
            return connection.execute(self.table.delete().where(self._older(age_s))).rowcount

    def _older(self, age_s: float) -> sa.ColumnElement[bool]:
        age = datetime.timedelta(seconds=max(age_s, self.least_s))
        older: sa.ColumnElement[bool] = self.table.c[self.column] < now() - age
        return older
