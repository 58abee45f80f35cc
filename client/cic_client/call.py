"""Hold what a verb works with."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cic_client import names, places
from cic_client.screen import Screen

if TYPE_CHECKING:
    from cic_client.client import Client


@dataclasses.dataclass(frozen=True)
class Call:
    """What was asked on the command line, where answers go, and the service that is asked."""

    asked: argparse.Namespace
    screen: Screen
    environ: Mapping[str, str]

    @functools.cached_property
    def client(self) -> Client:
        """The service that the environment or the kept log-in names."""
        from cic_client import login  # with the libraries of HTTP, which not every verb needs

        found = login.login_from(self.environ)
        if warning := login.in_the_clear(found.url):
            self.screen.note(warning, "yellow")
        return login.client(found, self.environ)

    def remember(self, kind: str, found: Iterable[str]) -> None:
        """Let a shell complete these names from now on."""
        names.remember(places.names_file(self.environ), kind, found)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        if "client" in self.__dict__:
            self.client.close()
