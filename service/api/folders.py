"""Read a request that comes with a folder, as `multipart/form-data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from flask import Request

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import load_json
from image_builder.sources.own_description import parse_any_request
from service.context import service

REQUEST, FOLDER = "request", "folder"
MAX_REQUEST_BYTES = 1024**2
_NOT_YET = "0" * 40
"""Stands for the folder while the rest of the request is checked, before anything is unpacked."""


def request_with_folder(request: Request, user_id: int) -> BuildRequest:
    """Return the request of a form whose folder is unpacked and kept.

    Raises `InvalidRequest` for a form without its two parts, and what `Uploads.take` does.
    """
    request.max_content_length = service().settings.service.max_upload_bytes
    text, archive = _parts(request)
    return with_folder(load_json(text), archive, user_id)


def with_folder(fields: Mapping[str, Any], archive: IO[bytes], user_id: int) -> BuildRequest:
    """Return the request of these fields, for the folder in a tar archive, which is kept."""
    if fields.get(FOLDER) is not None:
        raise InvalidRequest(
            [FieldProblem(FOLDER, "stands in the request and beside it", "send one of the two")]
        )
    asked = parse_any_request({**fields, FOLDER: _NOT_YET}, machines=service().machines)
    upload = service().submission.take_folder(archive, user_id=user_id)
    return asked.model_copy(update={FOLDER: upload.tree})


def _parts(request: Request) -> tuple[bytes, IO[bytes]]:
    """Return the request's text and the open archive."""
    problems = [
        FieldProblem(name[:60], "is not a known part", f"known are {REQUEST} and {FOLDER}")
        # A part without a name has None for one.
        for name in sorted(map(str, {*request.form, *request.files} - {REQUEST, FOLDER}))
    ]
    texts, as_files = request.form.getlist(REQUEST), request.files.getlist(REQUEST)
    archives = request.files.getlist(FOLDER)
    if len(texts) + len(as_files) != 1:
        problems.append(
            FieldProblem(REQUEST, "must come once", "send the request's JSON as this part")
        )
    if len(archives) != 1 or FOLDER in request.form:
        hint = "send a tar archive of the step's folder as a file"
        problems.append(FieldProblem(FOLDER, "must come once", hint))
    if problems:
        raise InvalidRequest(problems[:20])
    text = texts[0].encode() if texts else as_files[0].stream.read(MAX_REQUEST_BYTES + 1)
    if len(text) > MAX_REQUEST_BYTES:
        raise InvalidRequest([FieldProblem(REQUEST, "is too large", "write a shorter request")])
    return text, archives[0].stream
