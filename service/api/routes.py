"""Answer the REST calls: each parses its request, asks the part that knows, and answers.

Everything but health, metrics and the API's description needs a login; the whole blueprint requires
one, so that a call cannot forget it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request
from werkzeug.wrappers import Response as AnyResponse

from image_builder.errors import FieldProblem, InvalidRequest, UserError
from image_builder.proof import keys
from image_builder.request import cpu_targets, machine_search
from image_builder.request.build_request import BuildRequest
from image_builder.request.collected_facts import CollectedFacts, parse_facts
from image_builder.request.machines import machine_facts
from image_builder.request.recognise import recognise
from image_builder.sources.own_description import parse_any_request
from image_builder.store.record import ImageRecord
from service import downloads, sharing
from service.api import devices, folders, notices, responses
from service.api.caller import note, principal
from service.api.downloads import SENT, sif_answer
from service.api.log_stream import log_events
from service.api.openapi import BINARY, FORM, TEXT, Answer, call_of, describes, document
from service.api.queries import (
    ArchitectureQuery,
    DeviceTokens,
    DownloadQuery,
    LogQuery,
    MachineChoice,
    MachineSearch,
    PackagesQuery,
    Page,
    PostedFolder,
    PostedRequest,
    ScriptQuery,
    SharedWith,
    parse_body,
    parse_query,
)
from service.api.responses import (
    audience_answer,
    build_answer,
    image_answer,
    image_summary,
    package_list,
    timeline_answer,
)
from service.auth import auth
from service.browsers import refuse_other_sites
from service.context import service
from service.db import accounts, builds, groups, timelines
from service.db.shares import Audience
from service.errors import Forbidden, Missing
from service.fair_use import tell_allowance
from service.launch import Placed
from service.logs import follow, protocol
from service.metrics import exposition
from service.packages import choose, installed_in
from service.sight import Sight
from service.timeline import timeline_of

LOG_ANSWER_BYTES = 1024**2
"""How much of a log one answer holds."""
_ITS_ID = {"build_id": "$response.body#/id"}
_FIRST_BUILD = {"build_id": "$response.body#/builds/0/id"}
_FIRST_IMAGE = {"filename": "$response.body#/images/0/filename"}
api = Blueprint("api", __name__)


@api.before_request
def _require_login() -> Any:
    """Refuse calls without a login, but for the public ones, and tokens without the scope.

    What is answered is counted.
    """
    call = call_of(current_app, request.endpoint)
    if call is not None and call.is_public:
        if call.is_counted:
            service().fair_use.count_stranger(request)
        return None
    refuse_other_sites(request)
    refused = auth.login_required(lambda: None)()
    if refused is not None:
        service().fair_use.count_stranger(request)
        return refused
    is_costly = call is not None and call.is_costly
    service().fair_use.count_user(principal().id, is_costly=is_costly)
    scope = accounts.READ if request.method in ("GET", "HEAD", "OPTIONS") else accounts.WRITE
    is_for_any_token = call is not None and call.is_for_any_token
    if scope not in principal().scopes and not is_for_any_token:
        raise Forbidden(
            f"This token is not good for that: it lacks the scope {scope}.",
            hint="Make another token.",
        )
    return None


api.after_request(tell_allowance)


@api.post("/build/")
@describes(
    "Ask for an image",
    body=PostedRequest,
    form=PostedFolder,
    answer=responses.Accepted,
    problems=(404,),
    links={"status": _ITS_ID, "log": _ITS_ID, "cancel": _ITS_ID},
    is_costly=True,
)
def submit() -> Response:
    """Take a request: a JSON object, or one with a folder, as `multipart/form-data`."""
    who = principal()
    has_folder = request.mimetype == FORM
    asked = folders.request_with_folder(request, who.id) if has_folder else _asked(who.id)
    build_id = service().submission.submit(asked, user_id=who.id, is_admin=who.is_admin)
    note("build", build_id)
    return jsonify({"id": build_id} | ({"folder": asked.folder} if asked.folder else {}))


@api.post("/build/plan")
@describes(
    "See what would be built",
    body=PostedRequest,
    answer=responses.PlanAnswer,
    problems=(404,),
    is_costly=True,
)
def plan() -> Response:
    who = principal()
    asked = _asked(who.id)
    planned = service().submission.plan(asked, user_id=who.id, is_admin=who.is_admin)
    would: responses.PlanAnswer = {
        "image_id": planned.image_id,
        "filename": planned.filename,
        "identity": planned.identity,
        "spack_yaml": planned.spack_yaml,
        "dockerfile": planned.dockerfile,
        "warnings": list(planned.warnings),
    }
    if planned.description_yaml is not None:
        would["description_yaml"] = planned.description_yaml
    return jsonify(would)


@api.get("/build/")
@describes(
    "List your builds", query=Page, answer=responses.BuildList, links={"status": _FIRST_BUILD}
)
def list_builds() -> Response:
    asked = parse_query(Page, request.args)
    rows, total = builds.builds_of(
        service().engine,
        principal().id,
        status=asked.status,
        page=asked.page,
        per_page=asked.per_page,
    )
    answer: responses.BuildList = {
        "builds": [build_answer(row) for row in rows],
        "page": asked.page,
        "per_page": asked.per_page,
        "total": total,
        "pages": -(-total // asked.per_page),
    }
    return jsonify(answer)


@api.get("/build/<build_id>")
@describes("Ask for a build's status", answer=responses.BuildAnswer)
def status(build_id: str) -> Response:
    return jsonify(build_answer(_own_build(build_id)))


@api.post("/build/<build_id>/cancel")
@describes("Cancel a build", answer=responses.BuildAnswer, links={"delete": _ITS_ID})
def cancel(build_id: str) -> Response:
    _own_build(build_id)
    service().submission.withdraw(build_id)
    note("cancel", build_id)
    return jsonify(build_answer(_own_build(build_id)))


@api.delete("/build/<build_id>")
@describes(
    "Delete a build that has ended",
    answers={204: Answer(description="It is gone.")},
    problems=(400,),
)
def delete(build_id: str) -> Response:
    _own_build(build_id)
    if not builds.delete_build(service().engine, build_id):
        raise InvalidRequest([FieldProblem("id", "the build has not ended", "cancel it first")])
    note("delete", build_id)
    return Response(status=204)


@api.get("/build/<build_id>/log")
@describes(
    "Read a build's log from a byte on, or follow it",
    query=LogQuery,
    answers={
        200: Answer(
            description="The log, as text or as server-sent events.",
            content={"text/plain": TEXT, "text/event-stream": TEXT},
            headers={
                "X-Log-Offset": "where to go on",
                "X-Log-Complete": "true when nothing will follow",
            },
        )
    },
)
def log(build_id: str) -> Response:
    row = _own_build(build_id)
    kept = service().logs.of(row.run_id)
    if (
        request.accept_mimetypes.best_match(["text/plain", "text/event-stream"])
        == "text/event-stream"
    ):
        return log_events(build_id, kept)
    offset = parse_query(LogQuery, request.args).offset
    end = follow.own_part(row)
    size_bytes = kept.size_bytes() if end is None else min(end, kept.size_bytes())
    next_offset = max(offset, min(offset + LOG_ANSWER_BYTES, size_bytes))
    return Response(
        protocol.blocks(kept, offset, next_offset),
        content_type="text/plain; charset=utf-8",
        headers={
            "X-Log-Offset": str(next_offset),
            "X-Log-Complete": str(end is not None and next_offset >= size_bytes).lower(),
            "Content-Length": str(next_offset - offset),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


@api.get("/build/<build_id>/timeline")
@describes("See what ran in a build, and when", answer=responses.TimelineAnswer)
def timeline(build_id: str) -> Response:
    """Return the steps, layers and packages of a build, with their times, also while it goes on."""
    row = _own_build(build_id)
    return jsonify(
        timeline_answer(timeline_of(row, timelines.document(service().engine, row.run_id)))
    )


@api.get("/image/")
@describes(
    "List the finished images",
    answer=responses.ImageList,
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


@api.get("/image/<filename>")
@describes(
    "Ask what is known of an image",
    answer=responses.OneImageAnswer,
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


@api.post("/image/<filename>/share")
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


@api.post("/image/<filename>/pin")
@describes("Let clean-up keep an image", answers={204: Answer(description="It stays.")})
def pin(filename: str) -> Response:
    service().images.pin(_image_to_pin(filename))
    note("pin", filename)
    return Response(status=204)


@api.delete("/image/<filename>/pin")
@describes(
    "Let clean-up treat an image as all others", answers={204: Answer(description="It may go.")}
)
def unpin(filename: str) -> Response:
    service().images.unpin(_image_to_pin(filename))
    note("unpin", filename)
    return Response(status=204)


@api.get("/image/<filename>/document/<name>")
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


@api.get("/image/<filename>/packages")
@describes("List what is installed in an image", query=PackagesQuery, answer=responses.PackageList)
def packages_of(filename: str) -> Response:
    """Return the packages of Spack, Debian and Python in an image, with versions and licences."""
    asked = parse_query(PackagesQuery, request.args)
    record = _image(filename)
    found = installed_in(functools.partial(service().images.document, record.identity))
    chosen = choose(
        found, search=asked.search, kind=asked.kind, page=asked.page, per_page=asked.per_page
    )
    return jsonify(package_list(found, chosen, asked.per_page))


@api.get("/image/<filename>/check")
@describes(
    "See whether an image works on a machine",
    query=MachineChoice,
    answer=responses.CheckAnswer,
    is_costly=True,
)
def check(filename: str) -> Response:
    """Return whether the image works on a machine.

    The machine is given as `?machine=<name of the catalogue>`, by its facts, or both.
    """
    placed = _placed(filename, request.args)
    return jsonify({"image": filename, "machine": placed.machine.name, **placed.report().as_dict()})


@api.get("/image/<filename>/script")
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


@api.get("/images/download/<filename>")
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


@api.get("/architecture/")
@describes(
    "List the targets that can be asked for",
    query=ArchitectureQuery,
    answer=responses.ArchitectureList,
)
def architectures() -> Response:
    """Return the targets that a request may name; `?platform=` chooses those of one platform."""
    targets, asked = (
        cpu_targets.known_targets(),
        parse_query(ArchitectureQuery, request.args).platform,
    )
    if asked is not None:
        try:
            platform = cpu_targets.parse_platform(asked)
        except cpu_targets.UnknownName as error:
            raise InvalidRequest([FieldProblem("platform", str(error), error.hint)]) from None
        targets = [target for target in targets if target["platform"] == platform]
    return jsonify({"architectures": targets, "platforms": list(cpu_targets.platforms())})


@api.get("/machine/")
@describes("List the machine catalogue", query=MachineSearch, answer=responses.MachineList)
def machines() -> Response:
    """Return the machine catalogue: what a request may name as its `machine`.

    `?search=` chooses the machines that have all of its words.
    """
    search = parse_query(MachineSearch, request.args).search
    return jsonify(responses.machine_list(machine_search.found(service().machines, search)))


@api.post("/machine/recognise")
@describes(
    "Recognise a machine from collected facts",
    body=CollectedFacts,
    answer=responses.RecognisedAnswer,
    is_costly=True,
)
def recognise_machine() -> Response:
    """Return which machine the facts of `cic_cli here` belong to; the facts are not kept."""
    facts = parse_facts(request.get_data(cache=False))
    return jsonify(recognise(facts, service().machines).as_dict())


@api.get("/group/")
@describes("List the groups that you are in", answer=responses.GroupList)
def list_groups() -> Response:
    return jsonify({"groups": groups.of_user(service().engine, principal().id)})


@api.get("/auth/oidc")
@describes(
    "Where a program logs its user in",
    answer=responses.DeviceLogIn,
    is_public=True,
    problems=(404, 429),
)
def device_log_in() -> Response:
    """Return the provider's endpoints for the device flow; all of it is public."""
    return jsonify(devices.where(service().provider))


