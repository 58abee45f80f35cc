"""Show a plan, and in what it differs from an earlier plan, a build or an image."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from rich.text import Text

from cic_client import models
from cic_client.asking import read_bounded
from cic_client.client import Client
from cic_client.errors import BadInput
from cic_client.screen import Screen
from cic_client.tables import show_facts, show_warnings, words

MAX_PLAN_BYTES = 64 * 1024**2
MAX_COMPARED_LINES = 20_000
"""Of texts with more lines, only whether they are the same is said: comparing takes too long."""
_BUILD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_STYLES = {"+": "green", "-": "red", "@": "cyan"}
DOCUMENTS = {
    "description_yaml": "description.yaml",
    "spack_yaml": "spack.yaml",
    "dockerfile": "Dockerfile",
}
"""What the texts of a plan are called as documents of an image."""


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What a plan is compared with. `warnings` is None where they are not kept."""

    name: str
    identity: str | None
    texts: Mapping[str, str]
    warnings: tuple[str, ...] | None


def earlier(client: Client, name: str) -> Earlier:
    """Return what a build, an image or a file holds. Raises `BadInput`."""
    if Path(name).is_file():
        return _of_file(name)
    if _BUILD_ID.fullmatch(name):
        build = client.status(name)
        if build.filename is None or build.status != models.FINISHED:
            raise BadInput(
                f"The build {name} has left no image: give one that has, or a file that "
                "`cic plan --json` printed."
            )
        return dataclasses.replace(
            _of_image(client, build.filename, build.identity),
            name=f"build {name}",
            warnings=tuple(build.warnings),
        )
    if name.endswith(".sif"):
        return _of_image(client, name, None)
    raise BadInput(f"{name} is no file, no build's id, and no image's name, which ends with .sif.")


def show(screen: Screen, plan: models.Plan) -> None:
    """Show what would be built."""
    if screen.answer(plan):
        return
    show_facts(screen, *_facts(plan), ("identity", plan.identity or "not known"))
    show_warnings(screen, plan.warnings)
    for name in ("description_yaml", "spack_yaml"):
        if text := getattr(plan, name):
            _head(screen, DOCUMENTS[name])
            screen.out.print(words(text.rstrip()))


def show_difference(screen: Screen, before: Earlier, plan: models.Plan) -> None:
    """Show in what a plan differs from what was before."""
    is_same = plan.identity is not None and plan.identity == before.identity
    show_facts(
        screen,
        *_facts(plan),
        ("against", before.name),
        ("identity", f"{plan.identity or 'not known'}{' (the same)' if is_same else ''}"),
        ("before", None if is_same else before.identity or "not known"),
    )
    if before.warnings is not None:
        _show_lines(screen, "warnings", list(before.warnings), plan.warnings)
    elif plan.warnings:
        show_warnings(screen, plan.warnings)
    for field, document in DOCUMENTS.items():
        now = getattr(plan, field) or ""
        if field == "description_yaml" and not (now and before.texts.get(field)):
            continue  # a plan has it of an own description alone, an image always
        _show_lines(screen, document, before.texts.get(field, "").splitlines(), now.splitlines())


def _of_file(path: str) -> Earlier:
    try:
        plan = models.Plan.model_validate_json(read_bounded(path, MAX_PLAN_BYTES))
    except ValidationError:
        raise BadInput(f"{path} is no plan: `cic plan --json` prints one.") from None
    texts = {field: getattr(plan, field) or "" for field in DOCUMENTS}
    return Earlier(path, plan.identity, texts, tuple(plan.warnings))


def _of_image(client: Client, filename: str, identity: str | None) -> Earlier:
    image = client.image(filename)
    if identity not in (None, image.identity):
        raise BadInput(
            f"{filename} is of another build by now, and what this one was made of is not there "
            "any more."
        )
    texts = {
        field: client.document_of(filename, document)
        for field, document in DOCUMENTS.items()
        if document in image.documents
    }
    return Earlier(filename, image.identity, texts, None)


def _facts(plan: models.Plan) -> tuple[tuple[str, str | None], ...]:
    return ("image", plan.image_id), ("file", plan.filename)


def _show_lines(screen: Screen, name: str, before: list[str], now: list[str]) -> None:
    if before == now:
        return
    if len(before) + len(now) > MAX_COMPARED_LINES:
        screen.out.print(words(f"\n{name} differs: {len(before)} lines before, {len(now)} now"))
        return
    _head(screen, name)
    for line in difflib.unified_diff(before, now, "before", "now", lineterm=""):
        screen.out.print(words(line, _STYLES.get(line[:1], "")))


def _head(screen: Screen, name: str) -> None:
    screen.out.print(Text(f"\n{name}", style="bold"))
