"""Holds what the steps of one build share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from image_builder.build.log import BuildLog, DigestingObserver
from image_builder.errors import Cancelled, ErrorCode, LimitReached
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Runner
from image_builder.host.workspace import Workspace
from image_builder.observer import Observer
from image_builder.plan import steps
from image_builder.plan.image_name import without_owner
from image_builder.plan.inputs import Inputs
from image_builder.proof.contents import Contents
from image_builder.proof.keys import Signer
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.sif.begun import BegunSif
from image_builder.timeline.spans import DONE, FAILED, STEP, STOPPED, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildContext:
    """Holds one request with its pinned inputs, and where and how it is built.

    No step leaves state behind for another step but the log and the files of the workspace.
    """

    request: BuildRequest
    inputs: Inputs
    settings: LibrarySettings
    workspace: Workspace
    observer: DigestingObserver
    cancel: CancelToken
    runner: Runner
    log: BuildLog
    submitted_at: Callable[[], float]
    """Returns when the image was last requested, in seconds since 1970; raises when nobody waits
    for it any more."""
    signer: Signer | None = None
    """Signs what comes of the build, where the service has a key."""
    until_its_end: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    """What ends with the build."""
    began_at: float = dataclasses.field(default_factory=time.time)
    """In seconds since 1970."""

    @property
    def identity(self) -> str:
        """Return the identity of the image; a build begins only once the base image is known."""
        assert self.inputs.identity is not None
        return self.inputs.identity

    @property
    def platform(self) -> str:
        return self.request.machine.platform

    @functools.cached_property
    def step_time_s(self) -> int:
        """Return the one time that documents and files carry, in seconds since 1970."""
        return steps.step_time_s(self.request, self.inputs.step, self.settings, self.cancel)

    @property
    def documented_as(self) -> str:
        """Return what documents call the image: what is built again keeps its first name.

        Several owners may share it, and none of them is in it.
        """
        relock = self.inputs.relock
        pins = relock.pins if relock is not None else None
        return without_owner(self.inputs.image_id if pins is None else pins.image_id)

    def warn(self, text: str) -> None:
        self.observer.line(f"Warning: {text}")

    def step(self, name: str) -> AbstractContextManager[None]:
        """Report the block as a step of the build, with its beginning and its end."""
        return step(self.observer, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """Describes an image in the daemon that passed its checks.

    `image` is its id, as it may have no name yet; `facts` is the document of what its files told,
    empty where they were not looked at now.
    """

    image: str
    reused: bool
    labels: dict[str, str]
    audit: dict[str, Any] | None = None
    facts: str = ""
    is_slim: bool = False
    full_because: str = ""
    contents: Contents | None = None
    """What is installed in an image that was built now, as far as that is known."""
    sbom: str | None = None
    """The bill of materials, where images have one."""
    scan: dict[str, Any] | None = None
    """What the operator's scanner found, in short, and `scan_document` in whole."""
    scan_document: str | None = None
    begun_sif: BegunSif | None = None
    """What was begun of the image's SIF while its files were looked at."""
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def time_limit(code: ErrorCode) -> Iterator[None]:
    """Give a command that takes too long the error code `code` of its stage."""
    try:
        yield
    except LimitReached as error:
        if error.code is not ErrorCode.TIMEOUT:
            raise
        raise LimitReached(error.message, hint=error.hint, code=code) from error


@contextlib.contextmanager
def step(observer: Observer, name: str) -> Iterator[None]:
    """Report the block as a step of a build, with its beginning and its end."""
    span = Span(kind=STEP, name=name, began_s=time.time())
    observer.span(span)
    outcome = FAILED
    try:
        yield
        outcome = DONE
    except Cancelled:
        outcome = STOPPED
        raise
    finally:
        observer.span(span.ended(time.time(), outcome))
