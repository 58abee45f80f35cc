"""Answer the REST calls about finished images."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from flask import Blueprint, Response, jsonify, request
from werkzeug.wrappers import Response as AnyResponse

from image_builder.request.machines import machine_facts
from image_builder.store.record import ImageRecord
from service import downloads, sharing
from service.api import image_answers
from service.api.caller import note, principal
from service.api.downloads import SENT, sif_answer
from service.api.image_answers import audience_answer, image_answer, image_summary, package_list
from service.api.openapi import BINARY, TEXT, Answer, describes
from service.api.queries import (
    DownloadQuery,
    MachineChoice,
    PackagesQuery,
    ScriptQuery,
    SharedWith,
    parse_body,
    parse_query,
)
from service.context import service
from service.db.shares import Audience
from service.errors import Forbidden, Missing
from service.launch import Placed
from service.packages import choose, installed_in
from service.sight import Sight

_FIRST_IMAGE = {"filename": "$response.body#/images/0/filename"}


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/image/", view_func=list_images)
    api.add_url_rule("/image/<filename>", view_func=image)
    api.add_url_rule("/image/<filename>/share", view_func=share, methods=["POST"])
    api.add_url_rule("/image/<filename>/pin", view_func=pin, methods=["POST"])
    api.add_url_rule("/image/<filename>/pin", view_func=unpin, methods=["DELETE"])
    api.add_url_rule("/image/<filename>/document/<name>", view_func=document_of)
    api.add_url_rule("/image/<filename>/packages", view_func=packages_of)
    api.add_url_rule("/image/<filename>/check", view_func=check)
    api.add_url_rule("/image/<filename>/script", view_func=script_of)
    api.add_url_rule("/images/download/<filename>", view_func=download)


@describes(
    "List the finished images",
    answer=image_answers.ImageList,
    links={"image": _FIRST_IMAGE, "check": _FIRST_IMAGE, "download": _FIRST_IMAGE},
)
def list_images() -> Response:
    """Return the finished images that the caller may see and fetch.

    Images of the site's workflows are everybody's; private ones are their owners', and of those
    with whom they are shared.
    """
    names = _sight().names()
    newest_first = sorted(names.items(), key=lambda item: (item[1].created, item[0]), reverse=True)
    return jsonify({"images": [image_summary(name, record) for name, record in newest_first]})


@describes(
    "Ask what is known of an image",
    answer=image_answers.OneImageAnswer,
    links={
        "document_of": {
            "filename": "$response.body#/filename",
            "name": "$response.body#/documents/0",
        }
    },
)
def image(filename: str) -> Response:
    record = _image(filename)
    images = service().images
    return jsonify(
        {
            **image_answer(filename, record),
            "documents": list(images.documents(record.identity)),
            "pinned": images.is_pinned(record.sha256 or record.identity),
            **audience_answer(sharing.shared_with(_sight(), filename)),
        }
    )


@describes(
    "Say with whom a private image is shared",
    body=SharedWith,
    answers={204: Answer(description="It is shared with these, and nobody else.")},
)
def share(filename: str) -> Response:
    asked = parse_body(SharedWith, request.get_data(cache=False))
    sharing.share(_sight(), filename, Audience(users=asked.users, groups=asked.groups))
    note("share", filename)
    return Response(status=204)


@describes("Let clean-up keep an image", answers={204: Answer(description="It stays.")})
def pin(filename: str) -> Response:
    service().images.pin(_image_to_pin(filename))
    note("pin", filename)
    return Response(status=204)


@describes(
    "Let clean-up treat an image as all others", answers={204: Answer(description="It may go.")}
)
def unpin(filename: str) -> Response:
    service().images.unpin(_image_to_pin(filename))
    note("unpin", filename)
    return Response(status=204)


@describes(
    "Read a text that an image was made from",
    answers={200: Answer(description="The text.", content={"text/plain": TEXT})},
)
def document_of(filename: str, name: str) -> Response:
    """Return a text that the image was made from, by its name.

    The names are `spack.lock`, `spack.yaml`, `description.yaml`, `Dockerfile`, `sbom.spdx.json`,
    `provenance.intoto.json`, `materials.json`, `facts.json` and `origins.json`.
    """
    record = _image(filename)
    text = service().images.document(record.identity, name)
    if text is None:
        known = ", ".join(service().images.documents(record.identity))
        raise Missing(
            f"The image has no document {name[:100]}.",
            hint=f"It has {known}." if known else "It has none.",
        )
    return Response(text, mimetype="text/plain")


@describes(
    "List what is installed in an image", query=PackagesQuery, answer=image_answers.PackageList
)
def packages_of(filename: str) -> Response:
    """Return the packages of Spack, Debian and Python in an image, with versions and licences."""
    asked = parse_query(PackagesQuery, request.args)
    record = _image(filename)
    found = installed_in(functools.partial(service().images.document, record.identity))
    chosen = choose(
        found, search=asked.search, kind=asked.kind, page=asked.page, per_page=asked.per_page
    )
    return jsonify(package_list(found, chosen, asked.per_page))


@describes(
    "See whether an image works on a machine",
    query=MachineChoice,
    answer=image_answers.CheckAnswer,
    is_costly=True,
)
def check(filename: str) -> Response:
    """Return whether the image works on a machine.

    The machine is given as `?machine=<name of the catalogue>`, by its facts, or both.
    """
    placed = _placed(filename, request.args)
    return jsonify({"image": filename, "machine": placed.machine.name, **placed.report().as_dict()})


@describes(
    "Get what starts an image on a machine",
    query=ScriptQuery,
    answers={
        200: Answer(
            description="A job script, an EDF file, command lines or a module.",
            content={"text/plain": TEXT},
            headers={"Content-Disposition": "the name of the file to keep it in"},
        )
    },
    is_costly=True,
)
def script_of(filename: str) -> Response:
    """Return what starts a program of the image there, with the findings of a check as comments."""
    own = set(ScriptQuery.model_fields) - set(MachineChoice.model_fields)
    asked = parse_query(ScriptQuery, {key: request.args[key] for key in own & set(request.args)})
    given = {key: value for key, value in request.args.items() if key not in own}
    script = _placed(filename, given).script(
        asked.kind or None, program=asked.program or "", processes=asked.processes
    )
    answer = Response(script.text, content_type="text/plain; charset=utf-8")
    answer.headers.set("Content-Disposition", "attachment", filename=script.filename)
    return answer


@describes(
    "Download an image",
    query=DownloadQuery,
    answers={
        200: Answer(
            description="The SIF.",
            content={downloads.CONTENT_TYPE: BINARY},
            headers={"ETag": "its sha256"},
        ),
        206: Answer(
            description="The part that was asked for.",
            content={downloads.CONTENT_TYPE: BINARY},
            headers={"ETag": "its sha256", "Content-Range": "which part"},
        ),
        302: Answer(description="Where to fetch it.", headers={"Location": "a link that expires"}),
        304: Answer(description="You have it."),
    },
    problems=(416,),
)
def download(filename: str) -> AnyResponse:
    """Send the SIF of this name; `?sha256=` chooses an earlier one."""
    answer, sha256 = sif_answer(filename, _sight())
    if request.method == "GET" and answer.status_code in SENT:
        note("download", f"{filename} {sha256}")
    return answer


def _sight() -> Sight:
    """Return the images as the caller sees them."""
    return Sight(engine=service().engine, images=service().images, user_id=principal().id)


def _image(filename: str) -> ImageRecord:
    record = _sight().by_name(filename)
    if record is None:
        raise Missing(
            f"There is no image {filename[:300]}.", hint="GET /image/ lists the finished images."
        )
    return record


def _placed(filename: str, given: Mapping[str, str]) -> Placed:
    """Return an image on the machine that a query names or describes."""
    record = _image(filename)
    facts = machine_facts(given, service().machines)
    return Placed(record=record, filename=filename, machine=facts)


def _image_to_pin(filename: str) -> str:
    """The digest of an image that the caller may pin. Raises `Forbidden` or `Missing`."""
    if not principal().is_admin:
        raise Forbidden(
            "Only administrators may pin images.", hint="Ask the operator of the service."
        )
    record = _image(filename)
    return record.sha256 or record.identity
