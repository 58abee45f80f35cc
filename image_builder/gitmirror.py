"""A local mirror of a git repository: fetched, shared by threads and processes, and read without a checkout.

`Mirror.snapshot` says which commits the repository's references named at some recent time, and is the only call that
talks to the other side (`fetch_commit` aside). Everything else reads the mirror's objects, through GitPython, which is
used in this module alone. A warm question starts no process: references lie in one small file that is written with
each fetch, and objects never change, so what was read once is remembered.

Mirrors are bare and lie in one folder, each beside a lock file. Whoever fetches holds the lock. A new mirror is made
aside and renamed into place; one that turns out to be damaged is made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import filelock

from image_builder import process, trees
from image_builder.errors import ErrorCode, LimitReached, ToolMissing, Unavailable
from image_builder.gitremote import GitUrl, Network, git_command, list_remote, quiet_environment
from image_builder.process import CancelToken, ProcessFailed
from image_builder.trees import Entry, Limits

if TYPE_CHECKING:
    import git

LATEST = "latest"
STATE_FILE = "cic-state.json"
STATE_FORMAT = 1
REFS = "refs/cic"
MIN_ABBREVIATION, FULL_HASH = 7, 40
MAX_REMEMBERED = 5000
LOCK_POLL_S = 0.1

_HEX = re.compile(r"[0-9a-f]+\Z")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """What is mirrored, and how messages speak of it. `key` is the setting that names it."""

    url: GitUrl
    name: str
    key: str
    code: ErrorCode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The references of a repository at one time. Hashes of tags may be those of tag objects."""

    fetched_at: float
    head: str | None
    branches: Mapping[str, str]
    tags: Mapping[str, str]

    def same_references(self, other: Snapshot) -> bool:
        return (self.head, self.branches, self.tags) == (other.head, other.branches, other.tags)

    @property
    def default_branch(self) -> str | None:
        """The branch that HEAD seems to be: git does not always tell."""
        candidates = [name for name, commit in self.branches.items() if commit == self.head]
        return next((name for name in ("main", "master") if name in candidates), next(iter(sorted(candidates)), None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """The commit that a version names, and what a reader of the answer should know."""

    commit: str
    warnings: tuple[str, ...] = ()


class Ambiguous(ValueError):
    """An abbreviated commit that several commits begin with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeItem:
    """One row of a tree object, as it lies there: nothing about it is checked."""

    name: str
    mode: int
    digest: str

    @property
    def is_folder(self) -> bool:
        return self.mode == trees.FOLDER

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == 0o100000


class _Damaged(Exception):
    """The mirror cannot be read as it should: it has to be made anew."""


class Mirror:
    """The mirror of one repository in the folder `mirrors`. Threads and processes may share it."""

    def __init__(self, repository: Repository, mirrors: Path, network: Network, *,
                 clock: Callable[[], float] = time.time) -> None:
        self.repository = repository
        self._mirrors = mirrors
        self._network = network
        self._clock = clock
        key = hashlib.sha256(repository.url.text.encode()).hexdigest()[:24]
        self.folder = mirrors / f"{key}.git"
        self._reading = threading.Lock()
        self._repo: git.Repo | None = None
        self._owner = 0
        self._state: tuple[tuple[int, int, int], Snapshot] | None = None
        self._failure: tuple[float, Unavailable] | None = None
        self._trees: dict[str, tuple[TreeItem, ...]] = {}
        self._tree_of: dict[str, str] = {}
        self._commit_of: dict[str, str] = {}
        self._resolved: dict[tuple[str, float], Resolved] = {}

    def close(self) -> None:
        """End the processes that read the mirror; the next question starts them again."""
        with self._reading:
            self._close_repo()

    # What the other side says

    def snapshot(self, *, not_before: float, cancel: CancelToken | None = None) -> Snapshot:
        """The references as they were at `not_before` or later; fetches only if the last fetch began before that.

        Raises `Unavailable` if the repository cannot be reached.
        """
        asked_at = self._clock()
        current = self._current()
        if current is not None and self._is_fresh(current, not_before):
            return current
        with self._locked(cancel):
            current = self._current()
            if current is not None and self._is_fresh(current, not_before):
                return current
            if self._failure is not None and self._failure[0] >= asked_at:  # somebody just tried for all who waited
                raise self._failure[1]
            return self._refresh(current is not None, cancel)

    def recent(self, max_age_s: float, cancel: CancelToken | None = None) -> Snapshot:
        """The references as they were at most `max_age_s` ago."""
        return self.snapshot(not_before=self._clock() - max_age_s, cancel=cancel)

    def now(self) -> float:
        """The time that `snapshot` counts in."""
        return self._clock()

    def fetch_commit(self, commit: str, *, cancel: CancelToken | None = None) -> bool:
        """Fetch one commit by its full hash; False if the other side does not have it or does not give it."""
        with self._locked(cancel):
            if self.holds(commit):
                return True
            try:
                self._git(self.folder, *_fetch_arguments(self.repository.url, f"+{commit}:{REFS}/commits/{commit}"),
                          cancel=cancel)
            except ProcessFailed as failure:
                self._ask_whether_reachable(failure, cancel)
                return False
        return self.holds(commit)

    # What the mirror holds

    def resolve(self, version: str, snapshot: Snapshot) -> Resolved | None:
        """The commit that a branch, tag or commit names, or None. A tag wins over a branch of the same name.

        `latest` is the default branch, whatever else has that name. Raises `Ambiguous`.
        """
        if version == LATEST:
            return self._latest(snapshot)
        key = (version, snapshot.fetched_at)
        known = self._resolved.get(key)
        if known is None:
            known = self._resolve(version, snapshot)
            if known is not None:
                _remember(self._resolved, key, known)
        return known

    def holds(self, commit: str) -> bool:
        """Whether the mirror has this commit; never talks to the other side."""
        if commit in self._tree_of:
            return True
        try:
            return self._read(lambda repo: _kind(repo, commit)) == "commit"
        except _Damaged:
            return False

    def tree_of(self, commit: str) -> str:
        """The hash of a commit's root tree."""
        known = self._tree_of.get(commit)
        if known is None:
            known = self._read_or_remake(lambda repo: _tree_of_commit(repo, commit))
            _remember(self._tree_of, commit, known)
        return known

    def items(self, tree: str) -> tuple[TreeItem, ...]:
        """The rows of one tree."""
        known = self._trees.get(tree)
        if known is None:
            known = self._read_or_remake(lambda repo: _tree_items(repo, tree))
            _remember(self._trees, tree, known)
        return known

    def item(self, tree: str, name: str) -> TreeItem | None:
        """The row of that name in a tree."""
        return next((item for item in self.items(tree) if item.name == name), None)

    def file(self, digest: str, max_bytes: int) -> bytes | None:
        """A small file's content, or None if it is larger than `max_bytes`."""
        return self._read_or_remake(lambda repo: _small_blob(repo, digest, max_bytes))

    def entries(self, tree: str, limits: Limits, *, wanted: Callable[[str], bool] = lambda path: True,
                cancel: CancelToken | None = None) -> list[Entry]:
        """Everything below a tree that is `wanted`, in order of path. Raises `trees.BadTree` past the limits."""
        return self._apart(lambda repo: _entries(repo, tree, limits, wanted, cancel))

    def write(self, entries: Sequence[Entry], destination: Path, cancel: CancelToken | None = None) -> None:
        """Write these files (checked, from `entries`) to `destination`, which must not exist or be empty."""
        def write(repo: git.Repo) -> None:
            try:
                trees.write(entries, destination, lambda entry: _blob_chunks(repo, entry.digest), cancel)
            except trees.Changed as error:
                raise _Damaged(f"{error} is not what its hash says") from error

        self._apart(write)

    # References, kept in a file beside the objects

    def _current(self) -> Snapshot | None:
        """What the last fetch found, or None if there is no sound mirror."""
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
        return not_before <= snapshot.fetched_at <= self._clock() + 1  # a time ahead of ours: the clock was set back

    def _latest(self, snapshot: Snapshot) -> Resolved | None:
        commit = self._peeled(snapshot.head) if snapshot.head else None
        if commit is None:
            return None
        shadowed = [kind for kind, names in (("branch", snapshot.branches), ("tag", snapshot.tags)) if LATEST in names]
        return Resolved(commit=commit, warnings=tuple(
            f"'latest' means the default branch of the {self.repository.name}, not its {kind} called 'latest': "
            f"write {'heads' if kind == 'branch' else 'tags'}/latest for that." for kind in shadowed))

    def _resolve(self, version: str, snapshot: Snapshot) -> Resolved | None:
        hexadecimal = version.lower() if _HEX.match(version.lower()) else ""
        if len(hexadecimal) == FULL_HASH:
            return self._as_commit(hexadecimal) if self.holds(hexadecimal) else None
        name = version.removeprefix("refs/")
        tag, branch = snapshot.tags.get(version), snapshot.branches.get(version)
        if tag is None and branch is None:
            tag = snapshot.tags.get(name[5:]) if name.startswith("tags/") else None
            branch = snapshot.branches.get(name[6:]) if name.startswith("heads/") else None
        named = tag or branch
        commit = self._peeled(named) if named else None
        if commit is not None:
            both = tag is not None and branch is not None
            return Resolved(commit=commit, warnings=(
                f"{version} is a tag and a branch of the {self.repository.name}; the tag is taken. "
                f"Write heads/{version} for the branch.",) if both else ())
        if MIN_ABBREVIATION <= len(hexadecimal) < FULL_HASH:
            found = self._read_or_remake(lambda repo: _commits_beginning(repo, hexadecimal))
            if len(found) > 1:
                raise Ambiguous(", ".join(commit[:len(hexadecimal) + 4] for commit in found[:4]))
            return self._as_commit(found[0]) if found else None
        return None

    def _as_commit(self, commit: str) -> Resolved:
        listed = self._read_or_remake(lambda repo: _is_listed(repo, commit))
        return Resolved(commit=commit, warnings=() if listed else (
            f"Commit {commit[:12]} is on no branch and no tag of the {self.repository.name}.",))

    def _peeled(self, digest: str) -> str | None:
        """The commit behind a tag object; a commit is its own."""
        if digest in self._tree_of:
            return digest
        known = self._commit_of.get(digest)
        if known is None:
            known = self._read_or_remake(lambda repo: _peel(repo, digest))
            _remember(self._commit_of, digest, known)
        return known or None

    # Fetching

    @contextlib.contextmanager
    def _locked(self, cancel: CancelToken | None) -> Iterator[None]:
        """Hold the mirror's lock, across threads and processes."""
        self._mirrors.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = filelock.FileLock(self.folder.with_suffix(".lock"), thread_local=False)
        deadline = time.monotonic() + 2 * self._network.timeout_s
        while True:
            if cancel is not None:
                cancel.check()
            try:
                lock.acquire(timeout=LOCK_POLL_S, poll_interval=LOCK_POLL_S / 4)
                break
            except filelock.Timeout:
                if time.monotonic() > deadline:
                    raise self._unavailable("another process has been fetching it for too long") from None
        try:
            yield
        finally:
            lock.release()

    def _refresh(self, exists: bool, cancel: CancelToken | None) -> Snapshot:
        began = self._clock()
        try:
            if not exists or not self._updated(cancel):
                self._make(cancel)
        except Unavailable as error:
            self._failure = (self._clock(), error)
            raise
        snapshot = self._current()
        if snapshot is None or snapshot.fetched_at < began:
            raise self._unavailable(f"its mirror {self.folder} cannot be written")
        return snapshot

    def _updated(self, cancel: CancelToken | None) -> bool:
        """Fetch into the mirror that is there; False if it is damaged."""
        try:
            self._fetch(self.folder, cancel)
        except ProcessFailed as failure:
            self._ask_whether_reachable(failure, cancel)
            return False
        return True

    def _make(self, cancel: CancelToken | None) -> None:
        """Make the mirror anew beside the old one, then rename it into place. The lock is held."""
        for leftover in self._mirrors.glob(f"{self.folder.stem}.aside-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = self._mirrors / f"{self.folder.stem}.aside-{uuid.uuid4().hex}"
        old = self._mirrors / f"{self.folder.stem}.aside-{uuid.uuid4().hex}"
        try:
            self._git(aside, "init", "--quiet", "--bare", "--template=", cancel=cancel)
            try:
                self._fetch(aside, cancel)
            except ProcessFailed as failure:
                raise self._unreachable(failure) from failure
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(old)
            aside.rename(self.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        self._tree_of.clear()
        self.close()

    def _fetch(self, folder: Path, cancel: CancelToken | None) -> None:
        """Fetch every branch and tag, and HEAD if the other side has one; then note the references."""
        began = self._clock()
        wanted = [f"+refs/heads/*:{REFS}/heads/*", f"+refs/tags/*:{REFS}/tags/*"]
        try:
            self._git(folder, *_fetch_arguments(self.repository.url, f"+HEAD:{REFS}/head", *wanted), cancel=cancel)
        except ProcessFailed as failure:
            if "HEAD" in self._ask_whether_reachable(failure, cancel):
                raise
            self._git(folder, "update-ref", "-d", f"{REFS}/head", cancel=cancel)
            self._git(folder, *_fetch_arguments(self.repository.url, *wanted), cancel=cancel)
        listing = self._git(folder, "for-each-ref", "--format=%(objectname) %(refname)", REFS, cancel=cancel,
                            capture=True)
        _write_state(folder, began, listing.decode("utf-8", "surrogateescape"))

    def _git(self, folder: Path, *argv: str, cancel: CancelToken | None, capture: bool = False) -> bytes:
        """Run one git command in `folder`. Raises `ProcessFailed`, and `Unavailable` if it took too long."""
        command = git_command(f"git {argv[0]}", argv, self.repository.url, self._network, added=self._local(folder))
        try:
            return process.run(command, cancel=cancel, capture_stdout=capture).stdout
        except LimitReached as error:
            raise self._unavailable(error.message) from error

    def _local(self, folder: Path) -> dict[str, str]:
        """Where git works, and for a repository on this machine that it may belong to another user."""
        added = {"GIT_DIR": str(folder)}
        if self.repository.url.scheme == "file":
            trusted = self._mirrors / "trusted.gitconfig"
            if not trusted.exists():
                trusted.write_text("[safe]\n\tdirectory = *\n")
            added["GIT_CONFIG_GLOBAL"] = str(trusted)
        return added

    def _ask_whether_reachable(self, failure: ProcessFailed, cancel: CancelToken | None) -> Mapping[str, str]:
        """After a fetch that failed: what the other side offers. Raises `Unavailable` if it does not answer."""
        try:
            return list_remote(self.repository.url, self._network, added=self._local(self.folder), cancel=cancel)
        except (ProcessFailed, LimitReached):
            raise self._unreachable(failure) from failure

    def _unreachable(self, failure: ProcessFailed) -> Unavailable:
        said = [line.removeprefix("fatal: ").strip() for line in failure.tail if line.startswith(("fatal:", "error:"))]
        return self._unavailable(said[0] if said else failure.message)

    def _unavailable(self, why: str) -> Unavailable:
        repository = self.repository
        return Unavailable(f"The {repository.name} {repository.url} cannot be reached: {why}", code=repository.code,
                           hint=f"Try again later. If it stays so, the operator should check {repository.key}, its "
                                "credentials, and whether this machine reaches that host (git ls-remote tells).")

    # Reading

    def _read(self, question: Callable[[git.Repo], _T]) -> _T:
        """Ask the open repository; once more with a new one, as the mirror may have been replaced meanwhile."""
        with self._reading:
            try:
                with _reading():
                    return question(self._open_repo())
            except _Damaged:
                self._close_repo()
            with _reading():
                return question(self._open_repo())

    def _read_or_remake(self, question: Callable[[git.Repo], _T]) -> _T:
        return self._healed(lambda: self._read(question))

    def _apart(self, question: Callable[[git.Repo], _T]) -> _T:
        """Ask a repository of its own, so that long reading holds nobody up. `question` names its reading errors."""
        def ask() -> _T:
            with contextlib.closing(_open(self.folder)) as repo:
                return question(repo)

        return self._healed(ask)

    def _healed(self, ask: Callable[[], _T]) -> _T:
        """Ask; if the mirror is damaged, make it anew and ask once more."""
        with contextlib.suppress(_Damaged):
            return ask()
        with self._locked(None):
            try:
                return ask()  # somebody else may have made it anew while we waited
            except _Damaged as error:
                damage = error
            self._make(None)
        try:
            return ask()
        except _Damaged:
            raise self._unavailable(f"its mirror {self.folder} cannot be read ({damage})") from damage

    def _open_repo(self) -> git.Repo:
        """The open repository. After a fork it is opened again: two processes cannot share git's pipes."""
        if self._repo is None or self._owner != os.getpid():
            self._repo, self._owner = _open(self.folder), os.getpid()
        return self._repo

    def _close_repo(self) -> None:
        if self._repo is not None:
            self._repo.close()
            self._repo = None


def _open(folder: Path) -> git.Repo:
    """The repository, through GitPython; its git runs as quietly as ours."""
    try:
        import git
    except ImportError as error:
        raise ToolMissing("The program git is not installed.", hint="Install it (Debian: apt install git).") from error
    with _reading():
        repo = git.Repo(folder, expand_vars=False)
        own_settings = {name: "" for name in os.environ if name.startswith("CIC_")}
        repo.git.update_environment(**own_settings, **quiet_environment(), GIT_DIR=str(folder))
        return repo


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """What goes wrong in here means that the mirror is damaged, or was replaced a moment ago."""
    import git
    try:
        yield
    except (ValueError, OSError, LookupError, git.exc.GitError, git.exc.ODBError) as error:
        if isinstance(error, trees.BadTree):
            raise
        raise _Damaged(str(error)) from error


def _kind(repo: git.Repo, digest: str) -> str:
    """The type of an object; empty if there is no such object."""
    return str(repo.git.cat_file("-t", digest, with_exceptions=False))


def _object(repo: git.Repo, digest: str, kind: str) -> bytes:
    _, told, size, content = repo.git.get_object_data(digest)
    found = told.decode() if isinstance(told, bytes) else told  # GitPython says str and gives bytes
    if found != kind or len(content) != size:
        raise ValueError(f"object {digest} is a {found}, not a {kind}")
    return content


def _tree_of_commit(repo: git.Repo, commit: str) -> str:
    first = _object(repo, commit, "commit").partition(b"\n")[0]
    return first.removeprefix(b"tree ").decode("ascii")


def _peel(repo: git.Repo, digest: str) -> str:
    """The commit behind tag objects; empty if there is none."""
    for _ in range(trees.MAX_LINK_HOPS):
        kind = _kind(repo, digest)
        if kind == "commit":
            return digest
        if not kind:
            raise ValueError(f"object {digest} is missing")
        if kind != "tag":
            break
        digest = _object(repo, digest, "tag").partition(b"\n")[0].removeprefix(b"object ").decode("ascii")
    return ""


def _tree_items(repo: git.Repo, tree: str) -> tuple[TreeItem, ...]:
    content = _object(repo, tree, "tree")
    items = []
    position = 0
    while position < len(content):
        end = content.index(b"\0", position)
        mode, _, name = content[position:end].partition(b" ")
        position = end + 21
        items.append(TreeItem(name=os.fsdecode(name), mode=int(mode, 8), digest=content[end + 1:position].hex()))
    return tuple(items)


def _small_blob(repo: git.Repo, digest: str, max_bytes: int) -> bytes | None:
    _, _, size = repo.git.get_object_header(digest)
    return _object(repo, digest, "blob") if size <= max_bytes else None


def _blob_chunks(repo: git.Repo, digest: str) -> Iterator[bytes]:
    with _reading():
        _, _, _, stream = repo.git.stream_object_data(digest)
    while True:
        with _reading():
            chunk = stream.read(trees.CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _commits_beginning(repo: git.Repo, prefix: str) -> list[str]:
    found = str(repo.git.rev_parse(f"--disambiguate={prefix}")).split()
    return [digest for digest in found if _kind(repo, digest) == "commit"]


def _is_listed(repo: git.Repo, commit: str) -> bool:
    """Whether a branch, a tag or HEAD leads to this commit."""
    places = (f"{REFS}/heads", f"{REFS}/tags", f"{REFS}/head")
    return bool(repo.git.for_each_ref("--count=1", f"--contains={commit}", *places))


def _entries(repo: git.Repo, tree: str, limits: Limits, wanted: Callable[[str], bool],
             cancel: CancelToken | None) -> list[Entry]:
    """All files below a tree. A tree may name itself a million times over: what is read is bounded by the limits."""
    budget = trees.Budget(limits)
    found: list[Entry] = []
    waiting = [("", tree)]
    while waiting:
        if cancel is not None:
            cancel.check()
        prefix, digest = waiting.pop()
        with _reading():
            items = _tree_items(repo, digest)
        for item in items:
            path = prefix + item.name
            if "/" in item.name:
                raise trees.BadTree(trees.printable(path), "has a name that is not allowed", "use plain file names")
            trees.check_name(path)
            if not wanted(path):
                continue
            entry = None if item.is_folder else _entry(repo, path, item)
            budget.take(path, entry.size if entry is not None else 0)
            if entry is None:
                waiting.append((path + "/", item.digest))
            else:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


def _entry(repo: git.Repo, path: str, item: TreeItem) -> Entry:
    if item.mode == trees.SUBMODULE:
        return Entry(path=path, mode=item.mode, digest=item.digest, size=0)
    with _reading():
        if item.mode == trees.LINK:
            target = _small_blob(repo, item.digest, trees.MAX_LINK_BYTES) or b""
            return Entry(path=path, mode=item.mode, digest=item.digest, size=len(target), target=os.fsdecode(target))
        _, _, size = repo.git.get_object_header(item.digest)
    mode = item.mode if not item.is_file else trees.EXECUTABLE if item.mode & 0o100 else trees.FILE
    return Entry(path=path, mode=mode, digest=item.digest, size=size)


def _fetch_arguments(url: GitUrl, *refspecs: str) -> tuple[str, ...]:
    return ("fetch", "--progress", "--prune", "--no-tags", "--force", "--no-recurse-submodules",
            "--no-write-fetch-head", "--", url.text, *refspecs)


def _write_state(folder: Path, fetched_at: float, listing: str) -> None:
    """Note what a fetch found, whole or not at all."""
    state: dict[str, dict[str, str]] = {"heads": {}, "tags": {}, "head": {}}
    for line in listing.split("\n"):
        digest, _, name = line.partition(" ")
        kind, _, short = name.removeprefix(f"{REFS}/").partition("/")
        state.setdefault(kind, {})[short] = digest
    content = {"format": STATE_FORMAT, "fetched_at": fetched_at, "head": state["head"].get(""),
               "branches": state["heads"], "tags": state["tags"]}
    aside = folder / f"{STATE_FILE}.{uuid.uuid4().hex}"
    with open(aside, "w", encoding="ascii") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / STATE_FILE)


def _parse_state(raw: bytes) -> Snapshot:
    content = json.loads(raw)
    if content["format"] != STATE_FORMAT:
        raise ValueError("another format")
    return Snapshot(fetched_at=float(content["fetched_at"]), head=content["head"], branches=dict(content["branches"]),
                    tags=dict(content["tags"]))


_K = TypeVar("_K")


def _remember(known: dict[_K, _T], key: _K, value: _T) -> None:
    """Keep an answer that cannot change; now and then all is forgotten, so that memory stays bounded."""
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[key] = value
