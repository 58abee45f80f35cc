"""Define the operators' commands, as in `flask --app builder_service users add`.

The groups are `users`, `tokens`, `groups` and `images`; `cleanup`, `audit` and `backup` stand alone.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import pwd
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from image_builder.errors import CicError
from service import earlier_images
from service.cleanup import Cleanup
from service.context import Service
from service.db import accounts, audit_trail, earlier_users, groups, subjects
from service.db import audit_trail as db_audit_trail
from service.db.database import copy_sqlite, now

COMMAND_LINE = "command line"
"""The origin of an operator's command in the audit trail; its user is the operating system's."""

users = AppGroup("users", help="Who may use the service.")
tokens = AppGroup("tokens", help="What programs log in with instead of a password.")
user_groups = AppGroup("groups", help="With whom images are shared together.")
images = AppGroup("images", help="Finished images; pinned ones are kept by clean-up.")


def install(app: Flask) -> None:
    """Add the commands to an application."""
    app.cli.add_command(users)
    app.cli.add_command(tokens)
    app.cli.add_command(user_groups)
    app.cli.add_command(images)
    app.cli.add_command(cleanup)
    app.cli.add_command(audit)
    app.cli.add_command(backup)


@users.command("add")
@click.argument("name")
@click.option(
    "--admin", is_flag=True, help="May also build base images and see the operator's pages."
)
def add(name: str, admin: bool) -> None:
    """Make a user. The password is asked for, or read from standard input."""
    password = _password()
    _do(lambda: accounts.add_user(_service().engine, name, password, is_admin=admin))
    _note("add administrator" if admin else "add user", name)
    click.echo(f"Made {'administrator' if admin else 'user'} {name}.")


@users.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def import_users(file: Path) -> None:
    """Take over the users of the first service from its db.sqlite, with their passwords."""
    _do(lambda: click.echo(earlier_users.take_over_from(_service().engine, file)))
    _note("import users", str(file))


@users.command("list")
def list_all() -> None:
    """List the users."""
    for row in accounts.users(_service().engine):
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
    _do(lambda: accounts.remove_user(_service().engine, name))
    _note("remove user", name)
    click.echo(f"Removed {name}.")


@users.command("password")
@click.argument("name")
def password(name: str) -> None:
    """Give a user another password. It is asked for, or read from standard input."""
    chosen = _password()
    _do(lambda: accounts.set_password(_service().engine, name, chosen))
    _note("password", name)
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
    issuer = _service().settings.oidc.issuer
    if issuer is None:
        raise click.ClickException("There is no OpenID provider: set oidc_cfg['issuer'] first.")
    _do(lambda: subjects.link(_service().engine, name=name, issuer=issuer, subject=subject))
    _note("link user", f"{name} {subject[:200]}")
    click.echo(f"{subject} logs in as {name}.")


@users.command("unlink")
@click.argument("name")
def unlink(name: str) -> None:
    """Let nobody log in as NAME through an OpenID provider any more; a password still works."""
    _do(lambda: subjects.unlink(_service().engine, name))
    _note("unlink user", name)
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
    _do(
        lambda: click.echo(
            accounts.add_token(
                _service().engine, user_id, name, scopes=sorted(set(scopes)), expires_at=expires_at
            )
        )
    )
    _note("token", f"{name} of {user}")


@tokens.command("list")
@click.argument("user")
def list_tokens(user: str) -> None:
    """List a user's tokens: number, name, scopes, and when they expire and were last used."""
    for row in accounts.tokens_of(_service().engine, _user_id(user)):
        click.echo(
            "\t".join(
                [
                    str(row.id),
                    row.name,
                    ",".join(row.scopes),
                    f"expires {_day(row.expires_at)}",
                    f"used {_day(row.last_used_at)}",
                ]
            )
        )


@tokens.command("revoke")
@click.argument("user")
@click.argument("number", type=int)
def revoke_token(user: str, number: int) -> None:
    """Revoke the token of that number (see `tokens list`), at once."""
    if not accounts.revoke_token(_service().engine, _user_id(user), number):
        raise click.ClickException(f"{user} has no token of the number {number}.")
    _note("revoke token", f"{number} of {user}")
    click.echo(f"Revoked token {number} of {user}.")


@user_groups.command("add")
@click.argument("name")
def add_group(name: str) -> None:
    """Make a group, whose members `join` and `leave` name."""
    _do(lambda: groups.add(_service().engine, name))
    _note("add group", name)
    click.echo(f"Made the group {name}.")


@user_groups.command("list")
def list_groups() -> None:
    """List the groups: name, whose they are, and the members."""
    for name, rows in itertools.groupby(groups.everyone(_service().engine), lambda row: row.name):
        of_group = list(rows)
        whose = "operator" if of_group[0].is_local else "provider"
        members = ",".join(row.user for row in of_group if row.user is not None)
        click.echo("\t".join([name, whose, members]).rstrip())


@user_groups.command("remove")
@click.argument("name")
def remove_group(name: str) -> None:
    """Remove a group; what is shared with it is its members' no more."""
    _do(lambda: groups.remove(_service().engine, name))
    _note("remove group", name)
    click.echo(f"Removed the group {name}.")


@user_groups.command("join")
@click.argument("name")
@click.argument("user")
def join(name: str, user: str) -> None:
    """Make USER a member of the group NAME."""
    _do(lambda: groups.join(_service().engine, name, user))
    _note("join group", f"{user} {name}")
    click.echo(f"{user} is in {name}.")


@user_groups.command("leave")
@click.argument("name")
@click.argument("user")
def leave(name: str, user: str) -> None:
    """Take USER out of the group NAME."""
    _do(lambda: groups.leave(_service().engine, name, user))
    _note("leave group", f"{user} {name}")
    click.echo(f"{user} is not in {name}.")


