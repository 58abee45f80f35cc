"""Hold the form for a new build: what is typed becomes a request, and problems get to their fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flask_wtf import FlaskForm
from wtforms import BooleanField, FileField, HiddenField, SelectField, StringField, TextAreaField

from image_builder.errors import BadDescription, CicError, FieldProblem, InvalidRequest, NotFound
from image_builder.request.parsing import OWN_FIELDS
from image_builder.sources import safe_yaml
from image_builder.sources.own_description import canonical_text
from service.web.forms import add_problems, options

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
PUSH = {"": None, "yes": True, "no": False}
_NAMES = {
    **{f"machine.{name}": name for name in MACHINE_FIELDS},
    "machine.name": "machine",
    "step": "step_id",
    "folder": "archive",
}


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


def way_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an earlier request's image came from, as the form shows it."""
    if asked.get("description") is not None:
        return {"what": OWN, "description": canonical_text(asked["description"])}
    if asked.get("packages") is not None:
        return {"what": OWN, "packages": "\n".join(map(str, asked["packages"]))}
    if asked.get("folder") is not None:
        return {"what": FOLDER}
    return {"what": REPOSITORY if asked.get("repository") else REGISTRY}


def fields_of(form: BuildForm) -> dict[str, Any]:
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
    asked: dict[str, Any] = {"machine": machine, "push": PUSH.get(form.push.data or "")}
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


def show_problems(error: CicError, form: BuildForm) -> list[FieldProblem]:
    """Show problems at their fields, and return those that concern no field."""
    if isinstance(error, InvalidRequest):
        return add_problems(form, _at_their_fields(error.problems), _NAMES)
    if isinstance(error, NotFound) and error.field:
        problem = FieldProblem(error.field, error.message.rstrip("."), error.hint.rstrip("."))
        return add_problems(form, [problem], _NAMES)
    return [FieldProblem("", error.message, error.hint)]


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
