"""Show the service's answers to people, as tables and lines. Nothing of a server is printed raw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from cic_client import models
from cic_client.screen import Screen
from cic_client.text import duration_text, local_time_text, printable, size_text, time_of

STYLES = {
    "FINISHED": "green", "FAILED": "red", "BUILDING": "cyan", "CONVERTING": "cyan", "STARTED": "cyan",
    "runs": "green", "runs_but": "yellow", "does_not_run": "red", "error": "red", "warning": "yellow",
}  # fmt: skip


def words(text: str, style: str = "") -> Text:
    """Return a server's text for a terminal, with the style of its own if none is given."""
    clean = printable(text)
    return Text(clean, style=style or STYLES.get(clean, ""))


def show_builds(screen: Screen, answer: models.BuildList) -> None:
    if screen.answer(answer):
        return
    _show_table(
        screen,
        ("id", "status", "created", "image"),
        (
            (one.id, one.status, local_time_text(one.created_at), one.image_id)
            for one in answer.builds
        ),
    )
    if answer.pages > 1:
        screen.note(f"page {answer.page} of {answer.pages}, {answer.total} builds")


def show_timeline(screen: Screen, answer: models.Timeline) -> None:
    """Show the spans of a build in their order, those within a step farther in."""
    if screen.answer(answer):
        return
    if not answer.spans:
        screen.note("The image was there already: nothing ran for this build.")
    begins = [time_of(span.began_at) for span in answer.spans]
    first = min((begin for begin in begins if begin is not None), default=None)
    _show_table(
        screen,
        ("what", "began after", "took", "outcome"),
        (
            (
                ("" if span.kind == "step" else "  ")
                + (f"{span.name}@{span.version}" if span.version else span.name),
                ""
                if begin is None or first is None
                else duration_text((begin - first).total_seconds()),
                "" if span.seconds is None else f"{span.seconds:.1f} s",
                span.outcome or "goes on",
            )
            for span, begin in zip(answer.spans, begins, strict=True)
        ),
    )
    if answer.left_out:
        screen.note(f"{answer.left_out} more were too many to keep")


def show_images(screen: Screen, answer: models.ImageList) -> None:
    if screen.answer(answer):
        return
    _show_table(
        screen,
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


def show_packages(screen: Screen, answer: models.PackageList) -> None:
    if screen.answer(answer):
        return
    if answer.source is None:
        screen.note("Nothing is known of what is in this image.")
    _show_table(
        screen,
        ("package", "version", "licence", "kind", "origin"),
        (
            (one.name, one.version, one.licence or "", one.kind, one.origin or "")
            for one in answer.packages
        ),
    )
    if answer.pages > 1:
        screen.note(f"page {answer.page} of {answer.pages}, {answer.total} packages")


def show_machines(screen: Screen, answer: models.MachineList) -> None:
    if screen.answer(answer):
        return
    _show_table(
        screen,
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


def show_build(screen: Screen, build: models.Build) -> None:
    if screen.answer(build):
        return
    progress = build.progress if not build.has_ended else None
    show_facts(
        screen,
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
    show_warnings(screen, build.warnings)


def show_check(screen: Screen, check: models.Check) -> None:
    if screen.answer(check):
        return
    show_facts(screen, ("image", check.image), ("machine", check.machine), ("answer", check.answer))
    for finding in check.findings:
        screen.out.print(
            words(finding.level),
            words(f"{finding.subject}: {finding.message} {finding.hint}".rstrip()),
        )
    if check.unknown:
        screen.out.print(words(f"not known: {', '.join(check.unknown)}"))
    if check.run_command:
        screen.out.print(words(check.run_command))


def show_facts(screen: Screen, *facts: tuple[str, str | None]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, words(value))
    screen.out.print(table)


def show_warnings(screen: Screen, warnings: Iterable[str]) -> None:
    for warning in warnings:
        screen.out.print(words("warning"), words(warning))


def _show_table(screen: Screen, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(words, row))
    screen.out.print(table)
