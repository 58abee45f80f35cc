"""Keeps a local mirror of a git repository, and reads it without a checkout.

Threads and processes share it. `Mirror.snapshot` says which commits the repository's references named at some recent
time, and is the only call that talks to the remote side (`fetch_commit` aside). Everything else reads the mirror's
objects. A question that was asked before starts no process: references are in one small file that is written with each
fetch, and objects never change, so what was read once is remembered.

Mirrors are bare and in one folder, each with a lock file of its own, which a fetch locks. A new mirror is made under a
temporary name and renamed into place; one that turns out to be damaged is made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import filelock

from image_builder.errors import (
    CicError,
    ErrorCode,
    LimitReached,
    Misconfigured,
    NoSpace,
    Unavailable,
)
from image_builder.host import files, process
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import ProcessFailed
from image_builder.sources.git import objects, trees
from image_builder.sources.git.objects import Damaged, TreeItem
from image_builder.sources.git.remote import Network, git_command, list_remote
from image_builder.sources.git.trees import Entry, Limits
from image_builder.sources.git.urls import GitUrl

if TYPE_CHECKING:
    from image_builder.sources.git.objects import Repo

STATE_FILE = "cic-state.json"
STATE_FORMAT = 1
REFS = "refs/cic"
LISTED = (f"{REFS}/heads", f"{REFS}/tags", f"{REFS}/head")
MAX_REMEMBERED = 5000
LOCK_POLL_S = 0.1
MIN_FREE_BYTES = 16 * 1024**2

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """Says what is mirrored, and how messages call it; `key` is the setting that names it."""

    url: GitUrl
    name: str
    key: str
    code: ErrorCode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Holds the references of a repository at one time; tags may be hashes of tag objects."""

    fetched_at: float
    head: str | None
    branches: Mapping[str, str]
    tags: Mapping[str, str]


