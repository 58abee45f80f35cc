"""Define the operator's commands for groups of users."""

from __future__ import annotations

import itertools

import click
from flask.cli import AppGroup

from service.commands.shared import do, note
from service.context import service
from service.db import groups

user_groups = AppGroup("groups", help="With whom images are shared together.")


@user_groups.command("add")
@click.argument("name")
def add_group(name: str) -> None:
    """Make a group, whose members `join` and `leave` name."""
    do(lambda: groups.add(service().engine, name))
    note("add group", name)
    click.echo(f"Made the group {name}.")


@user_groups.command("list")
def list_groups() -> None:
    """List the groups: name, whose they are, and the members."""
    for name, rows in itertools.groupby(groups.everyone(service().engine), lambda row: row.name):
        of_group = list(rows)
        whose = "operator" if of_group[0].is_local else "provider"
        members = ",".join(row.user for row in of_group if row.user is not None)
        click.echo("\t".join([name, whose, members]).rstrip())


@user_groups.command("remove")
@click.argument("name")
def remove_group(name: str) -> None:
    """Remove a group; what is shared with it is its members' no more."""
    do(lambda: groups.remove(service().engine, name))
    note("remove group", name)
    click.echo(f"Removed the group {name}.")


@user_groups.command("join")
@click.argument("name")
@click.argument("user")
def join(name: str, user: str) -> None:
    """Make USER a member of the group NAME."""
    do(lambda: groups.join(service().engine, name, user))
    note("join group", f"{user} {name}")
    click.echo(f"{user} is in {name}.")


@user_groups.command("leave")
@click.argument("name")
@click.argument("user")
def leave(name: str, user: str) -> None:
    """Take USER out of the group NAME."""
    do(lambda: groups.leave(service().engine, name, user))
    note("leave group", f"{user} {name}")
    click.echo(f"{user} is not in {name}.")
