"""Show the service's answers to people, as tables and lines. Nothing of a server is printed raw."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cic_client import models
from cic_client.text import json_text, local_time_text, printable, size_text

STYLES = {
    "FINISHED": "green", "FAILED": "red", "BUILDING": "cyan", "CONVERTING": "cyan", "STARTED": "cyan",
    "runs": "green", "runs_but": "yellow", "does_not_run": "red", "error": "red", "warning": "yellow",
}  # fmt: skip


def words(text: str, style: str = "") -> Text:
    """Return a server's text for a terminal, with the style of its own if none is given."""
    clean = printable(text)
    return Text(clean, style=style or STYLES.get(clean, ""))


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where answers and notes go. With `as_json`, answers are the service's JSON."""

    out: Console
    notes: Console
    as_json: bool

    @classmethod
    def of_terminal(cls, *, as_json: bool = False) -> Screen:
        """Return the terminal, or whatever stands in its place."""
        plain: Any = {"markup": False, "emoji": False, "highlight": False}
        return cls(
            Console(soft_wrap=True, **plain), Console(stderr=True, soft_wrap=True, **plain), as_json
        )

    def note(self, text: str, style: str = "") -> None:
        """Tell what happens, beside the answers."""
        self.notes.print(words(text, style))

    def answer(self, answer: models.Answer) -> bool:
        """Print an answer if JSON is wanted, and return whether it is."""
        if self.as_json:
            print(json_text(answer.as_json()))
        return self.as_json

    def builds(self, answer: models.BuildList) -> None:
        if self.answer(answer):
            return
        self._table(
            ("id", "status", "created", "image"),
            (
                (one.id, one.status, local_time_text(one.created_at), one.image_id)
                for one in answer.builds
            ),
        )
        if answer.pages > 1:
            self.note(f"page {answer.page} of {answer.pages}, {answer.total} builds")

    def images(self, answer: models.ImageList) -> None:
        if self.answer(answer):
            return
        self._table(
            ("image", "platform", "size", "created", "seen by"),
            (
                (
                    one.filename,
                    one.platform,
                    size_text(one.size_bytes),
                    local_time_text(one.created_at),
                    one.visibility,
                )
                for one in answer.images
            ),
        )

    def machines(self, answer: models.MachineList) -> None:
        if self.answer(answer):
            return
        self._table(
            ("machine", "title", "architecture", "MPI", "GPU"),
            (
                (
                    one.name,
                    one.title,
                    one.architecture or one.platform,
                    one.mpi or "",
                    one.gpu or "",
                )
                for one in answer.machines
            ),
        )

    def build(self, build: models.Build) -> None:
        if self.answer(build):
            return
        progress = build.progress
        self._facts(
            ("build", build.id),
            ("status", build.status),
            ("stage", build.stage if not build.has_ended else None),
            (
                "progress",
                f"{progress.done} of {progress.total} {progress.what or ''}" if progress else None,
            ),
            ("image", build.image_id),
            ("file", build.filename),
            ("size", size_text(build.size_bytes)),
            ("sha256", build.sha256),
            ("identity", build.identity),
            ("created", local_time_text(build.created_at)),
            ("ended", local_time_text(build.ended_at)),
            ("error", build.error_code),
            ("message", build.message),
            ("hint", build.hint),
        )
        self._warnings(build.warnings)

    def plan(self, plan: models.Plan, against: models.Plan | None = None) -> None:
        """Show what would be built; with an earlier plan, in which lines it differs."""
        if self.answer(plan):
            return
        self._facts(
            ("image", plan.image_id),
            ("file", plan.filename),
            ("identity", plan.identity or "not known"),
            ("was", against.identity if against and against.identity != plan.identity else None),
        )
        self._warnings(plan.warnings)
        for name in ("description_yaml", "spack_yaml", "dockerfile"):
            now = getattr(plan, name) or ""
            if against is not None:
                self._difference(name, getattr(against, name) or "", now)
            elif now and name != "dockerfile":
                self.out.print(Text(f"\n{name}", style="bold"))
                self.out.print(words(now.rstrip()))

    def check(self, check: models.Check) -> None:
        if self.answer(check):
            return
        self._facts(("image", check.image), ("machine", check.machine), ("answer", check.answer))
        for finding in check.findings:
            self.out.print(
                words(finding.level),
                words(f"{finding.subject}: {finding.message} {finding.hint}".rstrip()),
            )
        if check.unknown:
            self.out.print(words(f"not known: {', '.join(check.unknown)}"))
        if check.run_command:
            self.out.print(words(check.run_command))

    def _facts(self, *facts: tuple[str, str | None]) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in facts:
            if value:
                table.add_row(name, words(value))
        self.out.print(table)

    def _warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self.out.print(words("warning"), words(warning))

    def _table(self, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(*names, box=None, pad_edge=False, header_style="bold")
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*map(words, row))
        self.out.print(table)

    def _difference(self, name: str, before: str, now: str) -> None:
        lines = difflib.unified_diff(
            before.splitlines(), now.splitlines(), f"{name} before", f"{name} now", lineterm=""
        )
        for line in lines:
            self.out.print(words(line, {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")))
