"""Copies built packages between the store that build hosts share and this builder's cache mount.

The mount is visible in a build step alone, so each direction is a small build of its own. Not for
the install itself: that one knows the mount only, and neither the store nor the key that packages
are signed with. What fails here costs time only: it is a warning, and the build goes on without.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from image_builder.build.buildcache.mirror import MirrorTool, PackageEntry, read_list
from image_builder.build.buildcache.signing import Signer
from image_builder.build.buildcache.stores import BuildCacheStore
from image_builder.errors import BuildFailed, LimitReached, Unavailable
from image_builder.host.process import ProcessFailed
from image_builder.host.workspace import Workspace
from image_builder.observer import Observer
from image_builder.recipe.stages import (
    BRING_STAGE,
    FETCH_STAGE,
    HELD_FILE,
    LOOK_STAGE,
    PACKAGES_CONTEXT,
    WANTED_FILE,
)


class RunStage(Protocol):
    """Builds one stage of the recipe; a `nonce` makes its steps run again."""

    def __call__(
        self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None
    ) -> None: ...


class BuildCacheSync:
    """Copies the packages of one lockfile between `place` and the mount.

    With a `signer`, it takes nothing that is not signed.
    """

    def __init__(
        self,
        place: BuildCacheStore,
        lock: Mapping[str, Any],
        *,
        signer: Signer | None,
        tool: MirrorTool,
        workspace: Workspace,
        run_stage: RunStage,
        observer: Observer,
    ) -> None:
        self._place, self._signer, self._tool = place, signer, tool
        self._workspace, self._run_stage, self._observer = workspace, run_stage, observer
        self._missing = {
            node for node, fields in lock["concrete_specs"].items() if not fields.get("external")
        }

    def pull(self, *, again: bool = False) -> None:
        """Copy from the store into the mount what this build needs.

        What is broken there, or not signed, is quarantined; what the mount holds is not copied.
        `again` says that an earlier build of this lockfile ran here: what the mount holds then is
        in the store as well, and is not asked for there.
        """
        with self._warning_on_failure("taken from"):
            in_mount = self._in_mount()
            if again:
                self._missing -= in_mount
            in_place = self._place.available(self._missing) if self._missing else set()
            sound = self._taken(self._workspace.scratch / "brought", in_place - in_mount)
            if sound:
                self._run(
                    BRING_STAGE,
                    "type=cacheonly",
                    sound,
                    contexts={PACKAGES_CONTEXT: self._workspace.scratch / "brought" / "shared"},
                )
            self._missing -= sound | in_place & in_mount

    def push(self) -> None:
        """Copy from the mount into the store what this build needed and the store did not have."""
        if not self._missing:
            return
        fetched = self._workspace.scratch / "fetched"
        with self._warning_on_failure("put into"):
            self._run(FETCH_STAGE, f"type=local,dest={fetched}", self._missing)
            entries = [
                entry
                for entry in self._tool.entries(fetched, self._missing).values()
                if entry is not None
            ]
            self._place.publish(
                fetched,
                {entry: self._signer.sign(entry) if self._signer else None for entry in entries},
            )

    def _in_mount(self) -> set[str]:
        """Return what the mount holds of this build's packages, sound or broken."""
        seen = self._workspace.scratch / "seen"
        self._run(LOOK_STAGE, f"type=local,dest={seen}", self._missing)
        return set(read_list((seen / HELD_FILE).read_text("utf-8")))

    def _taken(self, staged: Path, nodes: Collection[str]) -> set[str]:
        """Copy from the store, whose files may change, and return the packages that may be used."""
        if not nodes:
            return set()
        self._tool.copy(self._place.pull(nodes), staged, nodes)
        sound = set()
        for node, entry in self._tool.entries(staged / "shared", nodes).items():
            if entry is not None and self._is_signed(entry):
                sound.add(node)
            elif entry is not None:
                (staged / "shared" / entry.spec_file).unlink()
        bad = set(nodes) - sound
        if bad:
            self._observer.line(
                f"Warning: {len(bad)} packages of spack_cache are broken or not signed, and are put "
                f"aside: {', '.join(sorted(bad)[:10])}"
            )
            self._place.quarantine(bad)
        return sound

    def _is_signed(self, entry: PackageEntry) -> bool:
        return self._signer is None or self._signer.verify(entry, self._place.signature(entry))

    def _run(
        self,
        stage: str,
        output: str,
        wanted: Collection[str],
        *,
        contexts: Mapping[str, Path] | None = None,
    ) -> None:
        self._workspace.write_context(
            {WANTED_FILE: "".join(f"{node}\n" for node in sorted(wanted))}
        )
        self._run_stage(stage, output, nonce=secrets.token_hex(8), contexts=contexts)

    @contextlib.contextmanager
    def _warning_on_failure(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BuildFailed, LimitReached, ProcessFailed, Unavailable, OSError) as error:
            self._observer.line(
                f"Warning: no built packages could be {what} the place of spack_cache: {error}"
            )
