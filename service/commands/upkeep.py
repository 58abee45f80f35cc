"""Define the operator's commands that clean up, tell who did what, and back up."""

from __future__ import annotations

import datetime
import json
import sqlite3
from pathlib import Path

import click
from flask.cli import with_appcontext

from image_builder.errors import CicError
from service.cleanup import Cleanup
from service.commands.shared import note, size
from service.context import service
from service.db import audit_trail
from service.db.database import copy_sqlite, now


@click.command("cleanup")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@with_appcontext
def cleanup(dry_run: bool) -> None:
    """Remove what is not needed any more, within the limits of the configuration.

    What is pinned or in use stays.
    """
    parts = service()
    count = freed_bytes = 0
    try:
        for item in Cleanup(parts.engine, parts.settings, parts.images).run(dry_run=dry_run):
            count, freed_bytes = count + 1, freed_bytes + item.size_bytes
            click.echo("\t".join([item.kind, item.name, size(item.size_bytes), item.reason]))
    except CicError as error:
        raise click.ClickException(str(error)) from None
    if not dry_run:
        note("cleanup", f"{count} things of {size(freed_bytes)}")
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {count} things of {size(freed_bytes)}.")


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
        service().engine, user=user, action=action, subject=subject, since=since, limit=limit
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
    url = service().engine.url
    if url.get_backend_name() != "sqlite" or not url.database:
        raise click.ClickException(
            "Only an SQLite database is copied; use your database's own tool."
        )
    try:
        copy_sqlite(Path(url.database), file)
    except (OSError, sqlite3.Error) as error:
        raise click.ClickException(f"The database was not copied: {error}.") from None
    click.echo(f"Copied the database to {file}.")
