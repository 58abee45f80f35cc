"""Reads the objects of a bare git repository on this machine, through GitPython.

No other module uses GitPython. Nothing here writes to a repository or talks to another. What is read was written by
strangers: rows of trees are returned as they are, for `trees.check` to judge, and no answer grows beyond the limits
that are passed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_builder.errors import ToolMissing
from image_builder.host.cancellation import CancelToken
from image_builder.sources.git import trees
from image_builder.sources.git.remote import quiet_environment
from image_builder.sources.git.trees import Entry, Limits

if TYPE_CHECKING:
    from git import Repo as Repo


class Damaged(Exception):
    """The repository cannot be read: it is damaged, or was replaced a moment ago."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeItem:
    """Holds one row of a tree object as it is; nothing about it is checked."""

    name: str
    mode: int
    digest: str

    @property
    def is_folder(self) -> bool:
        return self.mode == trees.FOLDER

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == 0o100000


def open_repository(folder: Path) -> Repo:
    """Open the repository at `folder`; GitPython's git gets the environment that ours gets."""
    git = _gitpython()
    with reading():
        repo: Repo = git.Repo(folder, expand_vars=False)
        own_settings = {name: "" for name in os.environ if name.startswith("CIC_")}
        repo.git.update_environment(**own_settings, **quiet_environment(), GIT_DIR=str(folder))
        return repo


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Raise errors of reading in the block as `Damaged`."""
    git = _gitpython()
    try:
        yield
    except trees.BadTree:
        raise
    except (ValueError, OSError, LookupError, git.exc.GitError, git.exc.ODBError) as error:
        raise Damaged(str(error)) from error


def _gitpython() -> Any:
    """Import GitPython when it is first needed: a step in a local folder needs no git."""
    try:
        import git
    except ImportError as error:
        raise ToolMissing(
            "The program git is not installed.", hint="Install it (Debian: apt install git)."
        ) from error
    return git


def kind_of(repo: Repo, digest: str) -> str:
    """Return the type of an object; empty if there is no such object."""
    return str(repo.git.cat_file("-t", digest, with_exceptions=False))


def _object(repo: Repo, digest: str, kind: str) -> bytes:
    _, raw_kind, size, content = repo.git.get_object_data(digest)
    # GitPython's annotation is str, and it returns bytes
    actual = raw_kind.decode() if isinstance(raw_kind, bytes) else raw_kind
    if actual != kind or len(content) != size:
        raise ValueError(f"object {digest} is a {actual}, not a {kind}")
    return content


def tree_of_commit(repo: Repo, commit: str) -> str:
    """Return the root tree of a commit."""
    first = _object(repo, commit, "commit").partition(b"\n")[0]
    return first.removeprefix(b"tree ").decode("ascii")


def time_of_commit(repo: Repo, commit: str) -> int:
    """Return when a commit was made, in seconds since 1970, as it says itself."""
    head = _object(repo, commit, "commit").partition(b"\n\n")[0]
    for line in head.splitlines():
        if line.startswith(b"committer "):
            return int(line.rsplit(b" ", 2)[1])
    raise ValueError(f"commit {commit} says no time")


def peel(repo: Repo, digest: str) -> str:
    """Return the commit behind tag objects; empty if there is none."""
    for _ in range(trees.MAX_LINK_HOPS):
        kind = kind_of(repo, digest)
        if kind == "commit":
            return digest
        if not kind:
            raise ValueError(f"object {digest} is missing")
        if kind != "tag":
            break
        digest = (
            _object(repo, digest, "tag")
            .partition(b"\n")[0]
            .removeprefix(b"object ")
            .decode("ascii")
        )
    return ""


def tree_items(repo: Repo, tree: str) -> tuple[TreeItem, ...]:
    """Return the rows of a tree."""
    content = _object(repo, tree, "tree")
    items = []
    position = 0
    while position < len(content):
        end = content.index(b"\0", position)
        mode, _, name = content[position:end].partition(b" ")
        position = end + 21
        items.append(
            TreeItem(
                name=os.fsdecode(name), mode=int(mode, 8), digest=content[end + 1 : position].hex()
            )
        )
    return tuple(items)


def small_blob(repo: Repo, digest: str, max_bytes: int) -> bytes | None:
    """Return a file's content, or None if it is larger than `max_bytes`."""
    _, _, size = repo.git.get_object_header(digest)
    return _object(repo, digest, "blob") if size <= max_bytes else None


def blob_chunks(repo: Repo, digest: str) -> Iterator[bytes]:
    """Yield a file's content in pieces."""
    with reading():
        _, _, _, stream = repo.git.stream_object_data(digest)
    while True:
        with reading():
            chunk = stream.read(trees.CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def commits_beginning(repo: Repo, prefix: str) -> list[str]:
    """Return the commits whose hash begins with `prefix`; git needs at least four digits."""
    digests = str(repo.git.rev_parse(f"--disambiguate={prefix}")).split()
    return [digest for digest in digests if kind_of(repo, digest) == "commit"]


def is_reached_from(repo: Repo, commit: str, places: Sequence[str]) -> bool:
    """Return whether a reference below one of `places` leads to this commit."""
    return bool(repo.git.for_each_ref("--count=1", f"--contains={commit}", *places))


def entries_below(
    repo: Repo, tree: str, limits: Limits, wanted: Callable[[str], bool], cancel: CancelToken | None
) -> list[Entry]:
    """Return all files below a tree, as far as the limits allow.

    A tree may name itself a million times over, so reading stops at the limits.
    """
    budget = trees.Budget(limits)
    entries: list[Entry] = []
    waiting = [("", tree)]
    while waiting:
        if cancel is not None:
            cancel.check()
        prefix, digest = waiting.pop()
        with reading():
            items = tree_items(repo, digest)
        for item in items:
            path = prefix + item.name
            if "/" in item.name:
                raise trees.BadTree(
                    trees.printable(path), "has a name that is not allowed", "use plain file names"
                )
            trees.check_name(path)
            if not wanted(path):
                continue
            entry = None if item.is_folder else _entry(repo, path, item)
            budget.take(path, entry.size if entry is not None else 0)
            if entry is None:
                waiting.append((path + "/", item.digest))
            else:
                entries.append(entry)
    return sorted(entries, key=lambda entry: entry.path)


def _entry(repo: Repo, path: str, item: TreeItem) -> Entry:
    if item.mode == trees.SUBMODULE:
        return Entry(path=path, mode=item.mode, digest=item.digest, size=0)
    with reading():
        if item.mode == trees.LINK:
            target = small_blob(repo, item.digest, trees.MAX_LINK_BYTES) or b""
            return Entry(
                path=path,
                mode=item.mode,
                digest=item.digest,
                size=len(target),
                target=os.fsdecode(target),
            )
        _, _, size = repo.git.get_object_header(item.digest)
    mode = item.mode if not item.is_file else trees.EXECUTABLE if item.mode & 0o100 else trees.FILE
    return Entry(path=path, mode=mode, digest=item.digest, size=size)
