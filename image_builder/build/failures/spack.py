"""Why Spack failed: what Spack 0.23 and 1.1 say of a concretization or an install that did not
work. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from image_builder.build.failures.buildx_log import FailedStep
from image_builder.build.failures.excerpts import MAX_LINES, Finding, first_match, found, tail
from image_builder.errors import ErrorCode

MAX_BLOCK = 500

_ERROR = "==> Error:"
_NAME = r"[a-z0-9][a-z0-9_-]*?"
_VERSION = r"[\w.=+-]+?"
_HASH = r"[a-z0-9]{7,32}"
_STAGE = re.compile(
    rf"spack-stage-(?P<package>{_NAME})-(?:(?:\d|git|main|master|develop)[\w.=+-]*?|{_VERSION})-"
    rf"{_HASH}(?:\b|/)"
)
_ERROR_OF = re.compile(rf"==> Error: (?P<package>{_NAME})-{_VERSION}-[a-z0-9]{{32}}: ")
_BEGUN = re.compile(
    rf"==> (?:(?:Installing|No binary for) )?(?P<package>{_NAME})(?:-{_VERSION}-[a-z0-9]{{32}}\b|"
    r": Executing phase: )"
)
_MARKED = re.compile(r"\s+>> (?:\d+)\s?(?P<text>.*)\Z")
_MAKE = re.compile(r"\s*(?:make|gmake|ninja)(?:\[\d+\])?: ")

_BAD_FILE = re.compile(r"==> Error: \S*(?:spack\.yaml|packages\.yaml):(?P<line>\d+): ")
_BAD_SPEC = re.compile(
    r"==> Error: (?:unexpected (?:tokens|characters) in the spec string|.*[Ii]nvalid spec|"
    r"Malformed|expected .* in the spec|No such variant)"
)
_UNKNOWN = (
    re.compile(r"Package '(?:spack\.pkg\.)?(?P<package>[\w.-]+)' not found"),
    re.compile(r"since '(?P<package>[\w.-]+)' does not exist"),
    re.compile(r"Unknown package[:' ]+(?P<package>[\w.-]+)"),
)
_NO_VARIANT = re.compile(r"No such variant .* for spec: '(?P<package>[a-z0-9-]+)")
_TOO_OLD = re.compile(
    r"compiler '(?P<compiler>[^']+)' incompatible with 'target=(?P<target>[^']+)'|"
    r"cannot (?:generate|produce) .*(?:binary|binaries|code) for .*(?:target|micro-architecture)"
)
_UNSATISFIED = re.compile(
    r"failed to concretize `?(?P<package>[a-z0-9-]+)?|conflicts with|[Uu]nsatisfiable|"
    r"Cannot (?:satisfy|select)|cannot concretize"
)
_BOOTSTRAP = re.compile(r"[Bb]ootstrap\w* (?:clingo|.*failed)|cannot bootstrap")


def concretization(failed: FailedStep) -> Finding:
    """Why an environment has no solution, or cannot be read."""
    lines = failed.lines
    excerpt = tuple(_from_error(lines))[:MAX_LINES]
    if match := first_match(_BAD_FILE, lines, groups=True):
        return found(
            ErrorCode.BAD_DESCRIPTION,
            "Spack cannot read the environment: " + match.string.partition(match[0])[2],
            excerpt=excerpt,
        )
    unknown = (first_match(pattern, lines, groups=True) for pattern in _UNKNOWN)
    if match := next((match for match in unknown if match), None):
        package = match["package"].rpartition(".")[2]
        return found(
            ErrorCode.BAD_DESCRIPTION,
            f"There is no package {package}.",
            package=package,
            excerpt=excerpt,
            hint="Check its name, or put a recipe for it into the catalogue.",
        )
    if match := first_match(_NO_VARIANT, lines, groups=True):
        return found(
            ErrorCode.BAD_DESCRIPTION,
            match.string.removeprefix(_ERROR).strip() + ".",
            package=match["package"],
            excerpt=excerpt,
        )
    if first_match(_BAD_SPEC, lines):
        return found(
            ErrorCode.BAD_DESCRIPTION,
            "Spack cannot read a spec: " + _first_error(lines),
            excerpt=excerpt,
        )
    if match := first_match(_TOO_OLD, lines, groups=True):
        what = (
            f"{match['compiler']} cannot make {match['target']}"
            if match["target"]
            else _first_error(lines)
        )
        return found(
            ErrorCode.COMPILER_TOO_OLD,
            f"The base image's compiler is too old for the target: {what}.",
            excerpt=excerpt,
            hint="Choose an older architecture, or a base image with a newer compiler.",
        )
    if match := first_match(_UNSATISFIED, lines, groups=True):
        package = match.groupdict().get("package") or ""
        return found(
            ErrorCode.CONCRETIZATION_FAILED,
            "What is asked of Spack cannot all hold"
            + (f", beginning with {package}." if package else "."),
            package=package,
            excerpt=excerpt,
        )
    if first_match(_BOOTSTRAP, lines) or _is_fetch(lines):
        return found(
            ErrorCode.FETCH_FAILED,
            "Spack cannot fetch what it needs itself.",
            excerpt=excerpt or tail(lines),
        )
    return found(
        ErrorCode.BUILD_STEP_FAILED,
        f"spack concretize failed: {_first_error(lines) or failed.message}",
        excerpt=excerpt,
    )


def installation(failed: FailedStep) -> Finding:
    """Which package failed, at what, and its own lines."""
    block = _failing_block(failed.lines)
    package = _package(failed.lines, block)
    error = block[0].removeprefix(_ERROR).strip() if block else ""
    excerpt = _excerpt(block)
    if "ChecksumError" in error:
        return found(
            ErrorCode.FETCH_FAILED,
            f"What was fetched for {package} is not what its recipe expects.",
            package=package,
            excerpt=excerpt,
            hint="Its source changed or was cut; try again, else correct the recipe's sha256.",
        )
    if _is_fetch((error,)):
        return found(
            ErrorCode.FETCH_FAILED,
            f"The sources of {package} cannot be fetched.",
            package=package,
            hint="Try again; else look at its URL, or put its sources into the site's mirror.",
            excerpt=excerpt,
        )
    if not block:  # the beginning of a long log is missing, or Spack itself fell over
        code = ErrorCode.COMPILE_FAILED if package else ErrorCode.BUILD_STEP_FAILED
        return found(
            code,
            f"{package or 'spack install'} failed.",
            package=package,
            excerpt=tail(failed.lines),
        )
    if any(line.startswith("==> Patch ") and line.endswith("failed.") for line in failed.lines):
        return found(
            ErrorCode.COMPILE_FAILED,
            f"A patch of {package} does not fit its sources.",
            package=package,
            excerpt=tail(_before_error(failed.lines), 6) + excerpt,
        )
    return found(
        ErrorCode.COMPILE_FAILED,
        f"{package or 'A package'} could not be built: {_reason(block)}",
        package=package,
        excerpt=excerpt,
        evidence=tuple(_from_error(failed.lines)),
    )


def _from_error(lines: Sequence[str]) -> Sequence[str]:
    """From Spack's first error on."""
    place = next((n for n, line in enumerate(lines) if line.startswith(_ERROR)), None)
    return () if place is None else lines[place:]


