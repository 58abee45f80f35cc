"""Names the image of a request. Pure.

A name says what was asked for: `<prefix><workflow>_<step>_<architecture>_<mpi>_<gpu>:<version>`,
and the SIF is `..._v_<version>.sif`. It is always a valid image reference and file name. If the
mapping loses something, so that two requests could get one name, `-<8 hex digits of the request>`
is appended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

from image_builder.plan.digest import json_digest
from image_builder.request import cpu_targets
from image_builder.request.build_request import BuildRequest
from image_builder.sources.own_description import own_text

MAX_PART = 32
MAX_TAG = 64
MAX_OWNER, MAX_PRIVATE_TAG = 20, 24
"""Limits with which an owner, five parts, digests and a tag fit a file name of 255 bytes."""

_SEPARATOR_RUN = re.compile(r"[._-]{2,}")
_OWNER_END = "---"
"""What ends the owner in a private name; `_part` leaves no such run in any other name."""
_LIKE_A_DIGEST = re.compile(r"-[0-9a-f]{8}\Z")
_SIMPLE_SPEC = re.compile(
    r"(?P<name>[a-z][a-z0-9]*(?:-[a-z][a-z0-9]*)*)(?:@(?P<version>[0-9][0-9.]*[0-9]|[0-9]))?\Z"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageName:
    """Holds the names of one image: its reference, and its SIF's file name."""

    image_id: str
    filename: str


def image_name(request: BuildRequest, *, prefix: str = "", owner: str | None = None) -> ImageName:
    """Return the names of the image that `request` asks for, below the registry's `prefix`.

    The names of a private image begin with its `owner`, and are no other user's nor the site's.
    """
    machine = request.machine
    parts = [
        _part(request.workflow_name),
        _part(request.step_name),
        _part(machine.architecture or machine.target.name),
        _spec_part(machine.mpi, "nompi"),
        _spec_part(machine.gpu, "nogpu"),
    ]
    name = "_".join(text for text, _ in parts)
    tag, tag_is_exact = _tag(request.version, MAX_TAG if owner is None else MAX_PRIVATE_TAG)
    exact = (
        all(is_exact for _, is_exact in parts) and tag_is_exact and not _says_too_little(request)
    )
    if not exact or _LIKE_A_DIGEST.search(name):
        name += f"-{request_digest(request)[:8]}"
    if owner is not None:
        name = f"{_owner_part(owner)}{_OWNER_END}{name}"
    return ImageName(image_id=f"{prefix.lower()}{name}:{tag}", filename=f"{name}_v_{tag}.sif")


def is_private_name(filename: str) -> bool:
    """Return whether a SIF's name is that of a private image."""
    return _OWNER_END in filename


def without_owner(image_id: str) -> str:
    """Return an image's name as documents carry it that several owners of one image share."""
    folder, slash, name = image_id.rpartition("/")
    return f"{folder}{slash}{name.rpartition(_OWNER_END)[2]}"


def request_digest(request: BuildRequest) -> str:
    """Return the SHA-256 over everything that makes two requests different images.

    How it is built (`force`, `push`) is not part of it, nor who may see the image, nor the form in
    which it is handed out, nor in which of two forms a description is written.
    """
    fields = request.model_dump(
        mode="json",
        exclude={
            "force": True,
            "push": True,
            "visibility": True,
            "machine": {"container_engine"},
        },
    )
    if request.is_described:
        fields.pop("packages", None)
        fields["description"] = own_text(request)
    return json_digest(fields)


def _says_too_little(request: BuildRequest) -> bool:
    """Return whether two requests that differ could have the same parts.

    `a_b`/`c` and `a`/`b_c` both give `a_b_c`: a step with `_` in it gets the digest. So does an
    architecture that ends in another one's name: the step `mic` for `knl` and some step for
    `mic_knl`. What is built again does not take the name of what was built since.
    """
    return bool(
        "_" in request.step_name
        or _ends_in_another(request.machine.architecture or "")
        or request.machine.gpu_arch
        or request.slim is not None
        or request.path
        or request.is_own
        or request.from_lock is not None
    )


def _ends_in_another(architecture: str) -> bool:
    words = architecture.split("_")
    return any(cpu_targets.is_known("_".join(words[start:])) for start in range(1, len(words)))


def _part(text: str) -> tuple[str, bool]:
    """Return a component of a reference, and whether the text can be read back from it."""
    lowered = re.sub(r"[^a-z0-9._-]", "-", text.lower())
    component = _SEPARATOR_RUN.sub("-", lowered).strip("._-")[:MAX_PART].strip("._-") or "x"
    return component, component == text


def _spec_part(spec: str | None, absent: str) -> tuple[str, bool]:
    """Return `openmpi_4` for `openmpi@4`: exact for a plain name and version, else shortened.

    A shortened one contains no `_`: read from the end, a name divides into its parts in one way.
    """
    if spec is None:
        return absent, True
    simple = _SIMPLE_SPEC.match(spec)
    if simple and len(spec) <= MAX_PART:
        return simple["name"] + (f"_{simple['version']}" if simple["version"] else ""), True
    return _part(spec)[0].replace("_", "-"), False


def _owner_part(owner: str) -> str:
    """Return a part of a name that is this user's alone; users' names differ in more than case."""
    part, is_exact = _part(owner.lower())
    if is_exact and len(part) <= MAX_OWNER and not _LIKE_A_DIGEST.search(part):
        return part
    digest = hashlib.sha256(owner.lower().encode()).hexdigest()[:8]
    return f"{part[:MAX_OWNER].strip('._-')}-{digest}"


def _tag(version: str, max_length: int) -> tuple[str, bool]:
    tag = re.sub(r"[^a-z0-9._-]", "-", version.lower()).lstrip(".-")[:max_length] or "x"
    is_exact = tag == version and "_v_" not in f"_{tag}"  # _v_ parts name and tag in a file name
    return tag, is_exact
