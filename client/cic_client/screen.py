"""Print answers and notes. Nothing of a server is printed raw."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from cic_client.text import json_text, printable

if TYPE_CHECKING:
    from rich.console import Console

    from cic_client.accepted import Accepted
    from cic_client.models import Answer


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where answers and notes go. With `as_json`, answers are the service's JSON."""

    as_json: bool = False

    @functools.cached_property
    def out(self) -> Console:
        """The terminal for answers, or whatever stands in its place."""
        return _console()

    @functools.cached_property
    def notes(self) -> Console:
        """The terminal for what is said besides."""
        return _console(stderr=True)

    @functools.cached_property
    def live(self) -> Console:
        """The same terminal, for what is written over: no line may be longer than it is wide."""
        return _console(stderr=True, soft_wrap=False)

    def note(self, text: str, style: str = "") -> None:
        """Tell what happens, beside the answers."""
        self.notes.print(printable(text), style=style or None)

    def line(self, text: str) -> None:
        """Print one text that is the whole answer."""
        print(printable(text))

    def answer(self, answer: Answer | Accepted) -> bool:
        """Print an answer if JSON is wanted, and return whether it is."""
        if self.as_json:
            print(json_text(answer.as_json()))
        return self.as_json


def _console(*, soft_wrap: bool = True, **options: Any) -> Console:
    # Rich takes longer to import than a request takes to be answered, and many calls print no more
    # than a line.
    from rich.console import Console

    return Console(soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False, **options)
