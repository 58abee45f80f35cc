"""Find finished images, fetch them, and find the machines that they are for."""

from __future__ import annotations

import sys
from typing import Any

from cic_client import live, names, tables
from cic_client.call import Call
from cic_client.errors import BadInput

DOES_NOT_WORK = 1
PACKAGES_PER_PAGE = 1000


def images(call: Call) -> int:
    """List the finished images."""
    answer = call.client.list_images()
    call.remember(names.IMAGES, [one.filename for one in answer.images])
    tables.show_images(call.screen, answer)
    return 0


def pull(call: Call) -> int:
    """Fetch an image file, or complete one."""
    asked, screen = call.asked, call.screen
    if asked.output != "-":
        live.pulled(call.client, screen, asked.image, asked.to, name=asked.output)
        return 0
    if sys.stdout.isatty():
        raise BadInput(
            "An image is nothing for a terminal: let standard output be a file or a pipe."
        )
    with live.download_bar(asked.image, screen) as progress:
        call.client.copy_to(asked.image, sys.stdout.buffer.write, progress=progress)
    sys.stdout.flush()
    return 0


def packages(call: Call) -> int:
    """List what is installed in an image."""
    asked = call.asked
    answer = call.client.packages_of(
        asked.image, search=asked.search or "", page=asked.page, per_page=PACKAGES_PER_PAGE
    )
    tables.show_packages(call.screen, answer)
    return 0


def share(call: Call) -> int:
    """Say who else sees a private image, or show it."""
    asked = call.asked
    if asked.user or asked.group or asked.nobody:
        if asked.nobody and (asked.user or asked.group):
            raise BadInput("--nobody goes alone: what is named takes the place of what there is.")
        call.client.share(asked.image, asked.user, asked.group)
    answer = call.client.image(asked.image)
    if call.screen.answer(answer):
        return 0
    if answer.shared_with is None:
        raise BadInput("Only its owner shares an image, and only a private one.")
    shown = {"users": answer.shared_with, "groups": answer.shared_with_groups or []}
    for kind, known in shown.items():
        call.screen.line(f"{kind}: {', '.join(known) or 'none'}")
    return 0


def groups(call: Call) -> int:
    """List the groups that you are in."""
    answer = call.client.list_groups()
    if not call.screen.answer(answer):
        for name in answer.groups:
            call.screen.line(name)
    return 0


def machines(call: Call) -> int:
    """List the machines that a request may name."""
    search = " ".join(call.asked.search)
    answer = call.client.machines(search=search)
    if not search:
        call.remember(names.MACHINES, [one.name for one in answer.machines])
    tables.show_machines(call.screen, answer)
    return 0


def check(call: Call) -> int:
    """Show whether an image works on a machine."""
    names = [one for one in call.asked.machine if "=" not in one]
    if len(names) > 1:
        raise BadInput("Name one machine; what is known besides is written as fact=value.")
    facts = dict(one.split("=", 1) for one in call.asked.machine if "=" in one)
    query: dict[str, Any] = {**facts, **({"machine": names[0]} if names else {})}
    if not all(name.isidentifier() for name in query) or "filename" in query:
        raise BadInput("A fact is written as in gpu=cuda@12.2.")
    answer = call.client.check(call.asked.image, **query)
    tables.show_check(call.screen, answer)
    return 0 if answer.ok else DOES_NOT_WORK
