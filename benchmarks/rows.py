"""Give a benchmark's result: figures and their goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from image_builder.errors import CicError


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure and its goal; `value` None: it was not measured, and `note` gives the reason."""

    what: str
    value: float | None
    goal: float
    unit: str = ""
    at_least: bool = False
    """Whether the goal is a lower bound; else it is an upper one."""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        is_met = self.value >= self.goal if self.at_least else self.value <= self.goal
        return "met" if is_met else "missed"

    @property
    def measured(self) -> str:
        return "-" if self.value is None else f"{_figure(self.value)}{self.unit}"

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {_figure(self.goal)}{self.unit}"


def show(rows: Sequence[Row]) -> None:
    """Print a table of the rows."""
    print(f"{'what':72} {'measured':>10}  {'goal':>10}")
    for row in rows:
        print(
            f"{row.what:72} {row.measured:>10}  {row.wanted:>10}  {row.verdict}{row.note and f' ({row.note})'}"
        )


def attempted(wanted: Sequence[Row], measure: Callable[[], list[Row]]) -> list[Row]:
    """Return what `measure` finds, or the rows that are missing then."""
    try:
        return measure()
    except (AssertionError, CicError) as error:
        return not_measured(wanted, str(error) or type(error).__name__)


def not_measured(wanted: Sequence[Row], reason: str) -> list[Row]:
    return [dataclasses.replace(row, note=reason.splitlines()[0][:200]) for row in wanted]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
