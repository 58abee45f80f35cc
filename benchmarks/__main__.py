"""Run all benchmarks with a goal in turn: `python3 -m benchmarks [--write] [NAME ...]`.

`--write` puts the table and the plot into the documentation, where each benchmark's rows are of its
latest run: `measured.json` keeps them. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import pygal

from benchmarks.docs import DOCS, replace_table
from benchmarks.rows import Row, show

NAMES = (
    "status",
    "slow_clients",
    "submitting",
    "cancelling",
    "own_time",
    "download",
    "conversion",
    "slim",
    "spack",
    "installs",
    "to_sif",
    "concretization",
    "specialised",
    "throughput",
    "answers",
    "proof",
    "client",
)
MEASURED = Path(__file__).with_name("measured.json")
COLORS = {"met": "#2a7f3f", "missed": "#b3361e"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if none is given"
    )
    parser.add_argument(
        "--write", action="store_true", help="write table and plot into docs/performance.md"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    missed = False
    for name in options.names or NAMES:
        print(f"\n{name}", flush=True)
        found = importlib.import_module(f"benchmarks.{name}").rows()
        show(found)
        missed |= any(row.verdict == "missed" for row in found)
        if options.write:
            keep(name, found)
    if options.write:
        write(kept())
    return 1 if missed else 0


def keep(name: str, rows: Sequence[Row]) -> None:
    """Remember the rows of one run, in place of those of an earlier one."""
    runs = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    day = datetime.datetime.now(datetime.timezone.utc).date()
    runs[name] = {
        "where": f"{day}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    MEASURED.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n", "utf-8")


def kept() -> dict[str, list[Row]]:
    """Return the rows of each benchmark's latest run, by where and when that was."""
    runs = json.loads(MEASURED.read_text("utf-8"))
    found: dict[str, list[Row]] = {}
    for name in NAMES:
        if name in runs:
            found.setdefault(runs[name]["where"], []).extend(
                Row(**row) for row in runs[name]["rows"]
            )
    return found


def write(runs: Mapping[str, Sequence[Row]]) -> None:
    """Replace the table in the documentation, and the plot."""
    replace_table(
        DOCS / "performance.md", "\n".join(table(where, rows) for where, rows in runs.items())
    )
    (DOCS / "performance.svg").write_bytes(plot([row for rows in runs.values() for row in rows]))


def table(where: str, rows: Sequence[Row]) -> str:
    """Return the rows in Markdown, and where and when they were measured."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    for row in rows:
        what = f"{row.what}{row.note and f' ({row.note})'}".replace(
            "|", r"\|"
        )  # else a cell ends there
        lines.append(f"| {what} | {row.measured} | {row.wanted} | {row.verdict} |")
    return "\n".join(lines) + f"\n\nMeasured on {where}.\n"


def plot(rows: Sequence[Row]) -> bytes:
    """Return an SVG picture of the figures over their goals: 1 is the goal, less is better."""
    measured = [row for row in rows if row.value]
    chart = pygal.HorizontalBar(
        title="Measured against the goal (1 = the goal, shorter is better)",
        width=1000,
        height=80 + 34 * len(measured),
        include_x_axis=True,
        y_labels=[0, 0.25, 0.5, 0.75, 1],
        print_values=True,
        show_legend=False,
        value_formatter=lambda value: f"{value:.2g}",
        truncate_label=-1,
        js=[],
    )
    chart.x_labels = [row.what for row in reversed(measured)]
    chart.add(
        "against the goal",
        [{"value": against_goal(row), "color": COLORS[row.verdict]} for row in reversed(measured)],
    )
    made: bytes = chart.render()
    return made


def against_goal(row: Row) -> float:
    """Return the figure divided by its goal, or the goal by the figure where more is better."""
    assert row.value is not None
    ratio = row.goal / row.value if row.at_least else row.value / row.goal
    return ratio if math.isfinite(ratio) else 100.0


if __name__ == "__main__":
    raise SystemExit(main())
