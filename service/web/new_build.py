"""Serve the form for a new build: suggestions, errors at their fields, and what would be built."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from wtforms import BooleanField, HiddenField, SelectField, StringField

from image_builder.errors import CicError, FieldProblem, InvalidRequest, NotFound
from image_builder.plan import resolve
from image_builder.request import cpu_targets
from image_builder.request.build_request import LATEST
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.sources.own_description import parse_any_request
from service.web.builds import own_build
from service.web.forms import add_problems, options, record_audit_event
from service.web.session import service, user

MACHINE_FIELDS = ("platform", "architecture", "container_engine", "mpi", "gpu", "gpu_arch")
_PUSH = {"": None, "yes": True, "no": False}
_NAMES = {
    **{f"machine.{name}": name for name in MACHINE_FIELDS},
    "machine.name": "machine",
    "step": "step_id",
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


class BuildForm(FlaskForm):  # type: ignore[misc]
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
    web.add_url_rule("/builds/new/choices", "choices", choices)
    web.add_url_rule("/builds/new/workflows", "workflows", workflows)


def new_build() -> Any:
    form = BuildForm(data=_initial()) if request.method == "GET" else BuildForm()
    titles = {name: entry.title or name for name, entry in service().machines.items()}
    by_title = dict(sorted(titles.items(), key=lambda item: item[1].lower()))
    form.machine.choices = options({"": "Described below"} | by_title)
    form.platform.choices = list(cpu_targets.platforms())
    plan, others, status = None, [], 200
    if form.is_submitted():
        form.validate()
        try:
            asked = parse_any_request(_fields(form), machines=service().machines)
            if request.form.get("action") == "plan":
                plan = service().submission.plan(asked, user_id=user().id, is_admin=user().is_admin)
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
        others=others,
        architectures=cpu_targets.known_targets(),
        mpis=_suggestions(MPI_SUGGESTIONS, mpi_facts()["implementations"]),
        gpus=GPU_SUGGESTIONS,
        gpu_arches=sorted(gpu_facts()["products"]),
    ), status


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
    registry = resolve.open_registry(service().settings.library)
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
        start |= {key: asked.get(key) for key in ("workflow", "step_id", "version")}
        start |= {key: asked["machine"].get(key) for key in MACHINE_FIELDS}
        start["push"] = next(name for name, value in _PUSH.items() if value is asked.get("push"))
    for key in ("workflow", "step_id", "version"):
        start[key] = request.args.get(key) or start.get(key)
    entry = service().machines.get(request.args.get("machine", "").lower())
    if entry is not None:
        start |= dict.fromkeys(MACHINE_FIELDS, "") | entry.request_fields()
        start["machine"] = start["expanded"] = request.args["machine"].lower()
    return start


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
    asked |= {
        name: text
        for name in ("workflow", "step_id", "version")
        if (text := (form[name].data or "").strip())
    }
    return asked | ({"force": True} if form.force.data else {})


def _show(error: CicError, form: BuildForm) -> list[FieldProblem]:
    """Show problems at their fields, and return those that concern no field."""
    if isinstance(error, InvalidRequest):
        return add_problems(form, error.problems, _NAMES)
    if isinstance(error, NotFound) and error.field:
        problem = FieldProblem(error.field, error.message.rstrip("."), error.hint.rstrip("."))
        return add_problems(form, [problem], _NAMES)
    return [FieldProblem("", error.message, error.hint)]


def _suggestions(first: tuple[str, ...], known: Any) -> list[str]:
    return [*first, *(name for name, facts in known.items() if "last_release" not in facts)]
