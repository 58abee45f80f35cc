"""Finished images: the list, and all that is known of one."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from image_builder import compat, labels, lockfile
from image_builder.machines import machine_facts
from image_builder.storage import ImageRecord
from service.api import sif_answer
from service.errors import Missing
from service.web.login import service
from service.web.parts import note, page_number

PER_PAGE = 20
LOCK = "spack.lock"


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/images", "images", images)
    web.add_url_rule("/images/<filename>", "image", image)
    web.add_url_rule("/images/<filename>/download", "download", download)
    web.add_url_rule("/images/<filename>/documents/<name>", "document", document)


def images() -> str:
    """The images whose name or labels hold every word that was searched for."""
    words = request.args.get("search", "")[:200].lower().split()
    found = [(name, record) for name, record in service().images.names().items()
             if all(word in _text(name, record) for word in words)]
    found.sort(key=lambda item: (item[1].created, item[0]), reverse=True)
    pages = max(1, math.ceil(len(found) / PER_PAGE))
    page = min(page_number(), pages)
    shown = found[(page - 1) * PER_PAGE:page * PER_PAGE]
    whole = [(name, service().images.by_name(name) or record) for name, record in shown]
    return render_template("images.html", images=[_summary(name, record) for name, record in whole], page=page,
                           pages=pages, total=len(found), search=" ".join(words))


def image(filename: str) -> str:
    record = _record(filename)
    checked = request.args.get("machine", "")
    store = service().images
    documents = store.documents(record.identity)
    lock = store.document(record.identity, LOCK) if LOCK in documents else None
    return render_template("image.html", **_summary(filename, record), documents=documents,
                           packages=_packages(lock), commands=_commands(filename, record), checked=checked,
                           report=_report(filename, record, checked), machines=service().machines)


def download(filename: str) -> AnyResponse:
    answer, sha256 = sif_answer(filename)
    if request.method == "GET" and "Content-Range" not in answer.headers:
        note("download", f"{filename} {sha256}")
    return answer


def document(filename: str, name: str) -> Response:
    """A text that the image was made from."""
    text = service().images.document(_record(filename).identity, name)
    if text is None:
        raise Missing("The image has no such document.")
    return Response(text, mimetype="text/plain")


def _record(filename: str) -> ImageRecord:
    record = service().images.by_name(filename)
    if record is None:
        raise Missing("There is no such image.", hint="It may have been removed: build it again.")
    return record


def _labels(record: ImageRecord) -> Mapping[str, str]:
    found: Mapping[str, str] = record.details.get("labels") or {}
    return found


def _text(name: str, record: ImageRecord) -> str:
    return " ".join((name, record.platform, *map(str, _labels(record).values()))).lower()


def _summary(filename: str, record: ImageRecord) -> dict[str, Any]:
    said = _labels(record)
    machine = (said.get(labels.TARGET) or record.platform, _versioned(said, labels.MPI_NAME, labels.MPI_VERSION),
               _versioned(said, labels.GPU_RUNTIME, labels.GPU_VERSION), said.get(labels.GPU_ARCH))
    return {"filename": filename, "record": record, "labels": said, "audit": record.details.get("audit"),
            "machine": ", ".join(part for part in machine if part), "title": said.get(labels.TITLE) or record.image_id}


def _versioned(said: Mapping[str, str], name: str, version: str) -> str | None:
    if not said.get(name):
        return None
    return f"{said[name]}@{said[version]}" if said.get(version) else said[name]


def _packages(lock: str | None) -> list[lockfile.Node]:
    if lock is None:
        return []
    try:
        return sorted(lockfile.Graph(json.loads(lock)), key=lambda node: node.name)
    except ValueError:  # not JSON, or no lock
        return []


def _commands(filename: str, record: ImageRecord) -> list[tuple[str, str]]:
    """Command lines to fetch the image and to run something in it, each with what it does."""
    name = shlex.quote(filename)
    address = url_for("api.download", filename=filename, _external=True)
    fetch = f'curl --fail -O -H "Authorization: Bearer $CIC_TOKEN" {shlex.quote(address)}'
    found = [("Fetch it with a token", fetch),
             ("Or with the command-line client", f"./cic_cli download {name}")]
    if record.sha256:
        found.append(("See that it is whole", f"echo '{record.sha256}  {filename}' | sha256sum --check"))
    launcher = "srun " if _labels(record).get(labels.MPI_NAME) else ""
    gpu = {"cuda": "--nv ", "rocm": "--rocm "}.get(_labels(record).get(labels.GPU_RUNTIME, ""), "")
    return [*found, ("Run a program in it", f"{launcher}singularity exec {gpu}{name} <program>")]


def _report(filename: str, record: ImageRecord, machine: str) -> compat.Report | None:
    if not machine or machine not in service().machines:
        return None
    return compat.check(_labels(record), machine_facts({"machine": machine}, service().machines), file=filename)
