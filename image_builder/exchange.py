"""Carries built packages between a folder of the site, which build hosts share, and this builder's cache mount.

The mount can be seen from a build step alone, so each way is a small build of its own. Not for the install itself: that
one knows the mount only. What fails here costs time only; it is told, and the build goes on without.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from image_builder.errors import BuildFailed, Unavailable
from image_builder.observer import Observer
from image_builder.process import CancelToken, Command, ProcessFailed, Runner
from image_builder.recipe import BRING_STAGE, FETCH_STAGE, PACKAGES_CONTEXT, WANTED_FILE, packages_program
from image_builder.workspace import Workspace


class RunStage(Protocol):
    """Builds one stage of the recipe; a `nonce` makes its steps run again."""

    def __call__(self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None) -> None: ...


class Exchange:
    """The packages of one lock, between `folder` and the mount."""

    def __init__(self, folder: Path, lock: Mapping[str, Any], *, workspace: Workspace, run_stage: RunStage,
                 runner: Runner, observer: Observer, cancel: CancelToken, timeout_s: float) -> None:
        self._folder, self._workspace, self._run_stage = folder, workspace, run_stage
        self._runner, self._observer, self._cancel, self._timeout_s = runner, observer, cancel, timeout_s
        workspace.write_context({WANTED_FILE: "".join(
            f"{node}\n" for node, fields in lock["concrete_specs"].items() if not fields.get("external"))})

    def bring(self) -> None:
        """From the folder into the mount, what this build needs."""
        staged = self._workspace.scratch / "brought"
        with self._told("taken from"):
            self._copy(self._folder / "shared", staged)
            if any(path.is_file() for path in (staged / "shared").rglob("*")):
                self._run_stage(BRING_STAGE, "type=cacheonly", nonce=_new_nonce(),
                                contexts={PACKAGES_CONTEXT: staged / "shared"})

    def fetch(self) -> None:
        """From the mount into the folder, what this build needed and the folder has not."""
        fetched = self._workspace.scratch / "fetched"
        with self._told("put into"):
            self._run_stage(FETCH_STAGE, f"type=local,dest={fetched}", nonce=_new_nonce())
            self._copy(fetched, self._folder)

    def _copy(self, mirror: Path, cache: Path) -> None:
        wanted = self._workspace.context / WANTED_FILE
        with packages_program() as program:
            argv = (sys.executable, str(program), "copy", str(mirror), str(cache), str(wanted))
            self._runner(Command(name="copy packages", argv=argv, timeout_s=self._timeout_s),
                         on_line=self._observer.line, cancel=self._cancel)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BuildFailed, ProcessFailed, Unavailable) as error:
            self._observer.line(f"Warning: no built packages could be {what} the folder of spack_cache: {error}")


def _new_nonce() -> str:
    return secrets.token_hex(8)
