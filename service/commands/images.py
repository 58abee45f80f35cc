"""Define the operator's commands for finished images."""

from __future__ import annotations

import datetime
from pathlib import Path

import click
from flask.cli import AppGroup

from image_builder.errors import CicError
from service import earlier_images
from service.commands.shared import day, note, size
from service.context import service

images = AppGroup("images", help="Finished images; pinned ones are kept by clean-up.")


@images.command("list")
def list_images() -> None:
    """List the finished images: name, size, sha256, last use, and whether it is pinned."""
    store = service().images
    for name, record in store.names().items():
        used = datetime.datetime.fromtimestamp(store.last_use(record), datetime.timezone.utc)
        marks = ["pinned"] if store.is_pinned(record.sha256 or "") else []
        click.echo(
            "\t".join(
                [
                    name,
                    size(record.size_bytes or 0),
                    record.sha256 or "",
                    f"used {day(used)}",
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
            earlier_images.take_over(service().images, file)
        except (CicError, OSError) as error:
            refused.append(f"{file}: {error}")
            continue
        note("import image", file.name)
        click.echo(f"Took over {file.name}.")
    if refused:
        raise click.ClickException("\n".join(["Not taken over:", *refused]))


@images.command("pin")
@click.argument("name")
def pin(name: str) -> None:
    """Let clean-up keep an image. NAME is its file name, its sha256, or its identity."""
    service().images.pin(_digest(name))
    note("pin", name)
    click.echo(f"{name} stays.")


@images.command("unpin")
@click.argument("name")
def unpin(name: str) -> None:
    """Let clean-up treat an image as all others again."""
    service().images.unpin(_digest(name))
    note("unpin", name)
    click.echo(f"{name} may go.")


@images.command("remove")
@click.argument("name")
def remove_image(name: str) -> None:
    """Remove the SIF of this file name or sha256, and every name of it.

    A pinned SIF, and one that is being read, stays.
    """
    if not service().images.remove(_digest(name)):
        raise click.ClickException(f"{name} is pinned or in use.")
    note("remove image", name)
    click.echo(f"Removed {name}.")


def _digest(name: str) -> str:
    """The digest that a file name, a sha256 or an identity stands for."""
    store = service().images
    record = store.by_name(name) or store.by_sha256(name)
    if record is not None and record.sha256 is not None:
        return record.sha256
    if store.is_known(name):
        return name
    raise click.ClickException(f"There is no image {name[:300]}.")
