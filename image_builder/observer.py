"""What a build tells the world while it runs. It hears these three calls and knows nothing else."""

from __future__ import annotations

from typing import Protocol

from image_builder.state import BuildState


class Observer(Protocol):
    """Somebody who watches one build: the service's worker, or a terminal."""

    def entered(self, state: BuildState) -> None:
        """The build entered `state` (STARTED, BUILDING or CONVERTING)."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units are complete; `what` names the present one, such as
        `openmpi@4.1.6`.
        """

    def line(self, text: str) -> None:
        """One line of output, already free of secrets and without its line end."""


class SilentObserver:
    """An observer that ignores everything."""

    def entered(self, state: BuildState) -> None:
        pass

    def progress(self, done: int, total: int, what: str) -> None:
        pass

    def line(self, text: str) -> None:
        pass
