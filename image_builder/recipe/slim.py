"""Decides whether a slim image, without what only building needs, is wanted and complete.

The recipe makes the full image first. From it come what Spack keeps for running the environment's
roots and what pip and scripts added, on a runtime base of the same operating system's release, with
the Debian packages that all this needs. Then the slim image is compared with the full one, where
both exist. If any of this fails, the full image is the result, and its record says why.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.errors import CicError
from image_builder.request.build_request import BuildRequest
from image_builder.sources.description import Description

PYTHON = "/usr/bin/env python3"
"""Every image has `python3`, whether the step's own files say so or not."""
FIRST_LINES_FILE = "cic/first-lines"
MAX_FIRST_LINE = 256
MAX_SHOWN = 5
MAX_ENTRY = 300
"""Longest output of the image's own programs that is read, in characters."""
MAX_COUNT = 10**6
MAX_REPORT_BYTES = 1024**2

_OF_A_CONTAINER = frozenset({"HOME", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "TERM", "_"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class SlimFailed(CicError):
    """No slim image runs what the full image does, so the full one is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Holds what the recipe's `verify.py` found to be missing."""

    missing: tuple[str, ...]
    count: int

    def require_nothing_missing(self) -> None:
        """Raise `SlimFailed` unless the slim image has everything."""
        if self.count:
            more = f", and {self.count - MAX_SHOWN} more" if self.count > MAX_SHOWN else ""
            raise SlimFailed(
                f"The slim image would lack {'; '.join(self.missing[:MAX_SHOWN])}{more}."
            )


def is_wanted(
    request: BuildRequest, description: Description | None, *, has_post_install: bool, default: bool
) -> bool:
    """Return whether a slim image is asked for: by the request, else the workflow, else the site.

    A `post_inst.sh` may count on the compilers: with one, the site's default does not apply.
    """
    asked = (
        request.slim
        if request.slim is not None
        else description.slim
        if description is not None
        else None
    )
    return (default and not has_post_install) if asked is None else asked


def incompatibility(base: BaseFacts, runtime: BaseFacts) -> str:
    """Return why what was built in `base` cannot be put on `runtime`; empty when it can."""
    if base.os_id not in ("debian", "ubuntu"):
        return f"the base image is made of {base.os_id or 'an unknown system'}, and only Debian's packages are known"
    if (base.os_id, base.os_version) != (runtime.os_id, runtime.os_version):
        return (
            f"the runtime base {runtime.reference} holds {runtime.os_id or 'an unknown system'} "
            f"{runtime.os_version}, and the base image {base.os_id} {base.os_version}"
        )
    return ""


def variables(base: BaseFacts) -> list[str]:
    """Return the base image's own environment for an `ENV` instruction.

    Spack's variables are left out, as Spack is not there any more.
    """
    return [
        f"{name}={_quoted(value)}"
        for name, value in sorted(base.variables.items())
        if _NAME.match(name)
        and name not in _OF_A_CONTAINER
        and not name.startswith("SPACK_")
        and value.isprintable()
    ]


def labels(base: BaseFacts) -> list[str]:
    """Return the base image's labels for a `LABEL` instruction, which takes single lines only."""
    return [
        f"{_quoted(name)}={_quoted(value)}"
        for name, value in sorted(base.labels.items())
        if name.isprintable() and value.isprintable()
    ]


def folder(base: BaseFacts) -> str:
    """Return where the base image's containers start, for a `WORKDIR` instruction."""
    return _quoted(base.folder if base.folder.isprintable() and base.folder else "/")


def _quoted(value: str) -> str:
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def first_lines(folder: Path) -> str:
    """Return the interpreter lines of the scripts in a step's folder.

    They change more seldom than the scripts do.
    """
    interpreters = {PYTHON}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                start = file.read(MAX_FIRST_LINE)
            if start.startswith(b"#!"):
                interpreters.add(start[2:].split(b"\n")[0].decode("utf-8", "replace").strip())
    return "".join(f"{line}\n" for line in sorted(interpreters) if line.isprintable())


def read_report(text: bytes) -> Report:
    """Return the report that `verify.py` printed. Raises `SlimFailed`."""
    try:
        content: Mapping[str, Any] = json.loads(text)
        return Report(
            missing=tuple(str(entry)[:MAX_ENTRY] for entry in content["missing"][:MAX_SHOWN]),
            count=min(int(content["count"]), MAX_COUNT),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise SlimFailed(
            f"The report on the slim image cannot be read: {str(error)[:MAX_ENTRY]}"
        ) from error