@images.command("list")
def list_images() -> None:
    """List the finished images: name, size, sha256, last use, and whether it is pinned."""
    store = _service().images
    for name, record in store.names().items():
        used = datetime.datetime.fromtimestamp(store.last_use(record), datetime.timezone.utc)
        marks = ["pinned"] if store.is_pinned(record.sha256 or "") else []
        click.echo(
            "\t".join(
                [
                    name,
                    _size(record.size_bytes or 0),
                    record.sha256 or "",
                    f"used {_day(used)}",
                    *marks,
                ]
            )
        )


@images.command("import")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def import_images(files: tuple[Path, ...]) -> None:
    """Take over SIFs of the first service, under the names of their files. The files stay."""
    refused = []
    for file in files:
        try:
            earlier_images.take_over(_service().images, file)
        except (CicError, OSError) as error:
            refused.append(f"{file}: {error}")
            continue
        _note("import image", file.name)
        click.echo(f"Took over {file.name}.")
    if refused:
        raise click.ClickException("\n".join(["Not taken over:", *refused]))


@images.command("pin")
@click.argument("name")
def pin(name: str) -> None:
    """Let clean-up keep an image. NAME is its file name, its sha256, or its identity."""
    _service().images.pin(_digest(name))
    _note("pin", name)
    click.echo(f"{name} stays.")


@images.command("unpin")
@click.argument("name")
def unpin(name: str) -> None:
    """Let clean-up treat an image as all others again."""
    _service().images.unpin(_digest(name))
    _note("unpin", name)
    click.echo(f"{name} may go.")


@images.command("remove")
@click.argument("name")
def remove_image(name: str) -> None:
    """Remove the SIF of this file name or sha256, and every name of it.

    A pinned SIF, and one that is being read, stays.
    """
    if not _service().images.remove(_digest(name)):
        raise click.ClickException(f"{name} is pinned or in use.")
    _note("remove image", name)
    click.echo(f"Removed {name}.")


@click.command("cleanup")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@with_appcontext
def cleanup(dry_run: bool) -> None:
    """Remove what is not needed any more, within the limits of the configuration.

    What is pinned or in use stays.
    """
    parts = _service()
    count = freed_bytes = 0
    try:
        for item in Cleanup(parts.engine, parts.settings, parts.images).run(dry_run=dry_run):
            count, freed_bytes = count + 1, freed_bytes + item.size_bytes
            click.echo("\t".join([item.kind, item.name, _size(item.size_bytes), item.reason]))
    except CicError as error:
        raise click.ClickException(str(error)) from None
    if not dry_run:
        _note("cleanup", f"{count} things of {_size(freed_bytes)}")
    click.echo(
        f"{'Would remove' if dry_run else 'Removed'} {count} things of {_size(freed_bytes)}."
    )


@click.command("audit")
@click.option("--user", help="Only what this user did.")
@click.option("--action", help="Only this: build, cancel, delete, download, login, …")
@click.option("--subject", help="Only what has this in the id or name of what it happened to.")
@click.option("--days", type=click.IntRange(1, 36500), help="Only what happened in so many days.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="How many lines at the most.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object in each line.")
@with_appcontext
def audit(
    user: str | None,
    action: str | None,
    subject: str | None,
    days: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print who did what and when, newest first: time, user, action, subject, address."""
    since = None if days is None else now() - datetime.timedelta(days=days)
    for row in audit_trail.events(
        _service().engine, user=user, action=action, subject=subject, since=since, limit=limit
    ):
        said = {
            "at": row.at.isoformat(timespec="seconds"),
            "user": row.user,
            "action": row.action,
            "subject": row.subject,
            "address": row.address,
        }
        click.echo(
            json.dumps(said) if as_json else "\t".join(value or "-" for value in said.values())
        )


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_appcontext
def backup(file: Path) -> None:
    """Copy the database to FILE while the service runs. An earlier FILE is replaced in one step."""
    url = _service().engine.url
    if url.get_backend_name() != "sqlite" or not url.database:
        raise click.ClickException(
            "Only an SQLite database is copied; use your database's own tool."
        )
    try:
        copy_sqlite(Path(url.database), file)
    except (OSError, sqlite3.Error) as error:
        raise click.ClickException(f"The database was not copied: {error}.") from None
    click.echo(f"Copied the database to {file}.")


def _user_id(name: str) -> int:
    row = accounts.by_name(_service().engine, name)
    if row is None:
        raise click.ClickException(f"There is no user {name[:64]}.")
    return int(row.id)


def _digest(name: str) -> str:
    """The digest that a file name, a sha256 or an identity stands for."""
    store = _service().images
    record = store.by_name(name) or store.by_sha256(name)
    if record is not None and record.sha256 is not None:
        return record.sha256
    if store.is_known(name):
        return name
    raise click.ClickException(f"There is no image {name[:300]}.")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 10**7 else f"{size_bytes / 1e3:.1f} kB"


def _day(moment: datetime.datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d}"


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


def _change(name: str, what: str, **values: bool) -> None:
    _do(lambda: accounts.change_user(_service().engine, name, **values))
    _note(click.get_current_context().info_name or "change", name)
    click.echo(f"{name} {what}")


def _note(action: str, subject: str) -> None:
    """Write down what was done here, in the name of the operating system's user."""
    db_audit_trail.record_audit_event(
        _service().engine,
        user=pwd.getpwuid(os.getuid()).pw_name[:64],
        action=action,
        subject=subject,
        address=COMMAND_LINE,
    )


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except CicError as error:
        raise click.ClickException(str(error)) from None


def _service() -> Service:
    parts: Service = current_app.extensions["cic"]
    return parts