class Mirror:
    """Mirrors one repository in the folder `mirrors`. Threads and processes may share it."""

    def __init__(
        self,
        repository: Repository,
        mirrors: Path,
        network: Network,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.repository = repository
        self._mirrors = mirrors
        self._network = network
        self._clock = clock
        key = hashlib.sha256(repository.url.text.encode()).hexdigest()[:24]
        self.folder = mirrors / f"{key}.git"
        self._reading = threading.Lock()
        self._repo: Repo | None = None
        self._owner = 0
        self._state: tuple[tuple[int, int, int], Snapshot] | None = None
        self._failure: tuple[float, Unavailable] | None = None
        self._trees: dict[str, tuple[TreeItem, ...]] = {}
        self._tree_of: dict[str, str] = {}
        self._commit_of: dict[str, str] = {}

    def close(self) -> None:
        """End the processes that read the mirror; the next question starts them again."""
        with self._reading:
            self._close_repo()

    # What the remote side says

    def snapshot(self, *, not_before: float, cancel: CancelToken | None = None) -> Snapshot:
        """Return the references as they were at `not_before` or later.

        Fetches only if the last fetch began before that. Raises `Unavailable` if the repository
        cannot be reached.
        """
        asked_at = self._clock()
        current = self._current()
        if current is not None and self._is_fresh(current, not_before):
            return current
        with self._locked(cancel):
            current = self._current()
            if current is not None and self._is_fresh(current, not_before):
                return current
            # Another thread has just tried, for all that waited.
            if self._failure is not None and self._failure[0] >= asked_at:
                raise self._failure[1]
            return self._refresh(current is not None, cancel)

    def recent(self, max_age_s: float, cancel: CancelToken | None = None) -> Snapshot:
        """Return the references as they were at most `max_age_s` ago."""
        return self.snapshot(not_before=self._clock() - max_age_s, cancel=cancel)

    def now(self) -> float:
        """Return the time, by the clock of `snapshot`."""
        return self._clock()

    def fetch_commit(self, commit: str, *, cancel: CancelToken | None = None) -> bool:
        """Fetch one commit by its full hash; return False if the remote side refuses it."""
        with self._locked(cancel):
            if self.holds(commit):
                return True
            try:
                self._git(
                    self.folder,
                    *_fetch_arguments(self.repository.url, f"+{commit}:{REFS}/commits/{commit}"),
                    cancel=cancel,
                )
            except ProcessFailed as failure:
                self._ask_whether_reachable(failure, cancel)
                return False
        return self.holds(commit)

    # What the mirror holds

    def holds(self, commit: str) -> bool:
        """Return whether the mirror has this commit; never talks to the remote side."""
        if commit in self._tree_of:
            return True
        try:
            return self._read(lambda repo: objects.kind_of(repo, commit)) == "commit"
        except Damaged:
            return False

    def peeled(self, digest: str) -> str | None:
        """Return the commit behind a tag object, or a commit itself; None for other tags."""
        if digest in self._tree_of:
            return digest
        known = self._commit_of.get(digest)
        if known is None:
            known = self._read_or_remake(lambda repo: objects.peel(repo, digest))
            _remember(self._commit_of, digest, known)
        return known or None

    def commits_beginning(self, prefix: str) -> list[str]:
        """Return the commits whose hash begins with `prefix`."""
        return self._read_or_remake(lambda repo: objects.commits_beginning(repo, prefix))

    def is_listed(self, commit: str) -> bool:
        """Return whether a branch, a tag or HEAD leads to this commit."""
        return self._read_or_remake(lambda repo: objects.is_reached_from(repo, commit, LISTED))

    def tree_of(self, commit: str) -> str:
        """Return the hash of a commit's root tree."""
        known = self._tree_of.get(commit)
        if known is None:
            known = self._read_or_remake(lambda repo: objects.tree_of_commit(repo, commit))
            _remember(self._tree_of, commit, known)
        return known

    def time_of(self, commit: str) -> int:
        """Return when a commit was made, in seconds since 1970."""
        return self._read_or_remake(lambda repo: objects.time_of_commit(repo, commit))

    def items(self, tree: str) -> tuple[TreeItem, ...]:
        """Return the rows of one tree."""
        known = self._trees.get(tree)
        if known is None:
            known = self._read_or_remake(lambda repo: objects.tree_items(repo, tree))
            _remember(self._trees, tree, known)
        return known

    def item(self, tree: str, name: str) -> TreeItem | None:
        """Return the row of this name in a tree, or None."""
        return next((item for item in self.items(tree) if item.name == name), None)

    def file(self, digest: str, max_bytes: int) -> bytes | None:
        """Return a small file's content, or None if it is larger than `max_bytes`."""
        return self._read_or_remake(lambda repo: objects.small_blob(repo, digest, max_bytes))

    def entries(
        self,
        tree: str,
        limits: Limits,
        *,
        wanted: Callable[[str], bool] = lambda _: True,
        cancel: CancelToken | None = None,
    ) -> list[Entry]:
        """Return everything below a tree that is `wanted`, in order of path.

        Raises `trees.BadTree` past the limits.
        """
        return self._with_private_repo(
            lambda repo: objects.entries_below(repo, tree, limits, wanted, cancel)
        )

    def write(
        self, entries: Sequence[Entry], destination: Path, cancel: CancelToken | None = None
    ) -> None:
        """Write checked entries to `destination`, which must be missing or empty."""

        def write(repo: Repo) -> None:
            try:
                trees.write(
                    entries,
                    destination,
                    lambda entry: objects.blob_chunks(repo, entry.digest),
                    cancel,
                )
            except trees.Changed as error:
                raise Damaged(f"{error} is not what its hash says") from error

        self._with_private_repo(write)

    # References, kept in a file next to the objects

    def _current(self) -> Snapshot | None:
        """Return what the last fetch found, or None if there is no sound mirror."""
        path = self.folder / STATE_FILE
        try:
            status = path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._state is None or self._state[0] != signature:
                self._state = (signature, _parse_state(path.read_bytes()))
            if not (self.folder / "objects").is_dir() or not (self.folder / "HEAD").is_file():
                return None
            return self._state[1]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _is_fresh(self, snapshot: Snapshot, not_before: float) -> bool:
        # A time ahead of ours means that the clock was set back.
        return not_before <= snapshot.fetched_at <= self._clock() + 1

    # Fetching

    @contextlib.contextmanager
    def _locked(self, cancel: CancelToken | None) -> Iterator[None]:
        """Hold the mirror's lock, across threads and processes."""
        with self._writing():
            self._mirrors.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = filelock.FileLock(self.folder.with_suffix(".lock"), thread_local=False)
            deadline = time.monotonic() + 2 * self._network.timeout_s
            while not _acquired(lock):
                if cancel is not None:
                    cancel.check()
                if time.monotonic() > deadline:
                    raise self._unavailable("another process has been fetching it for too long")
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise an error of the mirrors' disk in the block as one that says so."""
        try:
            yield
        except OSError as error:
            raise self._cannot_write(error.strerror or str(error)) from error

    def _cannot_write(self, why: str) -> CicError:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._mirrors).free < MIN_FREE_BYTES:
                return NoSpace(
                    f"The disk that holds {self._mirrors} is full.",
                    hint="Free some space there, or move tmp_folder.",
                )
        return Misconfigured(
            f"The folder {self._mirrors} cannot be written: {why}.",
            hint="Let the service's user write there, or move tmp_folder.",
        )

    def _refresh(self, exists: bool, cancel: CancelToken | None) -> Snapshot:
        try:
            with self._writing():
                return (self._updated(cancel) if exists else None) or self._make(cancel)
        except Unavailable as error:
            self._failure = (self._clock(), error)
            raise

    def _updated(self, cancel: CancelToken | None) -> Snapshot | None:
        """Fetch into the existing mirror; return None if it is damaged."""
        try:
            return self._fetch(self.folder, cancel)
        except ProcessFailed as failure:
            self._ask_whether_reachable(failure, cancel)
            return None

    def _make(self, cancel: CancelToken | None) -> Snapshot:
        """Make the mirror anew under a temporary name, then rename it, with the lock held."""
        for leftover in self._mirrors.glob(f"{self.folder.stem}.aside-*"):
            _remove(leftover)
        aside = self._mirrors / f"{self.folder.stem}.aside-{uuid.uuid4().hex}"
        old = self._mirrors / f"{self.folder.stem}.aside-{uuid.uuid4().hex}"
        try:
            self._git(aside, "init", "--quiet", "--bare", "--template=", cancel=cancel)
            try:
                snapshot = self._fetch(aside, cancel)
            except ProcessFailed as failure:
                if shutil.disk_usage(self._mirrors).free < MIN_FREE_BYTES:
                    raise self._cannot_write(failure.message) from failure
                raise self._unreachable(failure) from failure
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(old)
            files.move_into_place(aside, self.folder)
        finally:
            _remove(aside)
            _remove(old)
        self._tree_of.clear()
        self.close()
        return snapshot

    def _fetch(self, folder: Path, cancel: CancelToken | None) -> Snapshot:
        """Fetch every branch and tag, and HEAD if there is one; then save the references."""
        began = self._clock()
        wanted = [f"+refs/heads/*:{REFS}/heads/*", f"+refs/tags/*:{REFS}/tags/*"]
        try:
            self._git(
                folder,
                *_fetch_arguments(self.repository.url, f"+HEAD:{REFS}/head", *wanted),
                cancel=cancel,
            )
        except ProcessFailed as failure:
            if "HEAD" in self._ask_whether_reachable(failure, cancel):
                raise
            self._git(folder, "update-ref", "-d", f"{REFS}/head", cancel=cancel)
            self._git(folder, *_fetch_arguments(self.repository.url, *wanted), cancel=cancel)
        listing = self._git(
            folder,
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            REFS,
            cancel=cancel,
            capture=True,
        )
        return _write_state(folder, began, listing.decode("utf-8", "surrogateescape"))

    def _git(
        self, folder: Path, *argv: str, cancel: CancelToken | None, capture: bool = False
    ) -> bytes:
        """Run one git command in `folder`, and return what it prints if that is captured.

        Raises `ProcessFailed`, and `Unavailable` if it took too long.
        """
        command = git_command(
            f"git {argv[0]}", argv, self.repository.url, self._network, added=self._local(folder)
        )
        try:
            return process.run(command, cancel=cancel, capture_stdout=capture).stdout
        except LimitReached as error:
            raise self._unavailable(error.message) from error

    def _local(self, folder: Path) -> dict[str, str]:
        """Return the environment that names the folder in which git works.

        A repository on this machine may belong to another user, which git refuses (since 2.35.2)
        unless `safe.directory` names its folder.
        """
        added = {"GIT_DIR": str(folder)}
        if self.repository.url.scheme == "file":
            trusted = self._mirrors / "trusted.gitconfig"
            if not trusted.exists():
                files.write_whole(trusted, "[safe]\n\tdirectory = *\n")
            added["GIT_CONFIG_GLOBAL"] = str(trusted)
        return added

    def _ask_whether_reachable(
        self, failure: ProcessFailed, cancel: CancelToken | None
    ) -> Mapping[str, str]:
        """Return what the remote side offers, after a fetch that failed.

        Raises `Unavailable` if it does not answer.
        """
        try:
            return list_remote(
                self.repository.url, self._network, added=self._local(self.folder), cancel=cancel
            )
        except (ProcessFailed, LimitReached):
            raise self._unreachable(failure) from failure

    def _unreachable(self, failure: ProcessFailed) -> Unavailable:
        said = [
            line.removeprefix("fatal: ").strip()
            for line in failure.tail
            if line.startswith(("fatal:", "error:"))
        ]
        return self._unavailable(said[0] if said else failure.message)

    def _unavailable(self, why: str) -> Unavailable:
        repository = self.repository
        return Unavailable(
            f"The {repository.name} {repository.url} cannot be reached: {why}",
            code=repository.code,
            hint=f"Try again later. If it stays so, the operator should check {repository.key}, its "
            "credentials, and whether this machine reaches that host (git ls-remote tells).",
        )

    # Reading

    def _read(self, question: Callable[[Repo], _T]) -> _T:
        """Ask the open repository, then a new one, as the mirror may have been replaced."""
        with self._reading:
            try:
                with objects.reading():
                    return question(self._opened())
            except Damaged:
                self._close_repo()
            with objects.reading():
                return question(self._opened())

    def _read_or_remake(self, question: Callable[[Repo], _T]) -> _T:
        return self._rebuilding_if_corrupt(lambda: self._read(question))

    def _with_private_repo(self, question: Callable[[Repo], _T]) -> _T:
        """Ask a repository of its own, so that long reading blocks no other thread.

        `question` itself turns errors of reading into `Damaged`.
        """

        def ask() -> _T:
            with contextlib.closing(objects.open_repository(self.folder)) as repo:
                return question(repo)

        return self._rebuilding_if_corrupt(ask)

    def _rebuilding_if_corrupt(self, ask: Callable[[], _T]) -> _T:
        """Ask; if the mirror is damaged, make it anew and ask once more."""
        with contextlib.suppress(Damaged):
            return ask()
        with self._locked(None):
            try:
                return ask()  # another process may have made it anew while we waited
            except Damaged as error:
                damage = error
            with self._writing():
                self._make(None)
        try:
            return ask()
        except Damaged:
            raise self._unavailable(
                f"its mirror {self.folder} cannot be read ({damage})"
            ) from damage

    def _opened(self) -> Repo:
        """Return the open repository; after a fork it is opened again.

        Two processes cannot share git's pipes.
        """
        if self._repo is None or self._owner != os.getpid():
            self._repo, self._owner = objects.open_repository(self.folder), os.getpid()
        return self._repo

    def _close_repo(self) -> None:
        if self._repo is not None:
            self._repo.close()
            self._repo = None


