"""The seam behind which runs are worked on. It passes a run's id and nothing else.

The database is the only truth: a run is claimed there, its heartbeat and its cancel flag lie there. An executor
merely wakes somebody who looks.
"""

from __future__ import annotations

from typing import Protocol


class Executor(Protocol):
    """Somebody who sees to it that pending runs are worked on."""

    def submit(self, run_id: str) -> None:
        """A run was put into the queue."""

    def cancel(self, run_id: str) -> None:
        """A run's cancel flag was set."""

    def shutdown(self) -> None:
        """The service ends."""
