"""Serve the form for a new build: suggestions, errors at their fields, and what would be built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from werkzeug.datastructures import FileStorage
from wtforms import BooleanField, FileField, HiddenField, SelectField, StringField, TextAreaField

from image_builder.errors import (
    BadDescription,
    CicError,
    FieldProblem,
    InvalidRequest,
    NotFound,
    with_hint,
)
from image_builder.pipeline import Plan
from image_builder.plan import steps
from image_builder.request import cpu_targets
from image_builder.request.build_request import LATEST, BuildRequest
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.request.parsing import OWN_FIELDS
from image_builder.sources import safe_yaml
from image_builder.sources.own_description import canonical_text, parse_any_request
from service.api.folders import with_folder
from service.errors import TooManyRequests
from service.web.account import git_hosts
from service.web.builds import own_build
from service.web.forms import add_problems, options, record_audit_event
from service.web.session import service, user

MACHINE_FIELDS = ("platform", "architecture", "container_engine", "mpi", "gpu", "gpu_arch")
REGISTRY, OWN, FOLDER, REPOSITORY = "registry", "own", "folder", "repository"
WAYS = {
    REGISTRY: "The workflow registry",
    OWN: "Packages, or a description of mine",
    FOLDER: "A folder of mine",
    REPOSITORY: "A repository of mine",
}
FIELDS_OF = {
    REGISTRY: ("workflow", "step_id", "version"),
    OWN: ("name",),
    FOLDER: ("name",),
    REPOSITORY: ("repository", "path", "version", "name"),
}
"""The texts that a request of each kind has."""
_PUSH = {"": None, "yes": True, "no": False}
_NAMES = {
    **{f"machine.{name}": name for name in MACHINE_FIELDS},
    "machine.name": "machine",
    "step": "step_id",
    "folder": "archive",
}
MPI_SUGGESTIONS = ("openmpi@4", "openmpi@5", "mpich@3.4", "mpich@4")
GPU_SUGGESTIONS = ("cuda@11", "cuda@12", "rocm@6")


def _listed(name: str, **more: Any) -> dict[str, Any]:
    return {
        "list": f"{name}-list",
        "autocomplete": "off",
        "autocapitalize": "none",
        "spellcheck": "false",
        **more,
    }


def _plain() -> dict[str, Any]:
    return {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}


class BuildForm(FlaskForm):  # type: ignore[misc]
    what = SelectField("Where it comes from", validate_choice=False, default=REGISTRY)
    packages = TextAreaField(
        "Packages",
        render_kw={"rows": 4, "spellcheck": "false", "autocapitalize": "none"},
        description="Spack specs, one on a line, such as hdf5+mpi.",
    )
    description = TextAreaField(
        "Or a description",
        render_kw={"rows": 8, "spellcheck": "false", "autocapitalize": "none"},
        description="What eflows4hpc.yaml would hold, in place of packages.",
    )
    archive = FileField(
        "Folder",
        description="A tar archive of the step's folder, plain or with gzip, of less than 1 MiB. "
        "For larger ones there is cic_cli build --path.",
    )
    repository = StringField(
        "Repository",
        render_kw=_plain(),
        description="Such as https://git.example.org/me/flows.git.",
    )
    path = StringField(
        "Folder in it", render_kw=_plain(), description="Empty: the whole repository."
    )
    name = StringField(
        "Name", render_kw=_plain(), description="What the image is called: solver, or flows/solver."
    )
    workflow = StringField(
        "Workflow", render_kw=_listed("workflow"), description="A folder of the workflow registry."
    )
    step_id = StringField(
        "Step", render_kw=_listed("step_id"), description="A folder in the workflow's."
    )
    version = StringField(
        "Version",
        render_kw=_listed("version"),
        description="A branch, tag or commit; latest is the default branch.",
    )
    machine = SelectField("Machine", validate_choice=False)
    expanded = HiddenField()
    platform = SelectField("Platform", validate_choice=False)
    architecture = StringField(
        "Architecture",
        render_kw=_listed("architecture"),
        description="Such as zen2 or rome; empty: any machine of the platform.",
    )
    container_engine = SelectField(
        "Container engine",
        choices=options(
            {"singularity": "Singularity or Apptainer (SIF)", "docker": "Docker (an image)"}
        ),
        validate_choice=False,
    )
    mpi = StringField(
        "MPI",
        render_kw=_listed("mpi"),
        description="What the machine has, such as openmpi@4. Empty: none.",
    )
    gpu = StringField(
        "GPU runtime", render_kw=_listed("gpu"), description="Such as cuda@12. Empty: none."
    )
    gpu_arch = StringField(
        "GPU architecture", render_kw=_listed("gpu_arch"), description="Such as a100 or gfx90a."
    )
    push = SelectField(
        "Push to the image registry",
        choices=options({"": "If the service has one", "yes": "Yes", "no": "No"}),
        validate_choice=False,
    )
    force = BooleanField("Build anew, even if the same image exists")


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
            others, status = _show(error, form), 400
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
            others = _show(error, form)
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
    fields = _fields(form)
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
        start |= _way_of(asked)
        start |= {key: asked["machine"].get(key) for key in MACHINE_FIELDS}
        start["push"] = next(name for name, value in _PUSH.items() if value is asked.get("push"))
    for key in ("workflow", "step_id", "version"):
        start[key] = request.args.get(key) or start.get(key)
    entry = service().machines.get(request.args.get("machine", "").lower())
    if entry is not None:
        start |= dict.fromkeys(MACHINE_FIELDS, "") | entry.request_fields()
        start["machine"] = start["expanded"] = request.args["machine"].lower()
    return start


def _way_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an earlier request's image came from, as the form shows it."""
    if asked.get("description") is not None:
        return {"what": OWN, "description": canonical_text(asked["description"])}
    if asked.get("packages") is not None:
        return {"what": OWN, "packages": "\n".join(map(str, asked["packages"]))}
    if asked.get("folder") is not None:
        return {"what": FOLDER}
    return {"what": REPOSITORY if asked.get("repository") else REGISTRY}


