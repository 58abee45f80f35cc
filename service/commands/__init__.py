"""Define the operators' commands, as in `flask --app builder_service users add`.

The groups are `users`, `tokens`, `groups` and `images`; `cleanup`, `audit` and `backup` stand alone.
"""

from __future__ import annotations

from flask import Flask

from service.commands.groups import user_groups
from service.commands.images import images
from service.commands.upkeep import audit, backup, cleanup
from service.commands.users import tokens, users

__all__ = ["images", "install", "tokens", "user_groups", "users"]


def install(app: Flask) -> None:
    """Add the commands to an application."""
    for command in (users, tokens, user_groups, images, cleanup, audit, backup):
        app.cli.add_command(command)
