"""Serve the pages of finished images: the list, and all that is known of one."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from image_builder.docker import label_names
from image_builder.errors import InvalidRequest
from image_builder.launch.commands import docker_command, singularity_command
from image_builder.launch.script import KINDS, Script
from image_builder.request.machines import machine_facts
from image_builder.spack import lockfile
from image_builder.store.record import ImageRecord
from service import sharing
from service.api.downloads import SENT, sif_answer
from service.db import builds, groups, shares
from service.db.shares import Audience
from service.errors import Missing
from service.launch import Placed
from service.sight import Sight
from service.web.forms import page_number, record_audit_event
from service.web.session import service, user

PER_PAGE = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A finished image as pages show it: with a SIF, with a name that Docker knows, or with both.

    `reference` is that name; with a `digest` the image registry holds it, else the daemon that
    built it.
    """

    record: ImageRecord
    filename: str | None = None
    reference: str | None = None
    digest: str | None = None
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.record.details.get("labels") or {}
        return labels

    @property
    def title(self) -> str:
        return self.labels.get(label_names.TITLE) or self.record.image_id

    @property
    def commit(self) -> str | None:
        """Return the workflow's commit."""
        return self.labels.get(label_names.WORKFLOW_COMMIT)

    @property
    def audit(self) -> Mapping[str, Any] | None:
        audit: Mapping[str, Any] | None = self.record.details.get("audit")
        return audit

    @property
    def scan(self) -> Mapping[str, Any] | None:
        """Return what a scanner found, in short."""
        scan: Mapping[str, Any] | None = self.record.details.get("scan")
        return scan

    @property
    def size_bytes(self) -> int | None:
        """Return the SIF's size, else the image's in Docker."""
        return self.record.size_bytes if self.filename else self.record.details.get("image_bytes")

    @property
    def machine(self) -> str:
        said = self.labels
        asked = self.request.get("machine") or {}
        parts = (
            said.get(label_names.TARGET) or asked.get("architecture") or self.record.platform,
            _versioned(said, label_names.MPI_NAME, label_names.MPI_VERSION) or asked.get("mpi"),
            _versioned(said, label_names.GPU_RUNTIME, label_names.GPU_VERSION) or asked.get("gpu"),
            said.get(label_names.GPU_ARCH),
        )
        return ", ".join(part for part in parts if part)

    @property
    def url(self) -> str:
        if self.filename is not None:
            return url_for("web.image", filename=self.filename)
        return url_for("web.image_of_docker", image_id=self.reference)

    def has(self, words: Iterable[str]) -> bool:
        """Return whether every word is in its names, its labels or its request."""
        text = " ".join(
            (
                self.filename or "",
                self.reference or "",
                self.record.platform,
                self.machine,
                *map(str, self.labels.values()),
            )
        ).lower()
        return all(word in text for word in words)


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/images", "images", images)
    web.add_url_rule("/images/<filename>", "image", image)
    web.add_url_rule("/images/<filename>/share", "share", share, methods=["POST"])
    web.add_url_rule("/images/docker/<path:image_id>", "image_of_docker", image_of_docker)
    web.add_url_rule("/images/<filename>/download", "download", download)
    web.add_url_rule("/images/documents/<identity>/<name>", "document", document)


def images() -> str:
    """Show the images whose name or labels hold every word of the search."""
    words = request.args.get("search", "")[:200].lower().split()
    matching = [one for one in _all() if one.has(words)]
    matching.sort(key=lambda one: (one.record.created, one.record.image_id), reverse=True)
    pages = max(1, math.ceil(len(matching) / PER_PAGE))
    page = min(page_number(), pages)
    shown = map(_whole, matching[(page - 1) * PER_PAGE : page * PER_PAGE])
    return render_template(
        "images.html",
        images=list(shown),
        page=page,
        pages=pages,
        total=len(matching),
        search=" ".join(words),
    )


def image(filename: str) -> str:
    """Show the page of a SIF, whose image may have been pushed, too."""
    record = _record(filename)
    tagged = {row.image_id: row for row in _tagged_rows()}
    return _page(_sif(filename, record, tagged.get(record.image_id)))


def image_of_docker(image_id: str) -> str:
    """Show the page of an image without a SIF."""
    for row in _tagged_rows():
        if row.image_id == image_id:
            return _page(_whole(_tagged(row)))
    raise Missing("There is no such image.", hint="It may have been removed: build it again.")


def _page(one: Shown) -> str:
    checked, kind = request.args.get("machine", ""), request.args.get("kind", "")
    placed = _placed(one, checked)
    kept = service().images
    documents = kept.documents(one.record.identity)
    return render_template(
        "image.html",
        one=one,
        documents=documents,
        has_graph=lockfile.FILE in documents,
        commands=_commands(one),
        checked=checked,
        report=placed.report() if placed else None,
        script=_script(placed, kind),
        kind=kind,
        kinds=KINDS,
        machines=service().machines,
        own_groups=groups.of_user(service().engine, user().id),
        shared_with=sharing.shared_with(sight(), one.filename) if one.filename else None,
    )


