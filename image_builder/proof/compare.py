"""Says in which files two images differ, and whose files those are. Pure.

What cannot be built alike is named by its package: a compiler that embeds the time, for one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

MAX_LISTED = 50
OTHERS = "no package"
_SPACK_PREFIX = re.compile(r"(?:.*/)?([A-Za-z0-9_.+-]+-[a-z2-7]{32})(?:/|\Z)")
_DIST_INFO = re.compile(r"/([^/]+)\.dist-info/RECORD\Z")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileState:
    """Describes one file of an image; `content` is a digest, or where a link leads."""

    kind: str
    mode: int
    owner: tuple[int, int]
    time_s: int
    content: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Names a file, what differs, and whose it is."""

    path: str
    what: str
    package: str


Files = Mapping[str, FileState]
"""The files of an image by their paths from the root, without a slash before them."""


def owners_of(lists: Mapping[str, str]) -> dict[str, str]:
    """Return the package of each file, of the lists that dpkg and pip keep of files.

    `lists` holds the texts of `var/lib/dpkg/info/*.list` and `*.dist-info/RECORD` by their paths.
    """
    owners: dict[str, str] = {}
    for path, text in lists.items():
        wheel = _DIST_INFO.search("/" + path)
        if wheel is not None:
            root = path.rpartition("/")[0].rpartition("/")[0]
            for line in text.splitlines():
                name = line.partition(",")[0]
                owners.setdefault(_plain(f"{root}/{name}"), f"Python's {wheel[1]}")
        else:
            package = path.rpartition("/")[2].removesuffix(".list").partition(":")[0]
            for line in text.splitlines():
                owners.setdefault(line.lstrip("/"), f"Debian's {package}")
    return owners


def _plain(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def differences(one: Files, other: Files, owners: Mapping[str, str]) -> Iterator[Difference]:
    """Yield every file that is not the same in both images, in order of its path."""
    for path in sorted(one.keys() | other.keys()):
        what = _what(one.get(path), other.get(path))
        if what:
            yield Difference(path=path, what=what, package=_owner(path, owners))


def _what(one: FileState | None, other: FileState | None) -> str:
    if one is None:
        return "only in the second"
    if other is None:
        return "only in the first"
    return ", ".join(
        field.name.removesuffix("_s")
        for field in dataclasses.fields(FileState)
        if getattr(one, field.name) != getattr(other, field.name)
    )


def _owner(path: str, owners: Mapping[str, str]) -> str:
    if path in owners:
        return owners[path]
    # The folders below which Debian has its files may be links: /lib is /usr/lib.
    other = path.removeprefix("usr/") if path.startswith("usr/") else f"usr/{path}"
    if other in owners:
        return owners[other]
    prefix = _SPACK_PREFIX.match(path)
    return f"Spack's {prefix[1]}" if prefix else OTHERS


def report(found: list[Difference], parts: list[str]) -> str:
    """Return what differs as text: the packages with their files, and the other `parts`."""
    lines = [f"differs: {part}" for part in parts]
    packages: dict[str, list[Difference]] = {}
    for difference in found:
        packages.setdefault(difference.package, []).append(difference)
    for package, theirs in sorted(packages.items()):
        lines.append(
            f"{package}: {len(theirs)} {'file differs' if len(theirs) == 1 else 'files differ'}"
        )
        lines += [f"  /{one.path}: {one.what}" for one in theirs[:MAX_LISTED]]
        if len(theirs) > MAX_LISTED:
            lines.append(f"  and {len(theirs) - MAX_LISTED} more")
    return "".join(f"{line}\n" for line in lines)
