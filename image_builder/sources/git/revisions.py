"""Looks up in a mirror what a version means, as git itself does: a branch, a tag or a commit.

A tag wins over a branch of its name, `heads/x` and `tags/x` say which is meant, and `latest` is the
default branch, whatever else has that name.
"""

from __future__ import annotations

import dataclasses
import re
import threading

from image_builder.request.build_request import LATEST
from image_builder.sources.git.mirror import Mirror, Snapshot

MIN_ABBREVIATION, FULL_HASH = 7, 40

_HEX = re.compile(r"[0-9a-f]+\Z")
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")


def is_commit(text: str) -> bool:
    """Return whether a text is a whole commit, in small or large letters."""
    return _COMMIT.fullmatch(text) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """Holds the commit that a version names, and warnings about the choice."""

    commit: str
    warnings: tuple[str, ...] = ()


class Ambiguous(ValueError):
    """Several commits begin with an abbreviated commit."""


class Unlisted(ValueError):
    """The commit is in the mirror, but on no branch and no tag."""


class Versions:
    """Looks up the versions of a mirrored repository. Threads may share it."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._name = mirror.repository.name
        self._lock = threading.Lock()
        self._known: tuple[Snapshot | None, dict[str, Resolved]] = (None, {})

    def resolve(
        self, version: str, snapshot: Snapshot, *, allow_unlisted: bool = True
    ) -> Resolved | None:
        """Return the commit that a version names in a snapshot, or None.

        Raises `Ambiguous`, and `Unlisted` for a commit on no branch and no tag unless that is
        allowed: hosts also serve the commits of forks by their hashes.
        """
        with self._lock:
            if self._known[0] is not snapshot:
                self._known = (snapshot, {})
            known = self._known[1]
        if version not in known:
            resolved = (
                self._latest(snapshot)
                if version == LATEST
                else self._resolve(version, snapshot, allow_unlisted)
            )
            if resolved is None:
                return None
            known[version] = resolved
        return known[version]

    def _latest(self, snapshot: Snapshot) -> Resolved | None:
        commit = self._mirror.peeled(snapshot.head) if snapshot.head else None
        if commit is None:
            return None
        shadowed = [
            kind
            for kind, names in (("branch", snapshot.branches), ("tag", snapshot.tags))
            if LATEST in names
        ]
        return Resolved(
            commit=commit,
            warnings=tuple(
                f"'latest' means the default branch of the {self._name}, not its {kind} called 'latest': "
                f"write {'heads' if kind == 'branch' else 'tags'}/latest for that."
                for kind in shadowed
            ),
        )

    def _resolve(self, version: str, snapshot: Snapshot, allow_unlisted: bool) -> Resolved | None:
        hexadecimal = version.lower() if _HEX.match(version.lower()) else ""
        if len(hexadecimal) == FULL_HASH:
            if not self._mirror.holds(hexadecimal):
                return None
            return self._as_commit(hexadecimal, allow_unlisted)
        named = self._named(version, snapshot)
        if named is not None:
            return named
        if MIN_ABBREVIATION <= len(hexadecimal) < FULL_HASH:
            commits = self._mirror.commits_beginning(hexadecimal)
            if len(commits) > 1:
                raise Ambiguous(", ".join(commit[: len(hexadecimal) + 4] for commit in commits[:4]))
            return self._as_commit(commits[0], allow_unlisted) if commits else None
        return None

    def _named(self, version: str, snapshot: Snapshot) -> Resolved | None:
        """Return the commit of a tag or a branch."""
        tag, branch = snapshot.tags.get(version), snapshot.branches.get(version)
        if tag is None and branch is None:
            kind, _, name = version.removeprefix("refs/").partition("/")
            tag = snapshot.tags.get(name) if kind == "tags" else None
            branch = snapshot.branches.get(name) if kind == "heads" else None
        digest = tag or branch
        commit = self._mirror.peeled(digest) if digest is not None else None
        if commit is None:
            return None
        warnings = (
            (
                f"{version} is a tag and a branch of the {self._name}; the tag is taken. "
                f"Write heads/{version} for the branch.",
            )
            if tag is not None and branch is not None
            else ()
        )
        return Resolved(commit=commit, warnings=warnings)

    def _as_commit(self, commit: str, allow_unlisted: bool) -> Resolved:
        if self._mirror.is_listed(commit):
            return Resolved(commit=commit)
        text = f"Commit {commit[:12]} is on no branch and no tag of the {self._name}."
        if not allow_unlisted:
            raise Unlisted(text)
        return Resolved(commit=commit, warnings=(text,))