def share(filename: str) -> AnyResponse:
    """Share an image with the users and groups whose names were typed."""
    users = re.split(r"[\s,]+", request.form.get("users", "")[:8000].strip())
    typed = [name.strip() for name in request.form.get("groups", "")[:20_000].split(",")]
    audience = Audience(
        users=[name for name in users if name][: shares.MAX_USERS],
        groups=[name for name in typed if name][: shares.MAX_GROUPS],
    )
    try:
        sharing.share(sight(), filename, audience)
    except InvalidRequest as error:
        flash("; ".join(problem.problem for problem in error.problems[:5]), "danger")
    else:
        record_audit_event("share", filename)
        flash("The image is shared with these, and nobody else.", "success")
    return redirect(url_for("web.image", filename=filename))


def download(filename: str) -> AnyResponse:
    answer, sha256 = sif_answer(filename, sight())
    if request.method == "GET" and answer.status_code in SENT:
        record_audit_event("download", f"{filename} {sha256}")
    return answer


def document(identity: str, name: str) -> Response:
    """Send a text that an image was made from."""
    text = sight().document(identity, name)
    if text is None:
        raise Missing("The image has no such document.")
    return Response(text, mimetype="text/plain")


def _record(filename: str) -> ImageRecord:
    record = sight().by_name(filename)
    if record is None:
        raise Missing("There is no such image.", hint="It may have been removed: build it again.")
    return record


def sight() -> Sight:
    """Return the images as the present user sees them."""
    return Sight(engine=service().engine, images=service().images, user_id=user().id)


def _tagged_rows() -> list[Any]:
    """Return the images that Docker can use and the present user may see."""
    return builds.tagged_images(service().engine, shares.granted(user().id))


def _all() -> list[Shown]:
    """Every image that the user may see; one that was pushed and has a SIF is one."""
    tagged = {row.image_id: row for row in _tagged_rows()}
    sifs = [
        _sif(name, record, tagged.get(record.image_id)) for name, record in sight().names().items()
    ]
    joined = {one.reference for one in sifs}
    return sifs + [_tagged(row) for row in tagged.values() if row.image_id not in joined]


def _sif(filename: str, record: ImageRecord, row: Any | None) -> Shown:
    """A SIF; `row` is what Docker has under the same name, which may be something older or newer."""
    if row is None or row.identity != record.identity:
        return Shown(record=record, filename=filename)
    return Shown(record=record, filename=filename, reference=row.image_id, digest=row.pushed_digest)


def _tagged(row: Any) -> Shown:
    record = ImageRecord(
        identity=row.identity,
        image_id=row.image_id,
        platform=row.platform,
        created=row.ended_at,
        details={"audit": row.audit},
    )
    return Shown(
        record=record, reference=row.image_id, digest=row.pushed_digest, request=row.request
    )


def _whole(one: Shown) -> Shown:
    """The same with all that is kept about it."""
    kept = service().images
    stored = kept.by_name(one.filename) if one.filename else kept.by_identity(one.record.identity)
    if stored is None:
        return one
    record = stored if one.filename else one.record.model_copy(update={"details": stored.details})
    return dataclasses.replace(one, record=record)


def _versioned(said: Mapping[str, str], name: str, version: str) -> str | None:
    if not said.get(name):
        return None
    return f"{said[name]}@{said[version]}" if said.get(version) else said[name]


def _commands(one: Shown) -> list[tuple[str, list[tuple[str, str]]]]:
    """Command lines to fetch the image and to run something in it, by the program that does it."""
    commands = []
    if one.filename is not None:
        commands.append(("Singularity or Apptainer", _sif_commands(one, one.filename)))
    if one.reference is not None:
        commands.append(("Docker", _docker_commands(one, one.reference)))
    return commands


def _sif_commands(one: Shown, filename: str) -> list[tuple[str, str]]:
    name = shlex.quote(filename)
    address = url_for("api.download", filename=filename, _external=True)
    place = service().images.address_of(filename)
    pull = (
        [("Or from the registry", f"singularity pull {name} {shlex.quote(place)}")]
        if place is not None
        else []
    )
    return [
        (
            "Fetch it with a token",
            f'curl --fail -O -H "Authorization: Bearer $CIC_TOKEN" {shlex.quote(address)}',
        ),
        ("Or with the command-line client", f"./cic_cli download {name}"),
        *pull,
        ("See that it is whole", f"echo '{one.record.sha256}  {filename}' | sha256sum --check"),
        ("Run a program in it", singularity_command(one.labels, filename)),
        (
            "Run a command as its entry point does",
            singularity_command(one.labels, filename, action="run", program="<command>"),
        ),
    ]


def _docker_commands(one: Shown, reference: str) -> list[tuple[str, str]]:
    name = shlex.quote(reference)
    run = ("Run a program in it", docker_command(one.labels, reference))
    if one.digest is None:
        return [run]
    exact = shlex.quote(f"{reference.rpartition(':')[0]}@{one.digest}")
    sif = () if one.filename else [("Or make a SIF of it", f"singularity pull docker://{name}")]
    return [
        ("Fetch it", f"docker pull {name}"),
        ("Fetch exactly this one, whatever the name means later", f"docker pull {exact}"),
        run,
        *sif,
    ]


def _placed(one: Shown, machine: str) -> Placed | None:
    if not machine or machine not in service().machines:
        return None
    facts = machine_facts({"machine": machine}, service().machines)
    return Placed(record=one.record, filename=one.filename, machine=facts)


def _script(placed: Placed | None, kind: str) -> Script | None:
    """What starts it there; of a kind that the machine does not have, there is none."""
    if placed is None or kind not in KINDS:
        return None
    try:
        return placed.script(kind)
    except InvalidRequest:
        return None
