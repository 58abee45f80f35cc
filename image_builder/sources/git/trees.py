"""Reads, checks, hashes and writes folders of files as git sees them.

A folder is a list of `Entry`. `tree_digest` gives the hash that git gives the same files, so that a
step on this machine and the same step in a registry are known to be the same. What comes from
strangers is checked here before anything is written: names, links, counts and sizes. This module
uses no git.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from image_builder.errors import NoSpace
from image_builder.host.cancellation import CancelToken

FILE, EXECUTABLE, LINK, FOLDER, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o040000, 0o160000
MTIME_S = 315_619_200
"""The second that every file's time has (1980-01-02 UTC), so that equal files are equal in images.

The fraction of it comes from the content. BuildKit keeps the last build's copy of a file whose size
and time are what they were: with one time for all, a change that keeps a file's size would build
the old content.
"""

MAX_LINK_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 2000
MAX_LINK_HOPS = 40
MAX_DEPTH = 100
CHUNK_BYTES = 1024**2
BLOCK_BYTES = 4096
"""What a file system gives away at a time: an empty file takes a place on the disk as well."""
_PLAIN = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]{0,80}/){0,10}[A-Za-z0-9_][A-Za-z0-9_.+-]{0,80}\Z"
)
"""Matches nearly every path; only others need the slower checks."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_GIT_NAMES = frozenset({".git", "git~1"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Describes a file or link in a folder; `target` is where a link points.

    `path` has `/` between its parts.
    """

    path: str
    mode: int
    digest: str
    size: int
    target: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits what a folder may contain; folders inside it count as files do."""

    max_files: int = 100_000
    max_bytes: int = 1024**3


