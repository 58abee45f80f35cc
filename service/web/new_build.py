"""Serve the page of the form for a new build: suggestions, and what would be built."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.datastructures import FileStorage

from image_builder.errors import CicError, FieldProblem, InvalidRequest, with_hint
from image_builder.pipeline import Plan
from image_builder.plan import steps
from image_builder.request import cpu_targets
from image_builder.request.build_request import LATEST, BuildRequest
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.sources.own_description import parse_any_request
from service.api.folders import with_folder
from service.errors import TooManyRequests
from service.web.account import git_hosts
from service.web.build_form import (
    FIELDS_OF,
    FOLDER,
    MACHINE_FIELDS,
    PUSH,
    REPOSITORY,
    WAYS,
    BuildForm,
    fields_of,
    show_problems,
    way_of,
)
from service.web.builds import own_build
from service.web.forms import options, record_audit_event
from service.web.session import service, user

MPI_SUGGESTIONS = ("openmpi@4", "openmpi@5", "mpich@3.4", "mpich@4")
GPU_SUGGESTIONS = ("cuda@11", "cuda@12", "rocm@6")


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/builds/new", "new_build", new_build, methods=["GET", "POST"])
    web.add_url_rule("/builds/new/preview", "preview", preview, methods=["POST"])
    web.add_url_rule("/builds/new/choices", "choices", choices)
    web.add_url_rule("/builds/new/workflows", "workflows", workflows)


def new_build() -> Any:
    form = _with_choices(BuildForm(data=_initial()) if request.method == "GET" else BuildForm())
    plan, target, others, status = None, "", [], 200
    if form.is_submitted():
        form.validate()
        try:
            asked = _asked(form)
            if request.form.get("action") == "plan":
                plan, target = _planned(asked), asked.machine.target.name
            else:
                build_id = service().submission.submit(
                    asked, user_id=user().id, is_admin=user().is_admin
                )
                record_audit_event("build", build_id)
                return redirect(url_for("web.build", build_id=build_id))
        except CicError as error:
            others, status = show_problems(error, form), 400
    return render_template(
        "new_build.html",
        form=form,
        plan=plan,
        target=target,
        others=others,
        architectures=cpu_targets.known_targets(),
        mpis=_suggestions(MPI_SUGGESTIONS, mpi_facts()["implementations"]),
        gpus=GPU_SUGGESTIONS,
        gpu_arches=sorted(gpu_facts()["products"]),
    ), status


def preview() -> Response:
    """Return what would be built from what is typed so far, or what is wrong at which field.

    A folder is not looked at: it would be sent and kept with every letter.
    """
    form = _with_choices(BuildForm())
    html, others = "", []
    if not form.validate():
        others = [FieldProblem("", "This form is out of date.", "Load the page again.")]
    elif form.what.data != FOLDER:
        try:
            asked = _asked(form)
            plan = _planned(asked)
            html = render_template("plan.html", plan=plan, target=asked.machine.target.name)
        except TooManyRequests:
            raise  # the script asks again later
        except CicError as error:
            others = show_problems(error, form)
    wrong = {field.name: " ".join(field.errors) for field in form if field.errors}
    said = [
        f"{problem.field}: {with_hint(problem.problem, problem.hint)}".removeprefix(": ")
        for problem in others
    ]
    return jsonify({"html": html, "wrong": wrong, "others": said})


def _with_choices(form: BuildForm) -> BuildForm:
    """Return the form with what its lists offer."""
    titles = {name: entry.title or name for name, entry in service().machines.items()}
    by_title = dict(sorted(titles.items(), key=lambda item: item[1].lower()))
    form.machine.choices = options({"": "Described below"} | by_title)
    form.what.choices = options(
        {way: title for way, title in WAYS.items() if way != REPOSITORY or git_hosts()}
    )
    form.platform.choices = list(cpu_targets.platforms())
    return form


def _planned(asked: BuildRequest) -> Plan:
    return service().submission.plan(asked, user_id=user().id, is_admin=user().is_admin)


def _asked(form: BuildForm) -> BuildRequest:
    """Return the request that the form holds, whose folder is unpacked if it comes with one."""
    fields = fields_of(form)
    if form.what.data != FOLDER:
        return parse_any_request(fields, machines=service().machines)
    if not isinstance(form.archive.data, FileStorage) or not form.archive.data.filename:
        raise InvalidRequest([FieldProblem("folder", "is missing", "choose a tar archive")])
    return with_folder(fields, form.archive.data.stream, user().id)


def choices() -> Response:
    """Return what the form's script needs of machines and architectures."""
    known = [
        {"name": name, "platform": target["platform"]}
        for target in cpu_targets.known_targets()
        for name in (target["name"], *target["aliases"])
    ]
    machines = {name: entry.request_fields() for name, entry in service().machines.items()}
    return jsonify({"architectures": known, "machines": machines})


def workflows() -> Any:
    """Return the registry's workflows, or the steps or the versions of one.

    `workflow` asks for its steps, `versions` for what a version may be.
    """
    registry = steps.open_registry(service().settings.library)
    version = request.args.get("version") or LATEST
    try:
        if "versions" in request.args:
            return jsonify({"names": [LATEST, *registry.versions()]})
        if request.args.get("workflow"):
            return jsonify({"names": list(registry.steps(request.args["workflow"], version))})
        return jsonify({"names": list(registry.workflows(version))})
    except CicError as error:
        return jsonify({"names": [], "problem": error.message})


def _initial() -> dict[str, Any]:
    """What the form begins with: an earlier request, a machine, or nothing much."""
    start: dict[str, Any] = {
        "version": LATEST,
        "platform": cpu_targets.platforms()[0],
        "container_engine": "singularity",
    }
    if earlier := request.args.get("from"):
        asked = own_build(earlier).request
        start |= {key: asked.get(key) for names in FIELDS_OF.values() for key in names}
        start |= way_of(asked)
        start |= {key: asked["machine"].get(key) for key in MACHINE_FIELDS}
        start["push"] = next(name for name, value in PUSH.items() if value is asked.get("push"))
    for key in ("workflow", "step_id", "version"):
        start[key] = request.args.get(key) or start.get(key)
    entry = service().machines.get(request.args.get("machine", "").lower())
    if entry is not None:
        start |= dict.fromkeys(MACHINE_FIELDS, "") | entry.request_fields()
        start["machine"] = start["expanded"] = request.args["machine"].lower()
    return start


def _suggestions(first: tuple[str, ...], known: Any) -> list[str]:
    return [*first, *(name for name, facts in known.items() if "last_release" not in facts)]
