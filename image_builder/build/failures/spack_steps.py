"""Reads what Spack 1.2 and newer say of an install that failed. Pure.

They install several packages at once, and write a line for each step:

[ ] 5no4vnu fftw@3.3.10 build (12s)
[x] 5no4vnu fftw@3.3.10 failed: /tmp/root/spack-stage/spack-stage-fftw-….log (14s)
-- lines 40 to 65 --
  …        of the package's own log, and with `> ` what Spack takes for an error or a warning
==> Error: The following packages failed to install:
fftw@3.3.10 …: /tmp/root/spack-stage/spack-stage-fftw-….log
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from image_builder.build.failures.excerpts import first_match
from image_builder.spack.prefixes import NAME

FETCHING = ("staging", "fetching")

_FAILED = re.compile(rf"\[x\] [a-z0-9]{{7}} (?P<package>{NAME})@\S+ failed\b")
_LIST = "==> Error: The following packages failed to install:"
_LISTED = re.compile(rf"(?P<package>{NAME})@")
STEP = re.compile(
    rf"\[ \] [a-z0-9]{{7}} (?P<package>{NAME})@\S+ (?P<phase>[a-z][\w -]*?)(?::? [\d(]|:|\Z)"
)
_COMMAND = re.compile(r"Command exited with status -?\d+:")
_MARKED = re.compile(r"> (?P<text>.*)\Z")
_TELLING = re.compile(
    r"error|undefined reference|not found|No such file|cannot|failed|denied", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedPackage:
    """Describes the first package that failed.

    `log` is what Spack shows of its own log, `marked` the lines of it that Spack takes for errors
    or warnings, `others` the packages that failed as well.
    """

    package: str
    phase: str
    log: tuple[str, ...]
    marked: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Return the line that says what went wrong: a marked one, else the last of the log."""
        said = [line for line in self._of_programs() if line.strip() and line[:4] != "==> "]
        telling = [line for line in self.marked if _TELLING.search(line)]
        own = [
            line for line in telling if not re.match(r"\s*(?:make|gmake|ninja)(?:\[\d+\])?: ", line)
        ]
        return (own or telling or said[-1:] or ["its process ended without a word"])[0].strip()

    def _of_programs(self) -> tuple[str, ...]:
        """Return the log up to where Spack says which command failed."""
        end = next((n for n, line in enumerate(self.log) if _COMMAND.match(line)), len(self.log))
        return self.log[:end]


def failed_package(lines: Sequence[str]) -> FailedPackage | None:
    """Return the package that failed, or None where the lines are not those of this installer."""
    places = [n for n, line in enumerate(lines) if _FAILED.search(line)]
    listed = next((n for n, line in enumerate(lines) if line.startswith(_LIST)), None)
    if not places and listed is None:
        return None
    names = [match["package"] for n in places if (match := _FAILED.search(lines[n]))]
    if not names and listed is not None:  # the beginning of a long log is missing
        match = first_match(_LISTED, lines[listed + 1 :][:1], groups=True)
        names = [match["package"]] if match else [""]
    log = lines[places[-1] + 1 if places else 0 : listed if listed is not None else len(lines)]
    return FailedPackage(
        package=names[0],
        phase=_phase_of(names[0], lines),
        log=tuple(line[2:] for line in log if line.startswith(("  ", "> "))),
        marked=tuple(match["text"] for line in log if (match := _MARKED.match(line))),
        others=tuple(dict.fromkeys(name for name in names[1:] if name != names[0])),
    )


def _phase_of(package: str, lines: Sequence[str]) -> str:
    """Return what was done with a package last."""
    phases = [
        match["phase"]
        for line in lines
        if (match := STEP.search(line)) and match["package"] == package
    ]
    return phases[-1] if phases else ""
