"""Reads and checks a step's description, `eflows4hpc.yaml`, entry by entry. Pure.

It is not yet compared with a machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from image_builder.request import cpu_targets
from image_builder.sources import spack_section
from image_builder.sources.checking import Check
from image_builder.sources.entries import apt_problem, pip_problem, smoke_problem
from image_builder.sources.safe_yaml import Document, load

KEYS = ("apt", "pip", "spack", "smoke", "slim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Holds what a step says it needs.

    Without `pip` (None), the step's `requirements.txt` counts. `spack` has only what may be passed
    on to Spack; `document` says where its parts are in the file.
    """

    file: str
    text: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] | None = None
    spack: Mapping[str, Any] | None = None
    smoke: tuple[str, ...] | None = None
    slim: bool | None = None
    warnings: tuple[str, ...] = ()
    document: Document | None = None

    def line(self, *path: str | int) -> int | None:
        """Return the line of a part of the file, such as `"spack", "specs", 0`."""
        return None if self.document is None else self.document.line(path)


def parse_description(text: str, file: str) -> Description:
    """Return the description in `text`; `file` is its name in the step's folder.

    Raises `BadDescription` with every wrong entry, its line, and what to write instead.
    """
    document = spack_section.with_single_colons(load(text, file), file)
    return check_description(Check(document, file), text)


def check_description(check: Check, text: str) -> Description:
    """Return the description in a document of this text, unless `check` finds problems in it."""
    document, file = check.document, check.file
    fields = check.mapping((), document.value)
    _check_keys(check, fields)
    smoke = check.entries(("smoke",), fields.get("smoke"), smoke_problem)
    description = Description(
        file=file,
        text=text,
        document=document,
        apt=check.entries(("apt",), fields.get("apt"), apt_problem) or (),
        pip=check.entries(("pip",), fields.get("pip"), pip_problem),
        spack=spack_section.checked(check, fields.get("spack")),
        smoke=smoke or None,
        slim=check.flag(("slim",), fields.get("slim")),
        warnings=tuple(check.warnings),
    )
    check.raise_problems()
    return description


def _check_keys(check: Check, fields: Mapping[str, Any]) -> None:
    """Refuse keys that are nearly known or belong elsewhere, and warn of others."""
    for key in fields:
        if key in KEYS:
            continue
        close = cpu_targets.nearest(key, KEYS, 1)
        if key == "env":
            check.wrong((key,), "is not a known key", "Write spack: in its place.")
        elif key in spack_section.KEYS or key in spack_section.WHY_REFUSED:
            check.wrong((key,), "is not allowed here", f"Put {key} below spack:.")
        elif close:
            check.wrong((key,), "is not a known key", f"Did you mean {close[0]}?")
        else:
            check.warn(
                (key,),
                f"{key[:60]!r} is not a known key and was not used; known are {', '.join(KEYS)}",
            )
