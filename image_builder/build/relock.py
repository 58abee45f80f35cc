"""Turns what was kept of a finished build into what a build that is made again gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from image_builder.build.context import BuildContext
from image_builder.errors import BuildFailed, ErrorCode, FieldProblem, InvalidRequest
from image_builder.plan.relock import Pins, Relock
from image_builder.proof import materials
from image_builder.proof.materials import BaseImage, Materials, UnreadableMaterials
from image_builder.recipe.pins import Deb, PythonPackage
from image_builder.request.again import FIELD
from image_builder.request.build_request import BuildRequest
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.store.image_store import Images
from image_builder.store.record import is_filename

MAX_NAMED = 5


def kept_materials(store: Images, identity: str) -> Materials:
    """Return what the image of an identity was made of. Raises `InvalidRequest`."""
    text = store.document(identity, materials.FILE)
    if text is None:
        problem = "is of a build of which nothing is kept to build it again"
        hint = "it may be from before that was kept, or cleaned up: leave from_lock out"
        raise InvalidRequest([FieldProblem(FIELD, problem, hint)])
    try:
        return materials.read_materials(text)
    except UnreadableMaterials as error:
        problem = f"is of a build whose {materials.FILE} cannot be read: {error}"
        hint = "leave from_lock out to build anew"
        raise InvalidRequest([FieldProblem(FIELD, problem, hint)]) from error


def stored_materials(store: Images, name: str) -> Materials:
    """Return what a stored image was made of, by its identity or its SIF's name: without a service.

    Raises `InvalidRequest`.
    """
    record = store.by_name(name) if is_filename(name) else None
    identity = record.identity if record is not None else name
    if not store.is_known(identity):
        hint = "write the name of a SIF that is stored here, or its identity"
        raise InvalidRequest([FieldProblem(FIELD, "names no image here", hint)])
    return kept_materials(store, identity)


def of_library(request: BuildRequest, store: Images) -> Relock | None:
    """Return what a request without a service builds again; None for one that names no image."""
    if not isinstance(request.from_lock, str):
        return None
    return relock(stored_materials(store, request.from_lock))


def relock(kept: Materials) -> Relock:
    """Return what a build gets to be made again. Raises `InvalidRequest` for a base unpinned."""
    return Relock(
        lock=json.dumps(kept.spack_lock) if kept.spack_lock else "",
        is_foreign=kept.is_lock_foreign,
        debs=kept.debian.added,
        later_debs=kept.debian.later,
        python=kept.python,
        pins=Pins(
            identity=kept.identity,
            lock_digest=kept.lock_digest,
            image_id=kept.image_id,
            tree=kept.step.tree,
            commit=kept.step.commit,
            catalogue=PinnedCatalogue(**kept.catalogue.model_dump()),
            base=_pinned(kept.base),
            runtime=None if kept.runtime is None else _pinned(kept.runtime),
            branch_commits=kept.branch_commits,
        ),
    )


def _pinned(image: BaseImage) -> tuple[str, str]:
    if image.digest is None:
        problem = f"is of a build on {image.reference}, whose digest was not known"
        hint = "leave from_lock out to build anew"
        raise InvalidRequest([FieldProblem(FIELD, problem, hint)])
    return image.reference, image.digest


def require_same(context: BuildContext, made: Materials) -> None:
    """Refuse an image whose packages are not those that its build was to repeat.

    What a script of the step fetches by itself is not compared. Raises `BuildFailed`.
    """
    relocked = context.inputs.relock
    if relocked is None or relocked.pins is None:
        return
    wanted, got = _named(relocked.debs, relocked.python), _named(made.debian.added, made.python)
    others = [
        f"{name} is {got.get(name) or 'missing'}, not {wanted.get(name) or 'there'}"
        for name in sorted(wanted.keys() | got.keys())
        if wanted.get(name) != got.get(name)
    ]
    if others:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        raise BuildFailed(
            f"What apt and pip installed is not what it was: {', '.join(others[:MAX_NAMED])}{more}.",
            code=ErrorCode.CONFLICT,
            step="from_lock",
            hint="Leave from_lock out to build with what there is now.",
        )


def _named(debs: tuple[Deb, ...], python: tuple[PythonPackage, ...]) -> Mapping[str, str]:
    """Return packages by what names them, with all that tells one of them from another."""
    named = {f"Debian's {one.name}:{one.architecture}": _deb(one) for one in debs}
    return named | {f"Python's {one.project}": _python(one) for one in python}


def _deb(one: Deb) -> str:
    return one.version + (f" with sha256 {one.sha256[:12]}" if one.sha256 else "")


def _python(one: PythonPackage) -> str:
    exact: Any = one.sha256 or one.commit
    return one.version + (f" with {exact[:12]}" if exact else "")
