"""Reads a workflow step from a folder of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from image_builder.errors import BadDescription, NotFound
from image_builder.host.cancellation import CancelToken
from image_builder.request.build_request import LATEST
from image_builder.sources.git import trees
from image_builder.sources.git.trees import Entry, Limits
from image_builder.sources.step import (
    DESCRIPTIONS,
    MAX_TEXT_BYTES,
    POST_INSTALL,
    REQUIREMENTS,
    StepFiles,
    StepFolder,
    StepRef,
    as_bad_description,
    near_hint,
    step_files,
    text_or_none,
)


def local_step(
    path: str | Path,
    *,
    workflow: str,
    step_id: str,
    version: str = LATEST,
    limits: Limits | None = None,
) -> StepRef:
    """Return the step in a folder of this machine, with the hash that git would give it.

    Git's own files do not count. Raises `NotFound` if there is no such folder, `BadDescription` if
    it contains what a step may not.
    """
    folder = Path(path).expanduser()
    entries = _local_entries(folder, limits or Limits())
    return StepRef(
        workflow=workflow,
        step_id=step_id,
        version=version,
        tree=trees.tree_digest(entries),
        path=folder.absolute(),
    )


def read_local(ref: StepRef) -> StepFiles:
    """Return the files of a local step that decide how it is built."""
    assert ref.path is not None
    return read_folder(ref.path)


def read_folder(folder: Path) -> StepFiles:
    """Return what the planner reads of a step in `folder`."""
    names = (*DESCRIPTIONS, REQUIREMENTS, POST_INSTALL)
    present = {
        name: folder / name
        for name in names
        if (folder / name).is_symlink() or (folder / name).exists()
    }

    def read(path: Path) -> bytes | None:
        return path.read_bytes() if path.stat().st_size <= MAX_TEXT_BYTES else None

    return step_files(
        present,
        lambda path: path.is_file() and not path.is_symlink(),
        read,
        _step_folder(folder.absolute(), read),
    )


def _step_folder(folder: Path, read: Callable[[Path], bytes | None]) -> StepFolder:
    """Return a reader of a folder of this machine that never leaves it."""

    def place(path: str) -> Path | None:
        resolved = (folder / path).resolve()
        return resolved if resolved.is_relative_to(folder.resolve()) and resolved.exists() else None

    def kind_of(path: str) -> Literal["file", "folder"] | None:
        resolved = place(path)
        return None if resolved is None else "folder" if resolved.is_dir() else "file"

    def text(path: str) -> str | None:
        resolved = place(path)
        return text_or_none(read(resolved)) if resolved is not None and resolved.is_file() else None

    return StepFolder(kind_of=kind_of, read=text)


def copy_local(
    ref: StepRef,
    destination: Path,
    cancel: CancelToken | None = None,
    *,
    limits: Limits | None = None,
) -> None:
    """Copy a local step to `destination`, with the checks of `WorkflowRegistry.extract`.

    Raises `BadDescription`, also if the step has changed since it was pinned.
    """
    assert ref.path is not None
    folder = ref.path
    entries = _local_entries(folder, limits or Limits())
    changed = BadDescription(
        "changed while it was read", file=str(folder), hint="Send the request again."
    )
    if trees.tree_digest(entries) != ref.tree:
        raise changed
    try:
        trees.write(
            entries, destination, lambda entry: trees.read_file(folder / entry.path), cancel
        )
    except (trees.Changed, FileNotFoundError):
        raise changed from None


def _local_entries(folder: Path, limits: Limits) -> list[Entry]:
    if not folder.is_dir():
        raise NotFound(
            f"There is no folder {trees.printable(str(folder))!r} on this machine.",
            field="path",
            hint=near_hint(folder.name, _sibling_folders(folder), f"{folder.parent} has"),
        )
    with as_bad_description():
        entries = trees.read_entries(folder, trees.walk(folder, limits=limits))
        trees.check(entries, limits)
    return entries


def _sibling_folders(folder: Path) -> list[str]:
    try:
        return [
            item.name
            for item in folder.parent.iterdir()
            if item.is_dir() and not item.name.startswith(".")
        ]
    except OSError:
        return []
