"""Defines the files of a workflow step, from a registry or from a folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from image_builder.errors import BadDescription
from image_builder.request.cpu_targets import nearest
from image_builder.settings import RepositorySettings
from image_builder.sources.git.trees import BadTree, Limits

DESCRIPTIONS = ("eflows4hpc.yaml", "eflows4hpc.yml")
REQUIREMENTS = "requirements.txt"
POST_INSTALL = "post_inst.sh"
MAX_TEXT_BYTES = 256 * 1024
MAX_LISTED = 12
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRef:
    """Names one step, pinned by the hash that git gives its folder, also for a local `path`.

    `tree` is that hash. `commit` is what the version meant when it was looked up; None for a local
    path. `time_s` is when that commit was made, where no registry is asked for it, in seconds since
    1970. `text` is the description of a step that a request describes itself, and that has no other
    file.
    """

    workflow: str
    step_id: str
    version: str
    tree: str
    commit: str | None = None
    path: Path | None = None
    text: str | None = None
    time_s: int | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFolder:
    """Reads the other files of a step, which its requirements may name.

    `kind_of` says whether a path of the step is a `file` or a `folder`, or None for nothing; `read`
    gives a file's text, or None for what is no text of at most `MAX_TEXT_BYTES`.
    """

    kind_of: Callable[[str], Literal["file", "folder"] | None]
    read: Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFiles:
    """Holds what the planner reads of a step: its description, requirements and script."""

    description_file: str
    description: str
    requirements: str | None = None
    has_post_install: bool = False
    warnings: tuple[str, ...] = ()
    folder: StepFolder | None = dataclasses.field(default=None, compare=False)


def limits_of(settings: RepositorySettings) -> Limits:
    """Return how many files and bytes a step may have on this site."""
    return Limits(max_files=settings.step_max_files, max_bytes=settings.step_max_bytes)


@contextlib.contextmanager
def as_bad_description() -> Iterator[None]:
    """Raise a `BadTree` of the block as `BadDescription`, which is the step's fault."""
    try:
        yield
    except BadTree as error:
        hint = f"{error.hint[:1].upper()}{error.hint[1:]}." if error.hint else ""
        raise BadDescription(
            error.problem, file=error.path or "the step's folder", hint=hint
        ) from error


def step_files(
    present: Mapping[str, _T],
    is_file: Callable[[_T], bool],
    read: Callable[[_T], bytes | None],
    folder: StepFolder | None = None,
) -> StepFiles:
    """Return the parts of a step from what is `present` in its folder.

    `read` gives None for a file that is too large.
    """

    def content(name: str) -> bytes:
        if not is_file(present[name]):
            raise BadDescription(
                "is not a regular file", file=name, hint="Put the file itself there, no link."
            )
        raw = read(present[name])
        if raw is None:
            raise BadDescription(
                f"is larger than {MAX_TEXT_BYTES // 1024} KiB", file=name, hint="Shorten it."
            )
        return raw

    names = [name for name in DESCRIPTIONS if name in present]
    if not names:
        raise BadDescription(
            "is missing in the step's folder",
            file=DESCRIPTIONS[0],
            hint="Add one with apt, pip or spack, for example:\nspack:\n  specs:\n  - openmpi",
        )
    has_post_install = POST_INSTALL in present
    if has_post_install:
        content(POST_INSTALL)  # refuses what is no file, and what is too large
    return StepFiles(
        description_file=names[0],
        description=_text(content(names[0]), names[0]),
        requirements=_text(content(REQUIREMENTS), REQUIREMENTS)
        if REQUIREMENTS in present
        else None,
        folder=folder,
        has_post_install=has_post_install,
        warnings=(f"The step has {names[0]} and {names[1]}; {names[0]} is used.",)
        if len(names) > 1
        else (),
    )


def text_or_none(raw: bytes | None) -> str | None:
    """Return a file's text; None for what is too large, or is not UTF-8."""
    try:
        return None if raw is None else raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _text(raw: bytes, file: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDescription(
            "is not UTF-8 text",
            file=file,
            line=raw.count(b"\n", 0, error.start) + 1,
            hint="Save it as UTF-8.",
        ) from None


def near_hint(name: str, known: Sequence[str], lead: str) -> str:
    """Return what to write instead of `name`: the nearest known names, or else all of them."""
    close = nearest(name, known)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not known:
        return f"{lead} none."
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"{lead} {', '.join(known[:MAX_LISTED])}{more}."
