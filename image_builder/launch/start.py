"""Describes what is to be started: an image on a machine, a program and a number of processes."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping

from image_builder.docker import label_names
from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.launch.commands import PROCESSES
from image_builder.launch.facts import rank_environment, runs_sifs
from image_builder.request.machines import MachineFacts

MAX_PROGRAM = 1000
"""Characters of a command line."""
MAX_PROCESSES = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Describes an image to start on a `machine`, with the words of its `program`.

    `image` holds the image's labels, `file` is its SIF's name and `reference` its name in an image
    registry. With no words of a program, the job's submission names it. `remarks` are what a check
    found: they become comments.
    """

    image: Mapping[str, str]
    machine: MachineFacts
    file: str
    reference: str
    program: tuple[str, ...] = ()
    processes: int = PROCESSES
    remarks: tuple[str, ...] = ()

    @property
    def is_parallel(self) -> bool:
        return label_names.MPI_FAMILY in self.image

    @property
    def title(self) -> str:
        """Return the image's name as part of file names, job names and shell words."""
        stem = self.file.removesuffix(".sif") or self.reference
        return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("-.")[:100] or "image"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return what the ranks need to find each other from inside a container."""
        return rank_environment(self.image, self.machine)

    def image_for(self, engine: str) -> str:
        """Return what an engine calls the image."""
        return self.file if runs_sifs(engine) else self.reference


def program_words(text: str) -> tuple[str, ...]:
    """Return the words of a command line, as a shell reads them. Raises `InvalidRequest`."""
    if len(text) > MAX_PROGRAM or not text.isprintable():
        hint = f"write up to {MAX_PROGRAM} characters in one line"
        raise InvalidRequest(
            [FieldProblem("program", "is too long or has control characters", hint)]
        )
    try:
        return tuple(shlex.split(text))
    except ValueError:
        hint = "close the quote, or leave the program out and name it when the script is started"
        raise InvalidRequest([FieldProblem("program", "has an open quote", hint)]) from None


def comments(*lines: str, mark: str = "#") -> str:
    """Return lines as comments: none of them can end a comment, or control a terminal."""
    return "".join(f"{mark} {_printable(line)}".rstrip() + "\n" for line in lines)


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
