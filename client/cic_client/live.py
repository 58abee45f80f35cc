"""Show a build while it runs, and a download, on a terminal that can be written over."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cic_client.client import Client
from cic_client.models import Build
from cic_client.screen import Screen
from cic_client.tables import words
from cic_client.text import duration_text, time_of

MAX_PACKAGES = 16
STAGES = (
    ("queued", "created_at"),
    ("started", "started_at"),
    ("building", "building_at"),
    ("converting", "converting_at"),
    ("ended", "ended_at"),
)


def watched(client: Client, build_id: str, screen: Screen) -> Build:
    """Return a build once it has ended; show how it stands meanwhile.

    Without a terminal, each change is one line.
    """
    if not screen.notes.is_terminal:
        return _in_lines(client, build_id, screen)
    latest = client.status(build_id)
    with Live(
        get_renderable=lambda: view(latest, _now()), console=screen.notes, refresh_per_second=4
    ) as live:
        for latest in client.watch(build_id):  # noqa: B007 - the view shows it
            live.refresh()
    return latest


def view(build: Build, now: datetime.datetime) -> RenderableType:
    """Return a build's picture: its stages with their times, and how many packages are there."""
    stages = Table.grid(padding=(0, 2))
    begins = [(name, time_of(getattr(build, field))) for name, field in STAGES]
    reached = [(name, begin) for name, begin in begins if begin is not None]
    for number, (name, begin) in enumerate(reached):
        is_last = number == len(reached) - 1
        end = now if is_last else reached[number + 1][1]
        mark = "•" if is_last and not build.has_ended else "✓"
        took = "" if name == "ended" else duration_text((end - begin).total_seconds())
        stages.add_row(mark, name, begin.astimezone().strftime("%H:%M:%S"), took)
    parts: list[RenderableType] = [
        Text.assemble(words(build.status), "  ", words(build.image_id)),
        stages,
    ]
    if not build.has_ended and build.stage:
        parts.append(words(build.stage))
    if not build.has_ended and build.progress and build.progress.total > 0:
        done, total = build.progress.done, build.progress.total
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total, min(done, total), width=40), f"{done} of {total}")
        parts.append(line)
        # Packages that are built side by side, a line each.
        parts += [
            words(f"  {one}") for one in (build.progress.what or "").split(", ")[:MAX_PACKAGES]
        ]
    if build.message:
        parts.append(words(build.message))
    return Group(*parts)


@contextlib.contextmanager
def download_bar(filename: str, screen: Screen) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a file is here, as the calls of what this yields say."""
    bar = Progress(
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=screen.notes,
        disable=not screen.notes.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None, name=words(filename).plain)
        yield lambda present, size: bar.update(task, completed=present, total=size)


def pulled(
    client: Client, screen: Screen, filename: str, folder: Path, sha256: str | None = None
) -> Path:
    """Fetch an image file into a folder with a bar, and return its path."""
    with download_bar(filename, screen) as progress:
        path = client.download(filename, folder, sha256=sha256, progress=progress)
    screen.note(f"{path} is here, and is what the service names.")
    return path


def _in_lines(client: Client, build_id: str, screen: Screen) -> Build:
    seen = ""
    for build in client.watch(build_id):
        line = build.status + (f" ({build.stage})" if build.stage and not build.has_ended else "")
        if line != seen:
            screen.note(line)
        seen = line
    return build


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
