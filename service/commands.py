"""Commands for operators: `flask --app builder_service users …`."""

from __future__ import annotations

import sys

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from image_builder.errors import CicError
from service import accounts
from service.context import Service

users = AppGroup("users", help="Who may use the service.")


def install(app: Flask) -> None:
    """Add the commands to an application."""
    app.cli.add_command(users)


@users.command("add")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May also build base images and see the operator's pages.")
def add(name: str, admin: bool) -> None:
    """Make a user. The password is asked for, or read from standard input."""
    password = _password()
    _do(lambda: accounts.add_user(_service().engine, name, password, is_admin=admin))
    click.echo(f"Made {'administrator' if admin else 'user'} {name}.")


@users.command("list")
def list_all() -> None:
    """List the users."""
    for row in accounts.users(_service().engine):
        marks = [word for word, is_so in (("admin", row.is_admin), ("unconfirmed", not row.is_confirmed),
                                          ("inactive", not row.is_active)) if is_so]
        click.echo("\t".join([row.name, ",".join(marks)]).rstrip())


@users.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a user with all builds and tokens. Images stay."""
    _do(lambda: accounts.remove_user(_service().engine, name))
    click.echo(f"Removed {name}.")


@users.command("password")
@click.argument("name")
def password(name: str) -> None:
    """Give a user another password. It is asked for, or read from standard input."""
    chosen = _password()
    _do(lambda: accounts.set_password(_service().engine, name, chosen))
    click.echo(f"{name} has another password.")


@users.command("confirm")
@click.argument("name")
def confirm(name: str) -> None:
    """Let a user in who has signed up."""
    _do(lambda: accounts.change_user(_service().engine, name, is_confirmed=True, is_active=True))
    click.echo(f"{name} may log in.")


@users.command("promote")
@click.argument("name")
def promote(name: str) -> None:
    """Make a user an administrator."""
    _do(lambda: accounts.change_user(_service().engine, name, is_admin=True))
    click.echo(f"{name} is an administrator.")


@users.command("demote")
@click.argument("name")
def demote(name: str) -> None:
    """Make an administrator a user as all others."""
    _do(lambda: accounts.change_user(_service().engine, name, is_admin=False))
    click.echo(f"{name} is no administrator any more.")


@users.command("block")
@click.argument("name")
def block(name: str) -> None:
    """Keep a user out; `confirm` lets them in again. Builds and images stay."""
    _do(lambda: accounts.change_user(_service().engine, name, is_active=False))
    click.echo(f"{name} may not log in any more.")


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


def _do(work: object) -> None:
    try:
        work()  # type: ignore[operator]
    except CicError as error:
        raise click.ClickException(str(error)) from None


def _service() -> Service:
    found: Service = current_app.extensions["cic"]
    return found
