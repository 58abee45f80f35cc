"""Decide which worker builds what, from abilities and requirements. Pure.

A request goes to a worker that runs its platform natively and can execute its target, else to one
that runs the platform, else to one that emulates it, else it waits. A better worker is waited for
while it is there, busy or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from service.db.tables import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a worker can build.

    `targets` are those that its CPU executes, of its own platform: the first is its own.
    """

    platforms: Collection[str]
    emulated: Collection[str] = ()
    targets: Collection[str] = ()


def rank(worker: Abilities, kind: Kind) -> int | None:
    """Return how well a worker suits: 0 is best, None is not at all."""
    platform, target = kind
    if platform in worker.platforms:
        own = next(iter(worker.platforms))
        return (
            0
            if platform != own or not target or not worker.targets or target in worker.targets
            else 1
        )
    return 2 if platform in worker.emulated else None


def takes(
    me: Abilities, others: Iterable[Abilities], kind: Kind, *, must_execute: bool = False
) -> bool:
    """Return whether a run of this kind is for me: I suit, and no worker present suits better.

    With `must_execute`, a worker that cannot execute the target does not suit.
    """
    mine = _suits(me, kind, must_execute)
    return mine is not None and all(
        theirs is None or theirs >= mine
        for theirs in (_suits(other, kind, must_execute) for other in others)
    )


def waits_for(
    kind: Kind, workers: Collection[Abilities], *, must_execute: bool = False
) -> str | None:
    """Return what a run of this kind waits for when no worker present suits, else None."""
    if any(_suits(worker, kind, must_execute) is not None for worker in workers):
        return None
    platform, target = kind
    if not workers:
        return "Waits for a worker: none is at work."
    if any(rank(worker, kind) is not None for worker in workers):
        return f"Waits for a worker whose CPU can execute code for {target}: none of those at work can."
    known = sorted({name for worker in workers for name in (*worker.platforms, *worker.emulated)})
    return f"Waits for a worker that builds for {platform}: those at work build for {', '.join(known) or 'nothing'}."


def _suits(worker: Abilities, kind: Kind, must_execute: bool) -> int | None:
    suitability = rank(worker, kind)
    return None if must_execute and suitability == 1 else suitability
