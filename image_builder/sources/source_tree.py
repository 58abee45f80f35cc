"""Reads folders and git repositories of the site, pinned by the tree of what is used."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from image_builder.errors import ErrorCode, Misconfigured, Unavailable
from image_builder.host import files
from image_builder.host.cancellation import CancelToken
from image_builder.request.build_request import LATEST
from image_builder.sources.git import trees
from image_builder.sources.git.mirror import Mirror, Repository
from image_builder.sources.git.remote import Network
from image_builder.sources.git.revisions import Ambiguous, Versions
from image_builder.sources.git.trees import BadTree, Entry, Found, Limits
from image_builder.sources.git.urls import BadGitUrl, Source, folder_url, parse_source

LIMITS = Limits(max_files=200_000, max_bytes=1024**3)
KEPT_S = 30 * 24 * 3600.0
UNSETTLED_NS = 2_000_000_000
"""How long after a change a file may change again without a new time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PinnedTree:
    """Holds what a source contains at one time: the tree, and the commit if it is from git."""

    tree: str
    commit: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeKind:
    """Describes what a source contains, and how messages call it.

    `key` is the setting that names the source, `wanted` says which files count, and `required` is
    the file that must be there.
    """

    name: str
    key: str
    wanted: Callable[[str], bool]
    required: str | None = None

    def check(self, entries: Sequence[Entry], place: str) -> None:
        """Raise `Misconfigured` if a build cannot use these files."""
        try:
            trees.check(entries, LIMITS)
        except BadTree as error:
            raise self.unusable(place, str(error), error.hint) from error
        if self.required is not None and all(entry.path != self.required for entry in entries):
            raise self.unusable(
                place, f"it has no {self.required}, which every Spack package repository has"
            )

    def unusable(self, place: str, why: str, hint: str = "") -> Misconfigured:
        return Misconfigured(
            f"The {self.name} {place} cannot be used: {why}. The setting is {self.key}.",
            code=ErrorCode.CATALOGUE_UNAVAILABLE,
            hint=hint or "Write a folder that the service's user may read, a git URL, or None.",
        )


class FolderSource:
    """Pins a folder of this machine, and keeps a copy of each pinned tree while builds wait.

    A copy is named by its tree's hash.
    """

    def __init__(self, folder: Path, kind: TreeKind, kept: Path) -> None:
        self._folder = folder
        self._kind = kind
        self._kept = kept
        self._lock = threading.Lock()
        self._known: tuple[list[Found] | None, str] | None = None

    def pin(self, cancel: CancelToken | None = None) -> PinnedTree:
        listing = self._walk()
        with self._lock:
            if (
                self._known is None
                or self._known[0] != listing
                or not (self._kept / self._known[1]).is_dir()
            ):
                entries = self._entries(listing)
                tree = trees.tree_digest(entries)
                self._keep(tree, entries, cancel)
                self._known = (listing if _settled(listing) else None, tree)
            tree = self._known[1]
        with contextlib.suppress(OSError):
            os.utime(self._kept / tree)
        return PinnedTree(tree=tree, commit=None)

    def copy(self, pin: PinnedTree, destination: Path, cancel: CancelToken | None) -> None:
        kept = self._require(pin.tree)
        entries = trees.read_entries(kept, trees.walk(kept, limits=LIMITS))
        trees.write(entries, destination, lambda entry: trees.read_file(kept / entry.path), cancel)

    def file(self, pin: PinnedTree, names: Sequence[str]) -> bytes | None:
        kept = self._require(pin.tree)
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return (kept / name).read_bytes()
        return None

    def close(self) -> None:
        """Do nothing: a folder needs no open process."""

    def _walk(self) -> list[Found]:
        try:
            return trees.walk(self._folder, limits=LIMITS, wanted=self._kind.wanted)
        except BadTree as error:
            raise self._kind.unusable(str(self._folder), str(error), error.hint) from error
        except OSError as error:
            raise self._kind.unusable(
                str(self._folder), f"it cannot be read ({error.strerror})"
            ) from error

    def _entries(self, found: Sequence[Found]) -> list[Entry]:
        try:
            entries = trees.read_entries(self._folder, found)
        except BadTree as error:
            raise self._kind.unusable(str(self._folder), str(error), error.hint) from error
        self._kind.check(entries, str(self._folder))
        return entries

    def _keep(self, tree: str, entries: Sequence[Entry], cancel: CancelToken | None) -> None:
        """Copy the folder to a temporary name, then rename it to its tree's hash."""
        if (self._kept / tree).is_dir():
            return
        self._kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget_old()
        aside = self._kept / f"aside-{uuid.uuid4().hex}"
        try:
            trees.write(
                entries, aside, lambda entry: trees.read_file(self._folder / entry.path), cancel
            )
        except (trees.Changed, FileNotFoundError) as error:
            raise Unavailable(
                f"The {self._kind.name} {self._folder} changed while it was read.",
                code=ErrorCode.CATALOGUE_UNAVAILABLE,
                hint="Try again in a moment.",
            ) from error
        os.utime(aside)
        try:
            files.move_into_place(aside, self._kept / tree)
        except OSError:  # another process was faster: the same files
            shutil.rmtree(aside, ignore_errors=True)
            if not (self._kept / tree).is_dir():
                raise

    def _forget_old(self) -> None:
        horizon = time.time() - KEPT_S
        for folder in self._kept.iterdir():
            with contextlib.suppress(OSError):
                # A time of MTIME_S means that another process has just written the folder.
                if trees.MTIME_S < folder.stat().st_mtime < horizon:
                    shutil.rmtree(folder, ignore_errors=True)

    def _require(self, tree: str) -> Path:
        kept = self._kept / tree
        if not kept.is_dir() and self.pin().tree != tree:
            raise Unavailable(
                f"What was pinned of the {self._kind.name} {self._folder} is not there any more.",
                code=ErrorCode.CATALOGUE_UNAVAILABLE,
                hint="Send the request again.",
            )
        return kept