@api.post("/auth/oidc")
@describes(
    "Log in with what the device flow gave",
    body=DeviceTokens,
    answer=responses.LoggedIn,
    is_public=True,
    problems=(403, 404, 429),
)
def log_in_with_device() -> Response:
    """Return a token of this service for a fresh ID token, which is good for this once."""
    refuse_other_sites(request)
    asked = parse_body(DeviceTokens, request.get_data(cache=False))
    return jsonify(devices.exchange(service(), asked, request.remote_addr or ""))


@api.delete("/auth/token")
@describes(
    "Revoke the token that this call is made with",
    answers={204: Answer(description="It is good for nothing any more.")},
    problems=(400,),
    is_for_any_token=True,
)
def revoke_token() -> AnyResponse:
    """Revoke the caller's token: whoever holds a token can end it, and no other."""
    token_id = principal().token_id
    if token_id is None:
        raise UserError(
            "No token came with this call.", hint="Send the one to revoke, with Bearer."
        )
    if accounts.revoke_token(service().engine, principal().id, token_id):
        note("revoke token", str(token_id))
    return Response(status=204)


@api.get("/health/live")
@describes(
    "Ask whether the server answers", answer=responses.Alive, is_public=True, is_counted=False
)
def live() -> Response:
    return jsonify({"status": "alive"})