def _fields(form: BuildForm) -> dict[str, Any]:
    """Return the form's input as the fields of a request.

    A machine whose fields the script has filled in is taken as it is.
    """
    typed = {name: (form[name].data or "").strip() for name in MACHINE_FIELDS}
    machine: dict[str, Any] = {name: text or None for name, text in typed.items()}
    if form.machine.data and form.machine.data != form.expanded.data:
        machine = {
            "name": form.machine.data,
            **{
                name: text
                for name, text in typed.items()
                if text and name not in ("platform", "container_engine")
            },
        }
    asked: dict[str, Any] = {"machine": machine, "push": _PUSH.get(form.push.data or "")}
    way = form.what.data if form.what.data in FIELDS_OF else REGISTRY
    asked |= {name: text for name in FIELDS_OF[way] if (text := (form[name].data or "").strip())}
    if way == OWN:
        asked |= _described(form)
    return asked | ({"force": True} if form.force.data else {})


def _described(form: BuildForm) -> dict[str, Any]:
    """Return the description that was typed, or the packages. Raises `InvalidRequest`."""
    lines = [line.strip() for line in (form.packages.data or "").splitlines()]
    packages = [line for line in lines if line]
    text = form.description.data or ""
    if not text.strip():
        return {"packages": packages}
    try:
        description = safe_yaml.load(text, "description").value
    except BadDescription as error:
        raise InvalidRequest([FieldProblem("description", error.message, error.hint)]) from None
    return {"description": description} | ({"packages": packages} if packages else {})


def _at_their_fields(problems: Iterable[FieldProblem]) -> list[FieldProblem]:
    """Return the problems with the form's fields; what is inside one goes before the problem."""
    shown = []
    for problem in problems:
        outer, _, inner = re.sub(r"[.\[]", "\0", problem.field, count=1).partition("\0")
        if outer in OWN_FIELDS and inner:
            place = inner if problem.field[len(outer)] == "." else f"entry {inner.replace(']', '')}"
            problem = FieldProblem(outer, f"{place}: {problem.problem}", problem.hint)
        shown.append(problem)
    return shown


def _show(error: CicError, form: BuildForm) -> list[FieldProblem]:
    """Show problems at their fields, and return those that concern no field."""
    if isinstance(error, InvalidRequest):
        return add_problems(form, _at_their_fields(error.problems), _NAMES)
    if isinstance(error, NotFound) and error.field:
        problem = FieldProblem(error.field, error.message.rstrip("."), error.hint.rstrip("."))
        return add_problems(form, [problem], _NAMES)
    return [FieldProblem("", error.message, error.hint)]


def _suggestions(first: tuple[str, ...], known: Any) -> list[str]:
    return [*first, *(name for name, facts in known.items() if "last_release" not in facts)]
