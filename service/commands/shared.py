"""Share what several of the operators' commands do: find the service, note, report and show."""

from __future__ import annotations

import datetime
import os
import pwd
from collections.abc import Callable

import click

from image_builder.errors import CicError
from service.context import service
from service.db import audit_trail

COMMAND_LINE = "command line"
"""The origin of an operator's command in the audit trail; its user is the operating system's."""


def do(work: Callable[[], object]) -> None:
    """Do something; an error of ours ends the command with its words."""
    try:
        work()
    except CicError as error:
        raise click.ClickException(str(error)) from None


def note(action: str, subject: str) -> None:
    """Write down what was done here, in the name of the operating system's user."""
    audit_trail.record_audit_event(
        service().engine,
        user=pwd.getpwuid(os.getuid()).pw_name[:64],
        action=action,
        subject=subject,
        address=COMMAND_LINE,
    )


def size(size_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 10**7 else f"{size_bytes / 1e3:.1f} kB"


def day(moment: datetime.datetime | None) -> str:
    """Return the day of a moment; None is one that never comes."""
    return "never" if moment is None else f"{moment:%Y-%m-%d}"