@api.get("/health/ready")
@describes(
    "Ask whether the service can build", answer=responses.Ready, is_public=True, is_counted=False
)
def ready() -> Response:
    return service().readiness.answer()


@api.get("/key/")
@describes(
    "The public keys of what this service signs",
    is_public=True,
    problems=(404,),
    answers={
        200: Answer(
            description="Keys in PEM: the present one, then old ones.", content={"text/plain": TEXT}
        )
    },
)
def public_keys() -> Response:
    """Return the keys with which `cic_cli verify` and `apptainer verify` check images.

    Apptainer takes the first one of a file.
    """
    published = keys.published(service().settings.library.proof)
    if not published:
        raise Missing(
            "This service signs no images.", hint="Its operator may set a key (proof_cfg)."
        )
    return Response("".join(published), mimetype="text/plain")


@api.get("/metrics")
@describes(
    "Numbers for Prometheus",
    is_public=True,
    is_counted=False,
    answers={200: Answer(description="Prometheus' text format.", content={"text/plain": TEXT})},
)
def metrics() -> Response:
    return exposition(service().engine, lost_after_s=service().settings.service.lost_worker_after_s)


@api.get("/openapi.json")
@describes(
    "This description",
    is_public=True,
    answers={
        200: Answer(
            description="An OpenAPI document.", content={"application/json": {"type": "object"}}
        )
    },
)
def openapi() -> Response:
    return jsonify(document(current_app, request.root_path))


def _asked(user_id: int) -> BuildRequest:
    """Return the request in the body, which may name a finished build of the user."""
    submission = service().submission
    return parse_any_request(
        request.get_data(cache=False),
        machines=service().machines,
        kept=lambda build_id: submission.kept_request(build_id, user_id),
    )


def _own_build(build_id: str) -> Any:
    """Return the caller's build of this id; raise `Missing` for any other."""
    row = g.pop("cic_build", None)  # it came with the login; a second call gets what is true then
    if row is None and len(build_id) == 36:
        row = builds.build(service().engine, build_id)
    if row is None or row.user_id != principal().id:
        raise Missing("There is no such build.", hint="GET /build/ lists your builds.")
    return row


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


notices.add_calls(api)
