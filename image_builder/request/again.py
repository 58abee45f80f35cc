"""Completes a request that names a finished build with what that build's request had. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request.build_request import HOW_AND_WHENCE, LOCK_DIGEST, BuildRequest, short

FIELD = "from_lock"
KeptFields = Callable[[str], Mapping[str, Any]]
"""Returns the fields of a finished build's request, by its name; raises `InvalidRequest`."""
Parse = Callable[[Mapping[str, Any], bool], BuildRequest]
"""Returns the request of some fields, and of a local path if that is allowed."""
HOW = ("force", "push")
_MAY_DIFFER = frozenset({FIELD, "machine"}) | HOW_AND_WHENCE
"""Fields that change nothing in the image; machines are compared part by part.

Where a step's folder comes from may differ: it is compared as a whole when it is pinned.
"""


def names_build(fields: Mapping[str, Any]) -> bool:
    """Return whether a request names a finished build, and so may leave out all else."""
    return isinstance(fields.get(FIELD), str)


def parse_again(fields: Mapping[str, Any], kept: KeptFields | None, parse: Parse) -> BuildRequest:
    """Return the request for what a finished build made; what is given has to agree with it.

    Raises `InvalidRequest` with every field that does not.
    """
    name = str(fields[FIELD])
    if kept is None or name.startswith(LOCK_DIGEST):
        hint = "write a spack.lock in its place, or leave it out"
        raise InvalidRequest([FieldProblem(FIELD, f"{short(name)} names no build here", hint)])
    earlier = {key: value for key, value in kept(name).items() if key not in (FIELD, *HOW)}
    given = {key: value for key, value in fields.items() if key != FIELD and value is not None}
    whole = {**earlier, **given}
    if isinstance(given.get("machine"), Mapping):
        whole["machine"] = {**earlier["machine"], **given["machine"]}
    is_of_path = earlier.get("path") is not None
    asked, before = parse(whole, is_of_path), parse(earlier, is_of_path)
    if problems := list(_differences(asked, before)):
        raise InvalidRequest(problems)
    return asked.model_copy(update={FIELD: name})


def _differences(asked: BuildRequest, before: BuildRequest) -> Iterator[FieldProblem]:
    """Yield what a request says otherwise than the build that it is to repeat."""
    hint = "leave it out, or leave from_lock out to build anew"
    one, other = asked.machine, before.machine
    for name, wanted, had in (
        ("platform", one.platform, other.platform),
        ("architecture", one.target.name, other.target.name),
        ("mpi", one.mpi, other.mpi),
        ("gpu", one.gpu, other.gpu),
        ("gpu_arch", one.gpu_arch, other.gpu_arch),
    ):
        if wanted != had:
            problem = f"is {wanted or 'none'}, and that build was for {had or 'none'}"
            yield FieldProblem(f"machine.{name}", problem, hint)
    for name in BuildRequest.model_fields:
        if name not in _MAY_DIFFER and getattr(asked, name) != getattr(before, name):
            yield FieldProblem(name, "is not what that build was made of", hint)
