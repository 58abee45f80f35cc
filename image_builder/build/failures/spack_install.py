"""Finds why Spack could not install a package, in the words of Spack 0.19 to 1.2. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from image_builder.build.failures.buildx_log import FailedStep
from image_builder.build.failures.excerpts import MAX_LINES, Finding, first_match, found, tail
from image_builder.build.failures.spack_errors import ERROR, from_error, is_fetch
from image_builder.build.failures.spack_steps import (
    FETCHING,
    STEP,
    FailedPackage,
    failed_package,
)
from image_builder.errors import ErrorCode
from image_builder.spack import prefixes

MAX_BLOCK = 500

_WHOLE_HASH = "[a-z0-9]{32}"
_STAGE = re.compile("spack-stage-" + prefixes.named())
_ERROR_OF = re.compile(f"==> Error: {prefixes.named(hash_pattern=_WHOLE_HASH)}: ")
_PHASE = re.compile(rf"==> (?P<package>{prefixes.NAME}): Executing phase: '(?P<phase>[\w-]+)'")
_BEGUN = re.compile(
    f"==> (?:(?:Installing|No binary for) )?{prefixes.named(hash_pattern=_WHOLE_HASH)}"
)
_MARKED = re.compile(r"\s+>> (?:\d+)\s?(?P<text>.*)\Z")
_MAKE = re.compile(r"\s*(?:make|gmake|ninja)(?:\[\d+\])?: ")

_CHECKSUM = re.compile(r"ChecksumError|checksum failed for")


def installation(failed: FailedStep) -> Finding:
    """Return which package failed, in which phase, and its own lines."""
    if (package_failed := failed_package(failed.lines)) is not None:
        return _step(package_failed)
    block = _failing_block(failed.lines)
    package = _package(failed.lines, block)
    error = block[0].removeprefix(ERROR).strip() if block else ""
    excerpt = _excerpt(block)
    if (source := _source(package, (error,), excerpt)) is not None:
        return source
    if not block:  # the beginning of a long log is missing, or Spack itself fell over
        code = ErrorCode.COMPILE_FAILED if package else ErrorCode.BUILD_STEP_FAILED
        return found(
            code,
            f"{package or 'spack install'} failed.",
            package=package,
            excerpt=tail(failed.lines),
        )
    if _is_patch(failed.lines):
        return found(
            ErrorCode.COMPILE_FAILED,
            f"A patch of {package} does not fit its sources.",
            package=package,
            excerpt=tail(_before_error(failed.lines), 6) + excerpt,
        )
    return _not_built(
        package,
        _phase_of(package, failed.lines),
        _reason(block),
        excerpt,
        from_error(failed.lines),
    )


def _step(failed: FailedPackage) -> Finding:
    """Return the same for a Spack that builds packages side by side."""
    package, excerpt = failed.package, _shown(failed)
    if (source := _source(package, failed.log, excerpt)) is not None:
        return source
    if _is_patch(failed.log):
        return found(
            ErrorCode.COMPILE_FAILED,
            f"A patch of {package} does not fit its sources.",
            package=package,
            excerpt=excerpt,
        )
    if failed.phase in FETCHING and not failed.log:
        return _unfetched(package, excerpt)
    others = f"; {', '.join(failed.others)} failed as well" if failed.others else ""
    return _not_built(package, failed.phase, failed.reason + others, excerpt, failed.log)


def _not_built(
    package: str, phase: str, reason: str, excerpt: tuple[str, ...], evidence: Sequence[str]
) -> Finding:
    where = f" ({phase})" if phase else ""
    return found(
        ErrorCode.COMPILE_FAILED,
        f"{package or 'A package'} could not be built{where}: {reason}",
        package=package,
        excerpt=excerpt,
        evidence=tuple(evidence),
    )


def _source(package: str, said: Sequence[str], excerpt: tuple[str, ...]) -> Finding | None:
    """Return what is wrong with a package's source, where that is what failed."""
    if first_match(_CHECKSUM, said):
        return found(
            ErrorCode.FETCH_FAILED,
            f"What was fetched for {package} is not what its recipe expects.",
            package=package,
            excerpt=excerpt,
            hint="Its source changed or was cut; try again, else correct the recipe's sha256.",
        )
    return _unfetched(package, excerpt) if is_fetch(said) else None


def _unfetched(package: str, excerpt: tuple[str, ...]) -> Finding:
    return found(
        ErrorCode.FETCH_FAILED,
        f"The sources of {package} cannot be fetched.",
        package=package,
        hint="Try again; else look at its URL, or put its sources into the site's mirror.",
        excerpt=excerpt,
    )


def _is_patch(lines: Sequence[str]) -> bool:
    return any(line.startswith("==> Patch ") and line.endswith("failed.") for line in lines)


def _phase_of(package: str, lines: Sequence[str]) -> str:
    """Return the phase that a package began last."""
    begun = [match for line in lines if (match := _PHASE.search(line))]
    return next((match["phase"] for match in reversed(begun) if match["package"] == package), "")


def _shown(failed: FailedPackage) -> tuple[str, ...]:
    """Return the package's own log around the first line that says what failed, else its end."""
    lines = [line for line in failed.log if line.strip()]
    place = next((n for n, line in enumerate(lines) if failed.reason in line), len(lines))
    begin = max(0, min(place - MAX_LINES // 2, len(lines) - MAX_LINES))
    return tuple(lines[begin : begin + MAX_LINES])


def _before_error(lines: Sequence[str]) -> Sequence[str]:
    return lines[: len(lines) - len(from_error(lines))]


def _failing_block(lines: Sequence[str]) -> list[str]:
    """Return what Spack wrote of the first package that failed: its error and its log.

    Spack's other words may come in between, as its two streams are not synchronized.
    """
    block: list[str] = []
    for line in from_error(lines)[:MAX_BLOCK]:
        if block and line.startswith(ERROR):
            break
        if not block or not line.startswith("==> "):
            block.append(line)
        if len(block) > 1 and block[-2].startswith("See build log"):
            break
    return block


def _package(lines: Sequence[str], block: Sequence[str]) -> str:
    """Return the package that the stage's folder names, or the error itself, or what began last."""
    for pattern in (_ERROR_OF, _STAGE):
        if match := first_match(pattern, block, groups=True):
            return match["package"]
    begun = next(
        (match for line in reversed(_before_error(lines)) if (match := _begun(line))), None
    )
    match = begun or next((match for line in from_error(lines) if (match := _begun(line))), None)
    return match["package"] if match else ""


def _begun(line: str) -> re.Match[str] | None:
    return _PHASE.search(line) or _BEGUN.search(line) or STEP.search(line)


def _reason(block: Sequence[str]) -> str:
    """Return the first thing that went wrong.

    That is a marked line of the package's log that is not make's, or Spack's own words.
    """
    marked = [match["text"].strip() for line in block if (match := _MARKED.match(line))]
    telling = [text for text in marked if text and not _MAKE.match(text)]
    return (telling or marked or [block[0].removeprefix(ERROR).strip()])[0]


def _excerpt(block: Sequence[str]) -> tuple[str, ...]:
    """Return the error, and the package's own log around the lines that Spack marks.

    It is the whole log when that is short.
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
