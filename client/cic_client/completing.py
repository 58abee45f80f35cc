"""Complete a command line for a shell, from names that are remembered or quickly asked for.

Without an answer within two seconds there is none to complete from, and nothing is said: a shell is
in the middle of a line.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cic_client import names, places
from cic_client.errors import ClientError

if TYPE_CHECKING:
    from cic_client.client import Client

SHELLS = ("bash", "zsh")
FRESH_S = {names.MACHINES: 3600.0, names.IMAGES: 120.0, names.BUILDS: 30.0}
AGAIN_S = 30.0
"""A service that did not answer is asked again after so long."""
PATIENCE_S = 2
STATES = ("pending", "started", "building", "converting", "finished", "failed")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could be written next, and end; else do nothing."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # which is of no use to other starts

        argcomplete.autocomplete(parser)


def machines(**_: Any) -> list[str]:
    """Return the names of the machine catalogue."""
    return _names(names.MACHINES)


def images(**_: Any) -> list[str]:
    """Return the names of the finished images."""
    return _names(names.IMAGES)


def builds(**_: Any) -> list[str]:
    """Return the ids of the newest builds."""
    return _names(names.BUILDS)


def states(**_: Any) -> Iterable[str]:
    """Return the statuses of builds."""
    return STATES


def earlier(prefix: str, **_: Any) -> list[str]:
    """Return what a plan may be compared with: builds, images and files."""
    folder = Path(prefix).parent if not prefix.endswith("/") else Path(prefix)
    files = [f"{one}/" if one.is_dir() else str(one) for one in folder.glob("*")]
    return [*_names(names.BUILDS), *_names(names.IMAGES), *files]


def _names(kind: str) -> list[str]:
    path = places.names_file(os.environ)
    known, age_s = names.remembered(path, kind)
    if age_s < FRESH_S[kind]:
        return known
    # First of all, so that a service which is away is not asked again at every key.
    names.remember(path, kind, known, age_s=FRESH_S[kind] - AGAIN_S)
    found = _asked(kind)
    if found is None:
        return known
    names.remember(path, kind, found)
    return found


def _asked(kind: str) -> list[str] | None:
    """Return the names that the service has, or None if it does not say."""
    # With the libraries of HTTP, which what is remembered does not need.
    from cic_client import login

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)  # the end of this process, also while it looks up an address
    try:
        known = login.login_from(os.environ)
        with login.client(known, os.environ, tries=1) as client:
            return _ASK[kind](client)
    except (ClientError, OSError):
        return None
    finally:
        signal.alarm(0)


_ASK: dict[str, Callable[[Client], list[str]]] = {
    names.MACHINES: lambda client: [one.name for one in client.machines().machines],
    names.IMAGES: lambda client: [one.filename for one in client.list_images().images],
    names.BUILDS: lambda client: [one.id for one in client.list_builds().builds],
}