def disk_bytes(entries: Iterable[Entry]) -> int:
    """Return what the files of a folder take on a disk, about: whole blocks, and one at least."""
    return sum(max(1, -(-entry.size // BLOCK_BYTES)) * BLOCK_BYTES for entry in entries)


class BadTree(ValueError):
    """A folder contains what is refused; `path` is relative, and empty for the folder itself."""

    def __init__(self, path: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{path or 'the folder'} {problem}")
        self.path = path
        self.problem = problem
        self.hint = hint


class Changed(Exception):
    """A file's content is not what its digest says: it changed, or a store is damaged."""


class Found(NamedTuple):
    """Describes a file on disk that is not read yet; equal values mean unchanged files."""

    path: str
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def tree_digest(entries: Iterable[Entry]) -> str:
    """Return the hash of git's tree object for a folder with these entries."""
    root: dict[str, object] = {}
    for entry in entries:
        *folders, name = entry.path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})  # type: ignore[assignment]
        node[name] = entry
    return _hash_folder(root)


def blob_digest(content: bytes) -> str:
    """Return the hash of git's blob object for this content."""
    return _git_hash("blob", len(content), content).hexdigest()


def file_digest(size: int, chunks: Iterable[bytes]) -> str:
    """Return the hash of git's blob object for a file of this size, read in pieces."""
    digest = _git_hash("blob", size)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def walk(
    folder: Path, *, limits: Limits, wanted: Callable[[str], bool] = lambda _: True
) -> list[Found]:
    """Return the files below `folder` that are `wanted`, in order of path, without git's own.

    Folders that are not wanted are not entered. Raises `BadTree` for what is refused, before any
    file is read, and `OSError` if `folder` is no folder.
    """
    files: list[Found] = []
    budget = Budget(limits)
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for item in _scan(folder, prefix):
            path = prefix + item.name
            if item.name == ".git" or not wanted(path):
                continue
            check_name(path)
            kind = item.stat(follow_symlinks=False)
            budget.take(path, kind.st_size if stat.S_ISREG(kind.st_mode) else 0)
            if stat.S_ISDIR(kind.st_mode):
                waiting.append(path + "/")
            else:
                files.append(_found(path, kind))
    return sorted(files, key=lambda file: file.path)


def read_entries(folder: Path, found: Iterable[Found]) -> list[Entry]:
    """Return the entries of files that `walk` found, read and hashed.

    Raises `BadTree` for one that cannot be read.
    """
    return [_read_entry(folder, file) for file in found]


def check(entries: Sequence[Entry], limits: Limits) -> None:
    """Raise `BadTree` if a folder with these entries must not be written."""
    budget = Budget(limits)
    links = {entry.path: entry.target for entry in entries if entry.mode == LINK}
    seen: set[str] = set()
    for entry in entries:
        check_name(entry.path)
        budget.take(entry.path, entry.size)
        if entry.path in seen:
            raise BadTree(entry.path, "is there twice", "rebuild the commit with git itself")
        seen.add(entry.path)
        _check_kind(entry)
    for folder in {folder for path in seen for folder in _folders_of(path)} & seen:
        raise BadTree(
            printable(folder),
            "is a file and a folder at once",
            "rebuild the commit with git itself",
        )
    for path in links:
        check_link(path, links)


def check_name(path: str) -> None:
    """Raise `BadTree` if a part of `path` cannot be a file's name here."""
    if _PLAIN.match(path):
        return
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise BadTree(
            printable(path[:60]) + "...",
            f"is more than {MAX_DEPTH} folders deep",
            "use fewer folders",
        )
    if len(os.fsencode(path)) > MAX_PATH_BYTES or any(
        len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts
    ):
        raise BadTree(
            printable(path[:60]) + "...", "has a name that is too long", "use shorter names"
        )
    if any(part in ("", ".", "..") for part in parts) or _CONTROL.search(path):
        raise BadTree(printable(path), "has a name that is not allowed", "use plain file names")
    if any(part.lower().rstrip(" .") in _GIT_NAMES for part in parts):
        raise BadTree(printable(path), "has a name that git keeps for itself", "remove it")


def check_link(path: str, links: Mapping[str, str]) -> None:
    """Raise `BadTree` if the link at `path` leads out of the folder, even through other links."""
    position = path.split("/")[:-1]
    ahead = deque(_link_parts(path, links[path]))
    hops = 0
    while ahead:
        part = ahead.popleft()
        if part == "..":
            if not position:
                raise _leaves(path)
            position.pop()
            continue
        further = links.get("/".join([*position, part]))
        if further is None:
            position.append(part)
            continue
        hops += 1
        if hops > MAX_LINK_HOPS:
            raise BadTree(printable(path), "is a symbolic link that leads in a circle", "remove it")
        ahead.extendleft(reversed(_link_parts(path, further)))


def write(
    entries: Sequence[Entry],
    destination: Path,
    read: Callable[[Entry], Iterable[bytes]],
    cancel: CancelToken | None = None,
) -> None:
    """Write a checked folder to `destination`, which must be missing or empty.

    `read` gives a file's content. Every file's content is compared with its digest (`Changed`).
    Links come last, so that nothing is ever written through one. On any error nothing is left at
    `destination`.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise FileExistsError(errno.EEXIST, "The folder is not empty", str(destination))
    try:
        folders = {destination}
        for entry in sorted(entries, key=lambda entry: entry.mode == LINK):
            if cancel is not None:
                cancel.check()
            _write_entry(entry, destination, read, folders, cancel)
        for folder in folders:
            folder.chmod(0o755)
            os.utime(folder, (MTIME_S, MTIME_S))
    except BaseException as error:
        shutil.rmtree(destination, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"The disk that holds {destination.parent} is full.",
                hint="Free some space there, or move tmp_folder.",
            ) from error
        raise


def read_file(path: Path) -> Iterator[bytes]:
    """Yield the content of a regular file in pieces; links are not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def printable(path: str) -> str:
    """Return a path for a message: without control characters or surrogates, and cut."""
    text = path if len(path) <= 200 else path[:197] + "..."
    return "".join(char if char.isprintable() else "?" for char in text)


class Budget:
    """Counts files and bytes, and raises `BadTree` as soon as a limit is passed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files = self._bytes = 0

    def take(self, path: str, size: int) -> None:
        self._files += 1
        self._bytes += size
        if self._files > self._limits.max_files:
            raise BadTree(
                "",
                f"holds more than {self._limits.max_files} files",
                "keep data out of it, and fetch that when the workflow runs",
            )
        if self._bytes > self._limits.max_bytes:
            raise BadTree(
                "",
                f"holds more than {self._limits.max_bytes // 1024**2} MiB (at {printable(path)})",
                "keep data out of it, and fetch that when the workflow runs",
            )


def _leaves(path: str) -> BadTree:
    return BadTree(
        printable(path),
        "is a symbolic link that leaves the folder",
        "link to a file inside the folder by a relative path, or put the file there",
    )


def _link_parts(path: str, target: str) -> list[str]:
    if not target or "\0" in target or len(os.fsencode(target)) > MAX_LINK_BYTES:
        raise BadTree(printable(path), "is a symbolic link to nowhere", "remove it")
    if target.startswith("/"):
        raise _leaves(path)
    return [part for part in target.split("/") if part not in ("", ".")]


def _folders_of(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _check_kind(entry: Entry) -> None:
    if entry.mode == SUBMODULE:
        raise BadTree(printable(entry.path), "is a git submodule", "put the files themselves there")
    if entry.mode not in (FILE, EXECUTABLE, LINK):
        raise BadTree(
            printable(entry.path),
            f"has the unknown mode {entry.mode:o}",
            "commit it as a regular file",
        )


def _scan(folder: Path, prefix: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(f"{folder}/{prefix}") as items:
            yield from items
    except PermissionError as error:
        raise BadTree(
            printable(prefix.rstrip("/")), "cannot be read by this user", "change its permissions"
        ) from error


def _found(path: str, kind: os.stat_result) -> Found:
    if stat.S_ISLNK(kind.st_mode):
        mode = LINK
    elif stat.S_ISREG(kind.st_mode):
        mode = EXECUTABLE if kind.st_mode & stat.S_IXUSR else FILE
    else:
        raise BadTree(printable(path), "is neither a file, a folder nor a link", "remove it")
    return Found(
        path=path,
        mode=mode,
        size=kind.st_size,
        mtime_ns=kind.st_mtime_ns,
        ctime_ns=kind.st_ctime_ns,
        inode=kind.st_ino,
    )


def _read_entry(folder: Path, file: Found) -> Entry:
    try:
        if file.mode == LINK:
            target = os.readlink(folder / file.path)
            content = os.fsencode(target)
            return Entry(
                path=file.path,
                mode=LINK,
                digest=blob_digest(content),
                size=len(content),
                target=target,
            )
        digest = _git_hash("blob", file.size)
        size = 0
        for chunk in read_file(folder / file.path):
            size += len(chunk)
            digest.update(chunk)
    except OSError as error:
        raise BadTree(
            printable(file.path),
            f"cannot be read ({error.strerror})",
            "change its permissions, or try again if it was just changing",
        ) from error
    if size != file.size:
        raise BadTree(
            printable(file.path), "changed while it was read", "try again when nothing writes there"
        )
    return Entry(path=file.path, mode=file.mode, digest=digest.hexdigest(), size=size)


def _write_entry(
    entry: Entry,
    destination: Path,
    read: Callable[[Entry], Iterable[bytes]],
    folders: set[Path],
    cancel: CancelToken | None,
) -> None:
    path = destination / entry.path
    _make_folder(path.parent, folders)
    if entry.mode == LINK:
        os.symlink(entry.target, path)
    else:
        _write_file(path, entry, read(entry), cancel)
    moment_ns = MTIME_S * 10**9 + int(entry.digest[:7], 16)
    os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)


def _make_folder(folder: Path, folders: set[Path]) -> None:
    if folder not in folders:
        _make_folder(folder.parent, folders)
        folder.mkdir()
        folders.add(folder)


def _write_file(
    path: Path, entry: Entry, chunks: Iterable[bytes], cancel: CancelToken | None
) -> None:
    digest = _git_hash("blob", entry.size)
    with open(path, "xb") as file:
        for chunk in chunks:
            if cancel is not None:
                cancel.check()
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != entry.digest:
        raise Changed(printable(entry.path))
    path.chmod(0o755 if entry.mode == EXECUTABLE else 0o644)


def _hash_folder(node: Mapping[str, object]) -> str:
    rows = []
    for name, child in node.items():
        raw = os.fsencode(name)
        if isinstance(child, Entry):
            rows.append((raw, b"%o %s\0%s" % (child.mode, raw, bytes.fromhex(child.digest))))
        else:
            assert isinstance(child, dict)
            rows.append(
                (raw + b"/", b"%o %s\0%s" % (FOLDER, raw, bytes.fromhex(_hash_folder(child))))
            )
    content = b"".join(row for _, row in sorted(rows))
    return _git_hash("tree", len(content), content).hexdigest()


def _git_hash(kind: str, size: int, content: bytes = b"") -> hashlib._Hash:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), size) + content, usedforsecurity=False)
