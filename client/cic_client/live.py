"""Show a build while it runs, and a download, on a terminal that can be written over."""

from __future__ import annotations

import contextlib
import datetime
import re
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

from cic_client import models
from cic_client.client import Client
from cic_client.models import Build
from cic_client.screen import Screen
from cic_client.tables import words
from cic_client.text import duration_text, printable, time_of

MAX_PACKAGES = 16
BAR_WIDTH = 30
# Such as `fftw@3.3.10 build 95 s`; nothing of it is left out where a service writes it otherwise.
_AT_WORK = re.compile(r"(?P<package>\S*) ?(?P<phase>.*?)(?: (?P<seconds>[0-9]{1,9}) s)?", re.DOTALL)
STAGES = (
    ("queued", "created_at"),
    ("started", "started_at"),
    ("building", "building_at"),
    ("converting", "converting_at"),
    ("ended", "ended_at"),
)
_MORE = re.compile(r"[0-9]{1,9} more")


def watched(client: Client, build_id: str, screen: Screen) -> Build:
    """Return a build once it has ended; show how it stands meanwhile.

    Without a terminal, each change is one line.
    """
    if not screen.live.is_terminal:
        return _in_lines(client, build_id, screen)
    builds = client.watch(build_id)
    latest = next(builds)
    with Live(
        get_renderable=lambda: view(latest, _now()), console=screen.live, refresh_per_second=4
    ) as live:
        for latest in builds:  # noqa: B007 - the view shows it
            live.refresh()
    return latest


def view(build: Build, now: datetime.datetime) -> RenderableType:
    """Return a build's picture: its stages with their times, and how many packages are there."""
    parts: list[RenderableType] = [
        _line(Text.assemble(words(build.status), "  ", words(build.image_id))),
        _stages(build, now),
    ]
    if not build.has_ended:
        if build.stage:
            parts.append(_line(words(build.stage)))
        if build.progress and build.progress.total > 0:
            parts += _packages(build.progress)
    if build.message:
        parts.append(words(build.message))
    return Group(*parts)


def _stages(build: Build, now: datetime.datetime) -> Table:
    """Return what the build went through: a line each, with when it began and how long it took."""
    table = Table.grid(padding=(0, 2))
    begins = [(name, time_of(getattr(build, field))) for name, field in STAGES]
    reached = [(name, begin) for name, begin in begins if begin is not None]
    for number, (name, begin) in enumerate(reached):
        is_last = number == len(reached) - 1
        end = now if is_last else reached[number + 1][1]
        mark = "•" if is_last and not build.has_ended else "✓"
        took = "" if name == "ended" else duration_text((end - begin).total_seconds())
        table.add_row(mark, name, begin.astimezone().strftime("%H:%M:%S"), took)
    return table


def _packages(progress: models.Progress) -> list[RenderableType]:
    """Return a bar of what is installed, and the packages that are built side by side, a line each."""
    done, total = min(progress.done, progress.total), progress.total
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total, done, width=BAR_WIDTH), f"{progress.done} of {total}")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column()
    table.add_column(justify="right", no_wrap=True)  # where room is short, the others give way
    for one in (progress.what or "").split(", ")[:MAX_PACKAGES]:
        if _MORE.fullmatch(one):
            table.add_row(_line(words(f"  and {one}")))
            continue
        match = _AT_WORK.fullmatch(printable(one).strip())
        assert match is not None, "the pattern takes every text"
        took = duration_text(int(match["seconds"])) if match["seconds"] else ""
        table.add_row(_line(words(f"  {match['package']}")), _line(words(match["phase"])), took)
    return [bar, table]


def _line(text: Text) -> Text:
    """Return a text that takes one line of the terminal, however narrow that is."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


@contextlib.contextmanager
def download_bar(filename: str, screen: Screen) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a file is here, as the calls of what this yields say."""
    bar = Progress(
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=screen.live,
        disable=not screen.live.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None, name=words(filename).plain)
        yield lambda present, size: bar.update(task, completed=present, total=size)


def pulled(
    client: Client,
    screen: Screen,
    filename: str,
    folder: Path,
    *,
    name: str | None = None,
    sha256: str | None = None,
) -> Path:
    """Fetch an image file into a folder with a bar, and return its path."""
    with download_bar(filename, screen) as progress:
        path = client.download(filename, folder, name=name, sha256=sha256, progress=progress)
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