def _fetch_arguments(url: GitUrl, *refspecs: str) -> tuple[str, ...]:
    return (
        "fetch",
        "--progress",
        "--prune",
        "--no-tags",
        "--force",
        "--no-recurse-submodules",
        "--no-write-fetch-head",
        "--",
        url.text,
        *refspecs,
    )


def _write_state(folder: Path, fetched_at: float, listing: str) -> Snapshot:
    """Save what a fetch found in one step, and return it."""
    state: dict[str, dict[str, str]] = {"heads": {}, "tags": {}, "head": {}}
    for line in listing.split("\n"):
        digest, _, name = line.partition(" ")
        kind, _, short = name.removeprefix(f"{REFS}/").partition("/")
        state.setdefault(kind, {})[short] = digest
    content = {
        "format": STATE_FORMAT,
        "fetched_at": fetched_at,
        "head": state["head"].get(""),
        "branches": state["heads"],
        "tags": state["tags"],
    }
    raw = json.dumps(content).encode("ascii")
    files.write_whole(folder / STATE_FILE, raw)
    return _parse_state(raw)


def _parse_state(raw: bytes) -> Snapshot:
    content = json.loads(raw)
    if content["format"] != STATE_FORMAT:
        raise ValueError("another format")
    return Snapshot(
        fetched_at=float(content["fetched_at"]),
        head=content["head"],
        branches=dict(content["branches"]),
        tags=dict(content["tags"]),
    )


_K = TypeVar("_K")


def _remember(known: dict[_K, _T], key: _K, value: _T) -> None:
    """Keep an answer that cannot change, and forget all of them when there are too many."""
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[key] = value


def _acquired(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=LOCK_POLL_S, poll_interval=LOCK_POLL_S / 4)
        return True
    except filelock.Timeout:
        return False


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
