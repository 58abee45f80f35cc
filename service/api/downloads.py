"""A stored SIF as an answer."""

from __future__ import annotations

from flask import redirect, request
from werkzeug.wrappers import Response as AnyResponse

from image_builder.store.record import ImageRecord, is_filename
from service import downloads
from service.api.queries import DownloadQuery, parse_query
from service.context import service
from service.errors import Missing
from service.sight import Sight

SENT = frozenset({200, 206, 302})
"""Answers that bring a SIF, a part of it, or the way to it."""


def sif_answer(filename: str, sight: Sight) -> tuple[AnyResponse, str]:
    """Return the answer that brings the requested SIF, sent or by a link, and its sha256.

    Raises `Missing`, also for what the user may not see.
    """
    images, settings = service().images, service().settings
    asked = parse_query(DownloadQuery, request.args).sha256
    record = sight.by_sha256(asked) if asked and is_filename(filename) else sight.by_name(filename)
    if record is None or record.sha256 is None:
        raise Missing(
            f"There is no image {filename[:300]}.", hint="GET /image/ lists the finished images."
        )
    try:
        sif = images.path_of(record.sha256)
        if settings.service.download_links is None or sif is None:
            return downloads.send_sif(images, record.sha256, filename), record.sha256
        folder = settings.library.build.tmp_folder / "images"
        with images.opened(record.sha256):  # clean-up, which looks at links, waits
            secret = settings.service.secret_key.get_secret_value()
            link = downloads.make_link(sif, _link_name(record, filename, sight), folder, secret)
        answer = redirect(f"{request.root_path}/{settings.service.download_links}/{link}", 302)
        answer.headers["Cache-Control"] = "no-store"
        return answer, record.sha256
    except FileNotFoundError:
        raise Missing(f"The image {filename} was removed.", hint="Build it again.") from None


def _link_name(record: ImageRecord, asked: str, sight: Sight) -> str:
    """What a link to a SIF ends with: one of its names, as `?sha256=` comes with any."""
    named = sight.by_name(asked)
    if named is not None and named.sha256 == record.sha256:
        return asked
    is_seen = record.filename is not None and sight.may_see(record.filename)
    return record.filename if record.filename and is_seen else f"{record.sha256}.sif"