def _before_error(lines: Sequence[str]) -> Sequence[str]:
    return lines[: len(lines) - len(_from_error(lines))]


def _first_error(lines: Sequence[str]) -> str:
    return next(
        (line.removeprefix(_ERROR).strip() for line in lines if line.startswith(_ERROR)), ""
    )


def _failing_block(lines: Sequence[str]) -> list[str]:
    """What Spack wrote of the first package that failed: its error and the part of the package's
    log.

    Spack's other words may stand in between, as its two streams are not in step.
    """
    block: list[str] = []
    for line in _from_error(lines)[:MAX_BLOCK]:
        if block and line.startswith(_ERROR):
            break
        if not block or not line.startswith("==> "):
            block.append(line)
        if len(block) > 1 and block[-2].startswith("See build log"):
            break
    return block


def _package(lines: Sequence[str], block: Sequence[str]) -> str:
    """Named by the stage's folder, by the error itself, or by what was last begun."""
    for pattern in (_ERROR_OF, _STAGE):
        if match := first_match(pattern, block, groups=True):
            return match["package"]
    begun = next(
        (match for line in reversed(_before_error(lines)) if (match := _BEGUN.search(line))), None
    )
    match = begun or first_match(_BEGUN, _from_error(lines), groups=True)
    return match["package"] if match else ""


def _is_fetch(lines: Sequence[str]) -> bool:
    return bool(
        first_match(
            re.compile(r"FetchError|All fetchers failed|URLError|NoStageError|NoDigestError"), lines
        )
    )


def _reason(block: Sequence[str]) -> str:
    """The first thing that went wrong: a marked line of the package's log that is not make's, or
    Spack's own words.
    """
    marked = [match["text"].strip() for line in block if (match := _MARKED.match(line))]
    telling = [text for text in marked if text and not _MAKE.match(text)]
    return (telling or marked or [block[0].removeprefix(_ERROR).strip()])[0]


def _excerpt(block: Sequence[str]) -> tuple[str, ...]:
    """The error, and the package's own log around the lines that Spack marks; all of it when it is
    short.
    """
    lines = [line for line in block if line.strip()]
    if len(lines) <= MAX_LINES:
        return tuple(lines)
    marked = [n for n, line in enumerate(lines) if _MARKED.match(line)]
    wanted = sorted(
        {n for place in marked[:3] for n in range(place - 5, place + 4) if 0 <= n < len(lines)}
        | {0, 1}
    )
    return tuple(lines[n] for n in wanted)[:MAX_LINES]
