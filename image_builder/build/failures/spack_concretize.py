"""Finds why Spack had no solution for an environment, in the words of Spack 0.19 to 1.2. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from image_builder.build.failures.buildx_log import FailedStep
from image_builder.build.failures.excerpts import MAX_LINES, Finding, first_match, found, tail
from image_builder.build.failures.spack_errors import ERROR, first_error, from_error, is_fetch
from image_builder.errors import ErrorCode
from image_builder.spack import prefixes

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
_NO_VERSION = r"No version exists that|can only be satisfied by deprecated versions"
_CONFLICT_0_19 = (
    r"==> Error: .*(?:Cannot (?:concretize|find (?:compatible|valid)|set variant)|"
    r"No (?:valid |)(?:compiler|platform|value|version)s? |is not a valid (?:dependency|value) for|"
    r"cannot (?:satisfy constraint|both propagate|have values)|is not compatible with this machine|"
    r"(?:have|are|') incompatible|required multiple values|multiple providers for|"
    r"does not satisfy any configured external|requested for .* cannot be found|Cyclic dependency)"
)
"""Spack 0.19 tells the conflict alone, and not that the environment failed to concretize."""
_UNSATISFIED = re.compile(
    r"failed to concretize `?(?P<package>[a-z0-9-]+)?|conflicts with|[Uu]nsatisfiable|"
    r"Cannot (?:satisfy|select)|cannot concretize|cannot depend on|No matching version|"
    r"stopping concretization|No compilers? (?:with spec|for|found)|"
    + "|".join((_NO_VERSION, _CONFLICT_0_19))
)
_BOOTSTRAP = re.compile(r"[Bb]ootstrap\w* (?:clingo|.*failed)|cannot bootstrap")


def concretization(failed: FailedStep) -> Finding:
    """Return why an environment has no solution, or cannot be read."""
    lines = failed.lines
    excerpt = tuple(from_error(lines))[:MAX_LINES]
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
            match.string.removeprefix(ERROR).strip() + ".",
            package=match["package"],
            excerpt=excerpt,
        )
    if first_match(_BAD_SPEC, lines):
        return found(
            ErrorCode.BAD_DESCRIPTION,
            "Spack cannot read a spec: " + first_error(lines),
            excerpt=excerpt,
        )
    if match := first_match(_TOO_OLD, lines, groups=True):
        what = (
            f"{match['compiler']} cannot make {match['target']}"
            if match["target"]
            else first_error(lines)
        )
        return found(
            ErrorCode.COMPILER_TOO_OLD,
            f"The base image's compiler is too old for the target: {what}.",
            excerpt=excerpt,
            hint="Choose an older architecture, or a base image with a newer compiler.",
        )
    if match := first_match(_UNSATISFIED, lines, groups=True):
        package = match.groupdict().get("package") or _without_version(excerpt)
        return found(
            ErrorCode.CONCRETIZATION_FAILED,
            "Spack finds no solution that meets every demand"
            + (f"; the first conflict is about {package}." if package else "."),
            package=package,
            excerpt=excerpt,
        )
    if first_match(_BOOTSTRAP, lines) or is_fetch(lines):
        return found(
            ErrorCode.FETCH_FAILED,
            "Spack cannot fetch what it needs itself.",
            excerpt=excerpt or tail(lines),
        )
    return found(
        ErrorCode.BUILD_STEP_FAILED,
        f"spack concretize failed: {first_error(lines) or failed.message}",
        excerpt=excerpt,
    )


def _without_version(lines: Sequence[str]) -> str:
    """Return the package of which Spack has no version that fits, from the line below the error."""
    for line, below in itertools.pairwise(lines):
        if re.search(_NO_VERSION, line) and (match := re.match(rf"\s+({prefixes.NAME})@", below)):
            return match[1]
    return ""