class GitSource:
    """Pins a folder in a git repository, at one of its revisions."""

    def __init__(self, mirror: Mirror, source: Source, kind: TreeKind, max_age_s: float) -> None:
        self._mirror = mirror
        self._versions = Versions(mirror)
        self._ref = source.ref or LATEST
        self._inside = source.inside
        self._kind = kind
        self._max_age_s = max_age_s
        self._trees: dict[str, str] = {}

    def pin(self, cancel: CancelToken | None = None) -> PinnedTree:
        try:
            resolved = self._versions.resolve(
                self._ref, self._mirror.recent(self._max_age_s, cancel)
            )
        except Ambiguous:
            resolved = None
        if resolved is None:
            raise self._unusable(
                f"it has no version {self._ref!r}",
                "Write a branch, tag or commit of it after the #.",
            )
        commit = resolved.commit
        if commit not in self._trees:
            self._trees[commit] = trees.tree_digest(self._entries(commit, cancel))
        return PinnedTree(tree=self._trees[commit], commit=commit)

    def copy(self, pin: PinnedTree, destination: Path, cancel: CancelToken | None) -> None:
        self._mirror.write(self._entries(self._require(pin, cancel), cancel), destination, cancel)

    def file(self, pin: PinnedTree, names: Sequence[str]) -> bytes | None:
        root = self._folder(self._require(pin, None))
        for name in names:
            *folders, last = name.split("/")
            tree = self._descend(root, folders)
            item = self._mirror.item(tree, last) if tree is not None else None
            if item is not None and item.is_file:
                return self._mirror.file(item.digest, LIMITS.max_bytes)
        return None

    def close(self) -> None:
        self._mirror.close()

    def _entries(self, commit: str, cancel: CancelToken | None) -> list[Entry]:
        try:
            entries = self._mirror.entries(
                self._folder(commit), LIMITS, wanted=self._kind.wanted, cancel=cancel
            )
        except BadTree as error:
            raise self._unusable(str(error), error.hint) from error
        self._kind.check(entries, str(self._mirror.repository.url))
        return entries

    def _folder(self, commit: str) -> str:
        tree = self._descend(
            self._mirror.tree_of(commit), self._inside.split("/") if self._inside else []
        )
        if tree is None:
            raise self._unusable(
                f"it has no folder {self._inside!r}", "Write a folder of it after the #ref:."
            )
        return tree

    def _unusable(self, why: str, hint: str) -> Misconfigured:
        return self._kind.unusable(str(self._mirror.repository.url), why, hint)

    def _descend(self, tree: str, folders: Sequence[str]) -> str | None:
        for name in folders:
            item = self._mirror.item(tree, name)
            if item is None or not item.is_folder:
                return None
            tree = item.digest
        return tree

    def _require(self, pin: PinnedTree, cancel: CancelToken | None) -> str:
        """Return the pinned commit, and fetch it again if the mirror lost it."""
        assert pin.commit is not None
        if not self._mirror.holds(pin.commit):
            self._mirror.recent(self._max_age_s, cancel)
            if not self._mirror.holds(pin.commit) and not self._mirror.fetch_commit(
                pin.commit, cancel=cancel
            ):
                raise Unavailable(
                    f"Commit {pin.commit[:12]} is no longer in the {self._mirror.repository.name}.",
                    code=ErrorCode.CATALOGUE_UNAVAILABLE,
                    hint="Send the request again.",
                )
        return pin.commit


TreeSource = FolderSource | GitSource


def open_source(
    text: str | None, kind: TreeKind, mirrors: Path, network: Network, max_age_s: float
) -> TreeSource | None:
    """Open what a setting names: a folder of this machine or a git URL; None for None.

    Raises `Misconfigured`.
    """
    if not text:
        return None
    try:
        source = parse_source(text, network.schemes)
    except BadGitUrl as error:
        raise Misconfigured(
            f"{kind.key} cannot be used: {error}.",
            code=ErrorCode.CATALOGUE_UNAVAILABLE,
            hint="Write a folder or a git URL, or None.",
        ) from None
    if source.folder is not None and not _is_bare_repository(source.folder):
        return FolderSource(source.folder, kind, mirrors / "folders")
    repository = Repository(
        url=source.url or folder_url(source.folder or Path()),
        name=kind.name,
        key=kind.key,
        code=ErrorCode.CATALOGUE_UNAVAILABLE,
    )
    return GitSource(Mirror(repository, mirrors, network), source, kind, max_age_s)


def _is_bare_repository(folder: Path) -> bool:
    return (
        (folder / "HEAD").is_file() and (folder / "objects").is_dir() and (folder / "refs").is_dir()
    )


def _settled(found: Sequence[Found]) -> bool:
    newest = max((max(file.mtime_ns, file.ctime_ns) for file in found), default=0)
    return time.time_ns() - newest > UNSETTLED_NS
