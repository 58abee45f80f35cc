"""Reads what a Spack binary mirror holds, with the recipe's own program, and copies from it.

A signature says that this site's service published an entry: a keyed hash (HMAC-SHA256) of the
cache's name, the package's hash and the checksums of the file that names the package and of all its
archives. Every build host both publishes and verifies, so each would hold a private key as well:
one kind of key does for both.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, Runner
from image_builder.recipe.dockerfile import packages_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageEntry:
    """Describes one package of a mirror.

    `spec_file` names `files`, each a path in the mirror with its sha256.
    """

    node: str
    spec_file: str
    spec_sha256: str
    files: tuple[tuple[str, str], ...]


def read_list(text: str) -> dict[str, PackageEntry | None]:
    """Return what the program's `list` says, by package; None stands for what cannot be read."""
    entries: dict[str, PackageEntry | None] = {}
    for line in text.splitlines():
        fields = json.loads(line)
        entries[fields["node"]] = (
            None
            if "broken" in fields
            else PackageEntry(
                node=fields["node"],
                spec_file=fields["spec_file"],
                spec_sha256=fields["spec_sha256"],
                files=tuple((path, sha256) for path, sha256 in fields["files"]),
            )
        )
    return entries


class MirrorTool:
    """Runs the recipe's program on mirrors and caches that are folders of this machine."""

    def __init__(
        self,
        *,
        scratch: Path,
        runner: Runner,
        cancel: CancelToken,
        timeout_s: float,
        on_line: LineSink,
    ) -> None:
        self._scratch, self._runner, self._cancel = scratch, runner, cancel
        self._timeout_s, self._on_line = timeout_s, on_line

    def entries(self, mirror: Path, nodes: Iterable[str]) -> dict[str, PackageEntry | None]:
        """Return what the mirror holds of these packages; None stands for what cannot be read.

        Archives are not looked at.
        """
        return read_list(self._run("list", mirror, nodes=nodes).decode())

    def copy(self, mirror: Path, cache: Path, nodes: Iterable[str]) -> None:
        """Copy those of these packages that are sound and that the cache does not have."""
        self._run("copy", mirror, cache, nodes=nodes)

    def quarantine(self, cache: Path, nodes: Iterable[str]) -> None:
        """Hide these packages in the cache from every later build."""
        self._run("aside", cache, nodes=nodes)

    def _run(self, verb: str, *folders: Path, nodes: Iterable[str]) -> bytes:
        wanted = self._scratch / "hashes"
        wanted.write_text("".join(f"{node}\n" for node in nodes), "utf-8")
        with packages_program() as program:
            argv = (sys.executable, str(program), verb, *map(str, folders), str(wanted))
            return self._runner(
                Command(name=f"{verb} packages", argv=argv, timeout_s=self._timeout_s),
                on_line=self._on_line,
                cancel=self._cancel,
                capture_stdout=True,
            ).stdout
