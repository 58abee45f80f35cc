"""Take over SIFs of the first service, which kept them by name in `<tmp_folder>/images/`.

A front server may hand out what is in that folder, so they do not stay there; and nothing is known
of what they were made from, so nothing is ever built "already" by them. Their names stay good.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from image_builder.errors import UserError
from image_builder.host.files import sha256_of
from image_builder.sif import format
from image_builder.store.image_store import Images
from image_builder.store.record import ImageRecord, is_filename

_log = logging.getLogger(__name__)

ASIDE = "earlier-images"


def set_aside(tmp_folder: Path) -> None:
    """Move the first service's SIFs out of the folder that a front server serves.

    To be called before this service makes its first folder in `tmp_folder`: later, what is there is
    its own.
    """
    if (tmp_folder / "run").exists():
        return
    moved = [path for path in (tmp_folder / "images").glob("*.sif") if _moved(path, tmp_folder)]
    if moved:
        _log.warning(
            "SIFs of the first service moved to %s: %d. `images import` takes them over; "
            "docs/migrate.md tells how.",
            tmp_folder / ASIDE,
            len(moved),
        )


def _moved(path: Path, tmp_folder: Path) -> bool:
    """Whether this process moved a file; several that start at once try."""
    try:
        (tmp_folder / ASIDE).mkdir(exist_ok=True)
        path.rename(tmp_folder / ASIDE / path.name)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.error("%s, of the first service, is not moved to %s: %s", path, ASIDE, error)
        return False
    return True


def take_over(images: Images, file: Path) -> ImageRecord:
    """Store a copy of a SIF under its file's name. Raises `UserError`, or `OSError` for the disk."""
    if not is_filename(file.name):
        raise UserError(
            f"{file.name[:300]} cannot be the name of an image.",
            hint="Write letters, digits, '.', '_' and '-', and .sif at the end.",
        )
    if images.by_name(file.name) is not None:
        raise UserError(f"There is an image {file.name} already.", hint="Leave this file out.")
    try:
        architecture = format.verify(file).architecture
    except format.BadSif as error:
        raise UserError(
            f"{file.name} is not a whole SIF: {error}.", hint="Build the image again."
        ) from None
    with images.temporary_path() as temporary:
        shutil.copyfile(file, temporary)
        with temporary.open("rb") as copy:
            sha256 = sha256_of(copy)
        return images.publish(temporary, _record(file.name, architecture, sha256), sha256=sha256)


def _record(filename: str, architecture: str, sha256: str) -> ImageRecord:
    """What is known of it. Its identity is its own: no request has this one."""
    name, _, version = filename.removesuffix(".sif").rpartition("_v_")
    return ImageRecord(
        identity=f"sha256:{sha256}",
        image_id=f"{name}:{version}" if name else filename.removesuffix(".sif"),
        platform=f"linux/{architecture}",
        filename=filename,
    )
