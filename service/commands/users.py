"""Define the operator's commands for users and for their tokens."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import click
from flask.cli import AppGroup

from service.commands.shared import day, do, note
from service.context import service
from service.db import accounts, earlier_users, subjects
from service.db.database import now

users = AppGroup("users", help="Who may use the service.")
tokens = AppGroup("tokens", help="What programs log in with instead of a password.")


@users.command("add")
@click.argument("name")
@click.option(
    "--admin", is_flag=True, help="May also build base images and see the operator's pages."
)
def add(name: str, admin: bool) -> None:
    """Make a user. The password is asked for, or read from standard input."""
    password = _password()
    do(lambda: accounts.add_user(service().engine, name, password, is_admin=admin))
    note("add administrator" if admin else "add user", name)
    click.echo(f"Made {'administrator' if admin else 'user'} {name}.")


@users.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def import_users(file: Path) -> None:
    """Take over the users of the first service from its db.sqlite, with their passwords."""
    do(lambda: click.echo(earlier_users.take_over_from(service().engine, file)))
    note("import users", str(file))


@users.command("list")
def list_all() -> None:
    """List the users."""
    for row in accounts.users(service().engine):
        marks = [
            word
            for word, is_so in (
                ("admin", row.is_admin),
                ("unconfirmed", not row.is_confirmed),
                ("inactive", not row.is_active),
            )
            if is_so
        ]
        click.echo("\t".join([row.name, ",".join(marks)]).rstrip())


@users.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a user with all builds and tokens. Images stay."""
    do(lambda: accounts.remove_user(service().engine, name))
    note("remove user", name)
    click.echo(f"Removed {name}.")


@users.command("password")
@click.argument("name")
def password(name: str) -> None:
    """Give a user another password. It is asked for, or read from standard input."""
    chosen = _password()
    do(lambda: accounts.set_password(service().engine, name, chosen))
    note("password", name)
    click.echo(f"{name} has another password.")


@users.command("confirm")
@click.argument("name")
def confirm(name: str) -> None:
    """Let a user in who has signed up."""
    _change(name, "may log in.", is_confirmed=True, is_active=True)


@users.command("promote")
@click.argument("name")
def promote(name: str) -> None:
    """Make a user an administrator."""
    _change(name, "is an administrator.", is_admin=True)


@users.command("demote")
@click.argument("name")
def demote(name: str) -> None:
    """Make an administrator a user as all others."""
    _change(name, "is no administrator any more.", is_admin=False)


@users.command("block")
@click.argument("name")
def block(name: str) -> None:
    """Keep a user out; `confirm` lets them in again. Builds and images stay."""
    _change(name, "may not log in any more.", is_active=False)


@users.command("link")
@click.argument("name")
@click.argument("subject")
def link(name: str, subject: str) -> None:
    """Let whom the OpenID provider calls SUBJECT log in as the user NAME."""
    issuer = service().settings.oidc.issuer
    if issuer is None:
        raise click.ClickException("There is no OpenID provider: set oidc_cfg['issuer'] first.")
    do(lambda: subjects.link(service().engine, name=name, issuer=issuer, subject=subject))
    note("link user", f"{name} {subject[:200]}")
    click.echo(f"{subject} logs in as {name}.")


@users.command("unlink")
@click.argument("name")
def unlink(name: str) -> None:
    """Let nobody log in as NAME through an OpenID provider any more; a password still works."""
    do(lambda: subjects.unlink(service().engine, name))
    note("unlink user", name)
    click.echo(f"Nobody logs in as {name} through an OpenID provider any more.")


@tokens.command("add")
@click.argument("user")
@click.argument("name")
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    help="How long it is good for; without this, until revoked.",
)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(accounts.SCOPES),
    multiple=True,
    default=accounts.SCOPES,
    help="What it is good for; may be given more than once. Without this, everything.",
)
def add_token(user: str, name: str, days: int | None, scopes: tuple[str, ...]) -> None:
    """Make a token for USER, called NAME, and print it: it cannot be shown again."""
    expires_at = None if days is None else now() + datetime.timedelta(days=days)
    user_id = _user_id(user)
    do(
        lambda: click.echo(
            accounts.add_token(
                service().engine, user_id, name, scopes=sorted(set(scopes)), expires_at=expires_at
            )
        )
    )
    note("token", f"{name} of {user}")


@tokens.command("list")
@click.argument("user")
def list_tokens(user: str) -> None:
    """List a user's tokens: number, name, scopes, and when they expire and were last used."""
    for row in accounts.tokens_of(service().engine, _user_id(user)):
        click.echo(
            "\t".join(
                [
                    str(row.id),
                    row.name,
                    ",".join(row.scopes),
                    f"expires {day(row.expires_at)}",
                    f"used {day(row.last_used_at)}",
                ]
            )
        )


@tokens.command("revoke")
@click.argument("user")
@click.argument("number", type=int)
def revoke_token(user: str, number: int) -> None:
    """Revoke the token of that number (see `tokens list`), at once."""
    if not accounts.revoke_token(service().engine, _user_id(user), number):
        raise click.ClickException(f"{user} has no token of the number {number}.")
    note("revoke token", f"{number} of {user}")
    click.echo(f"Revoked token {number} of {user}.")


def _user_id(name: str) -> int:
    row = accounts.by_name(service().engine, name)
    if row is None:
        raise click.ClickException(f"There is no user {name[:64]}.")
    return int(row.id)


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


def _change(name: str, what: str, **values: bool) -> None:
    do(lambda: accounts.change_user(service().engine, name, **values))
    note(click.get_current_context().info_name or "change", name)
    click.echo(f"{name} {what}")
