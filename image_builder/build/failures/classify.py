"""Finds why a build failed: a cause from the closed list, the package, the step, and its lines.

Pure. Whether a build failed is never asked here: that is the exit status. This only reads the log
of one that did.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from image_builder import hints
from image_builder.build.failures import spack_concretize, spack_install
from image_builder.build.failures.buildx_log import FailedStep, failed_step, plain
from image_builder.build.failures.excerpts import (
    MAX_LINES,
    Finding,
    around,
    first_match,
    found,
    tail,
)
from image_builder.errors import ErrorCode

ENDING = 300
"""How many of the last lines are looked at for what a hint could say."""
PUSH, CONVERT = "push", "convert"
"""Values of `classify`'s `step` for logs that are not buildx's."""

_SCRIPTS = (
    ("concretize", "spack concretize"),
    ("post_inst", "post_inst.sh"),
    ("install.sh", "spack install"),
    ("apt.sh", "apt"),
    ("runtime.sh", "apt"),
    ("pip.sh", "pip"),
    ("spack", "spack"),
    ("site_tools", "site tools"),
    ("tools", "tools"),
)
_UNREACHABLE = re.compile(
    r"no such host|connection refused|i/o timeout|TLS handshake|x509:|server misbehaving|"
    r"connection reset|network is unreachable|(?:status|code):? 50[0234]|50[0234] [A-Z]|\bEOF\b|"
    r"service unavailable|Client\.Timeout",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"unauthorized|no basic auth credentials|authentication required|denied|forbidden|"
    r"status: 40[13]|insufficient[_ ]scope",
    re.IGNORECASE,
)
_DAEMON = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|Unavailable: |docker\.sock: connect|"
    r"error reading from server|transport is closing|closing transport",
    re.IGNORECASE,
)
_NO_NETWORK = re.compile(
    r"Could not resolve|Temporary failure (?:in name resolution|resolving)|Failed to fetch|"
    r"Connection (?:timed out|refused|reset)|Could not connect|NewConnectionError|SSLError|"
    r"CERTIFICATE_VERIFY_FAILED|ReadTimeoutError|ProxyError|Max retries exceeded|"
    r"Network is unreachable|Name or service not known|certificate verif|HTTP error 50\d|"
    r"Connection broken|IncompleteRead|40[47] (?:Client Error|Proxy Auth)|HTTP error 404",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(
    r"Killed signal terminated program|\AKilled\Z|\*\*\* \[.*\] Killed\Z|virtual memory exhausted|"
    r"[Cc]annot allocate memory|out of memory allocating|\bMemoryError\b|\bOut of memory\b|"
    r"\bsigkill\b|signal: (?:9|killed)|std::bad_alloc"
)
_NO_PROCESSES = re.compile(
    r"Cannot fork\b|fork: (?:retry: )?Resource temporarily unavailable|can't start new thread|"
    r"v?fork(?:\(\))?(?: failed)?: Resource temporarily unavailable|"
    r"BlockingIOError: \[Errno 11\]"
)
_NO_SPACE = re.compile(
    r"No space left on device|\bENOSPC\b|Errno 28|Disk quota exceeded|not enough free space|"
    r"You don't have enough free space",
    re.IGNORECASE,
)
_ILLEGAL = re.compile(
    r"Illegal instruction|uncaught target signal 4|signal: 4\b|SIGILL|"
    r"cannot run C(?:\+\+)? compiled programs|exec format error"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """Says why a build failed.

    `package` is empty where the failure is not one package's, `step` names what was done.
    """

    code: ErrorCode
    step: str
    message: str
    package: str = ""
    hint: str = ""
    excerpt: tuple[str, ...] = ()


def classify(lines: Sequence[str], *, step: str) -> Cause:
    """Return the cause of a failure with the log `lines`, whose beginning may be missing.

    `step` is what was going on: `push`, `convert`, or anything else for a build by buildx; then the
    step inside the build is found in the log, and `step` is used where it is not.
    """
    if step == PUSH:
        said = [plain(line) for line in lines]
        return _with_hint(_push(said), said)
    if step == CONVERT:
        said = [plain(line) for line in lines]
        return _with_hint(_conversion(said), said)
    failed = failed_step(lines)
    name = _step_name(failed) or step
    finding = _build(failed, name)
    excerpt = finding.excerpt or tail(failed.lines) or ((failed.message,) if failed.message else ())
    cause = Cause(
        code=finding.code,
        step=name,
        package=finding.package,
        message=finding.message,
        hint=finding.hint,
        excerpt=excerpt[:MAX_LINES],
    )
    return _with_hint(cause, (*excerpt, *failed.lines[-ENDING:], failed.message))


def _with_hint(cause: Cause, lines: Sequence[str]) -> Cause:
    """Return the cause with a hint: its lines', else its reader's own, else what usually helps."""
    hint = hints.seen_in(cause.code, lines[-ENDING:]) or cause.hint or hints.usual(cause.code)
    return dataclasses.replace(cause, hint=hint)


def _step_name(failed: FailedStep) -> str:
    """Return the step in words: `apt`, `pip`, `spack install`, `post_inst.sh`, or buildx's name."""
    if "load metadata for" in failed.name or " FROM " in failed.name:
        return "base image"
    if failed.name.startswith(("pushing", "exporting")):
        return failed.name.split(" ")[0].replace("pushing", PUSH).replace("exporting", "export")
    for text in (failed.command, failed.name):
        for mark, words in _SCRIPTS:
            if mark in text:
                return words
    return failed.name.partition("] ")[2][:80]


def _build(failed: FailedStep, step: str) -> Finding:
    if not failed.name and not failed.command:
        return _without_step(failed)
    if step == "base image":
        return _base_image(failed)
    if step == PUSH:
        cause = _push([*failed.lines, failed.message])
        return found(cause.code, cause.message, hint=cause.hint, excerpt=cause.excerpt)
    if re.match(r"context canceled|canceled|no active session", failed.message, re.IGNORECASE):
        return found(ErrorCode.CANCELLED, "The build was ended.")
    if (said := _own_words(failed)).startswith("the base image has no "):
        return found(ErrorCode.BUILD_STEP_FAILED, said)
    readers: dict[str, Callable[[FailedStep], Finding]] = {
        "apt": _apt,
        "pip": _pip,
        "spack concretize": _concretization,
        "spack install": spack_install.installation,
        "post_inst.sh": _post_install,
    }
    finding = readers.get(step, _other)(failed)
    return _resources(failed, finding, step) or finding


def _without_step(failed: FailedStep) -> Finding:
    """Return what ended a build without a failed step: the daemon or the caller."""
    text = (failed.message, *failed.lines[-20:])
    if first_match(_DAEMON, text):
        return found(
            ErrorCode.DOCKER_UNAVAILABLE,
            "The Docker daemon does not answer, or went away during the build.",
            hint="Try again; if it stays, the operator has to look at dockerd.",
            excerpt=tail(failed.lines, 5),
        )
    if re.search(r"context canceled|\bCanceled\b", failed.message):
        return found(ErrorCode.CANCELLED, "The build was ended.", excerpt=tail(failed.lines, 5))
    if first_match(_NO_SPACE, text):
        return _no_space("")
    return found(
        ErrorCode.BUILD_STEP_FAILED, failed.message or "The build ended without saying why."
    )


def _base_image(failed: FailedStep) -> Finding:
    image = failed.name.partition("metadata for ")[2] or failed.name.partition(" FROM ")[2]
    return found(
        ErrorCode.BASE_IMAGE_UNAVAILABLE,
        f"The base image {image.split(' ')[0]} cannot be fetched.",
        hint="Check `base_image` in the configuration, and that its registry can be reached.",
        excerpt=(failed.message,),
    )


def _resources(failed: FailedStep, finding: Finding, step: str) -> Finding | None:
    """Return a resource as the cause: memory, disk, time, or a CPU that cannot run the result.

    It is looked for in the lines that the step's own reader found, and where the step ended.
    """
    ending = (*finding.evidence, *finding.excerpt, *failed.lines[-15:], failed.message)
    where = f"{finding.package} was built" if finding.package else f"{step} ran"
    if line := first_match(_NO_MEMORY, ending) or (failed.exit_code == 137 and "exit code: 137"):
        return found(
            ErrorCode.OUT_OF_MEMORY,
            f"Memory ran out while {where}.",
            package=finding.package,
            hint="Fewer compile jobs need less memory; else the service has to allow more.",
            excerpt=around(failed.lines, line) or finding.excerpt,
        )
    if line := first_match(_NO_PROCESSES, ending):
        return found(
            ErrorCode.TOO_MANY_PROCESSES,
            f"No more processes could be started while {where}.",
            package=finding.package,
            hint="Start fewer at once; else the service has to allow more.",
            excerpt=around(failed.lines, line) or finding.excerpt,
        )
    if line := first_match(_NO_SPACE, ending):
        return _no_space(finding.package, around(failed.lines, line))
    if line := first_match(_ILLEGAL, ending) or (failed.exit_code == 132 and "exit code: 132"):
        return found(
            ErrorCode.TARGET_NOT_EXECUTABLE,
            package=finding.package,
            message=f"A program that was built for the target cannot run on the build host, while {where}.",
            hint="Choose an older architecture, or have it built on a host whose CPU runs the target.",
            excerpt=around(failed.lines, line) or finding.excerpt,
        )
    if failed.exit_code == 124:
        return found(
            ErrorCode.TIMEOUT,
            f"{step} ran out of time.",
            package=finding.package,
            excerpt=finding.excerpt,
        )
    return None


def _no_space(package: str, excerpt: tuple[str, ...] = ()) -> Finding:
    return found(
        ErrorCode.NO_SPACE,
        "The disk is full.",
        package=package,
        excerpt=excerpt,
        hint="Try again later; the operator has to make room, or install less.",
    )


_APT_ERROR = "(?:E|^): "
"""How apt's errors begin. BuildKit reads a step's two outputs apart, and a line of the one may come
between apt's `E` and the rest: that then begins with the colon.
"""
_NOT_THERE = "cic: not in the image: "
_EDITED = "nodes of spack.lock are not what"
"""How the recipe's `relock.py` begins to say that a lockfile was edited."""


def _concretization(failed: FailedStep) -> Finding:
    """Return why concretizing failed: the recipe's own checks come before what Spack says."""
    missing = [line.removeprefix(_NOT_THERE) for line in failed.lines if _NOT_THERE in line[:40]]
    if (words := _own_words(failed)).startswith(_EDITED):
        return found(
            ErrorCode.BAD_DESCRIPTION,
            f"{words[0].upper()}{words[1:]}.",
            hint="Bring the spack.lock as Spack wrote it.",
        )
    if not missing:
        return spack_concretize.concretization(failed)
    return found(
        ErrorCode.BAD_DESCRIPTION,
        f"{'; '.join(missing[:5])}.",
        hint="Install it under apt, write the place where it is, or leave the external out: then "
        "Spack builds it.",
        excerpt=tuple(missing[:MAX_LINES]),
    )


_APT_PACKAGE = (
    re.compile(rf"{_APT_ERROR}Unable to locate package (?P<package>\S+)"),
    re.compile(rf"{_APT_ERROR}Couldn't find any package by (?:glob|regex) '(?P<package>[^']+)'"),
    re.compile(rf"{_APT_ERROR}Package '(?P<package>[^']+)' has no installation candidate"),
    re.compile(rf"{_APT_ERROR}Version '(?P<version>[^']*)' for '(?P<package>[^']+)' was not found"),
    re.compile(r"dpkg: error processing (?:package|archive) (?P<package>\S+)"),
    re.compile(r"\A (?P<package>[a-z0-9][a-z0-9+.:-]*) : (?:Depends|Conflicts|Breaks|PreDepends):"),
)
_APT_SAYS = re.compile(r"(?:E|W|Err|dpkg)?:| \S+ : | +(?:installed |Could not )")


def _apt(failed: FailedStep) -> Finding:
    says = [n for n, line in enumerate(failed.lines) if _APT_SAYS.match(line)]
    excerpt = tuple(failed.lines[max(0, says[0] - 5) :][:MAX_LINES]) if says else tail(failed.lines)
    for pattern in _APT_PACKAGE:
        if match := first_match(pattern, failed.lines, groups=True):
            if "Unable to locate" in match[0] and first_match(_NO_NETWORK, failed.lines):
                break
            version = match.groupdict().get("version")
            what = match["package"] + (f" in version {version}" if version else "")
            return found(
                ErrorCode.APT_FAILED,
                f"apt cannot install {what}.",
                package=match["package"],
                hint="Check the package's name for the base image's Debian release.",
                excerpt=excerpt,
            )
    if first_match(_NO_NETWORK, failed.lines):
        return found(
            ErrorCode.FETCH_FAILED, "apt cannot reach the package server.", excerpt=excerpt
        )
    return found(ErrorCode.APT_FAILED, _own_words(failed) or "apt failed.", excerpt=excerpt)


_PIP_PACKAGE = (
    re.compile(r"\A +(?P<package>[\w.-]+)(?:\[[\w,.-]*\])?[=<>!~]=\S* from (?:https?|file):"),
    re.compile(r"Package '(?P<package>[^']+)' requires a different Python"),
    re.compile(r"No matching distribution found for (?P<package>[\w.\[\]-]+)"),
    re.compile(r"Failed building wheel for (?P<package>\S+)"),
    re.compile(r"Could not build wheels for (?P<package>[^,\s]+)"),
    re.compile(r"[Ff]ailed to build installable wheels for .*?\((?P<package>[^,)]+)"),
    re.compile(r"Cannot (?:un)?install '?(?P<package>[\w.-]*\w)"),
    re.compile(r"Could not install requirement (?P<package>[\w.-]+)(?![\w.:-])"),
    re.compile(r"ERROR: (?P<package>\w[\w.]*)-\S+\.whl is not a supported wheel"),
    re.compile(r"Wheel '(?P<package>[^']+)' located at "),
    re.compile(r"Invalid requirement: '?(?P<package>[\w.-]*)"),
    re.compile(r"╰─> (?P<package>[a-zA-Z][\w.-]*)\Z"),
)
_NOT_FETCHED = ("No matching distribution", "Could not install requirement")
_PIP_BEGINS = re.compile(
    r"\s*(?:Collecting|Processing|Building wheels? for(?: collected packages:)?) (?P<package>\S+)"
)


def _pip(failed: FailedStep) -> Finding:
    """Return why pip failed; it writes what failed inside a package before its own words."""
    matches = (first_match(pattern, failed.lines, groups=True) for pattern in _PIP_PACKAGE)
    match = next((match for match in matches if match), None)
    begun = next(
        (begun for line in reversed(failed.lines) if (begun := _PIP_BEGINS.match(line))), None
    )
    package = match["package"] if match else _pip_name(begun["package"]) if begun else ""
    network = first_match(_NO_NETWORK, failed.lines)
    if network and (match is None or match[0].startswith(_NOT_FETCHED)):
        return found(
            ErrorCode.FETCH_FAILED,
            f"pip cannot fetch {package or 'a package'}.",
            package=package,
            excerpt=around(failed.lines, network),
        )
    return found(
        ErrorCode.PIP_FAILED,
        f"pip cannot install {package or 'the requirements'}.",
        package=package,
        excerpt=_pip_excerpt(failed.lines),
    )


def _pip_name(requirement: str) -> str:
    """Return a requirement's package: `six` of `six==1.0`, `model` of `/folder/model/`."""
    return re.split(r"[\[<>=!~;@ ]", requirement.rstrip("/").rpartition("/")[2])[0]


def _pip_excerpt(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the first failing subprocess's output, or else what pip complained of."""
    begin = next(
        (n for n, line in enumerate(lines) if "error: subprocess-exited-with-error" in line), None
    )
    if begin is None:
        begin = next((n for n, line in enumerate(lines) if line.lstrip().startswith("ERROR:")), 0)
        return tuple(lines[max(0, begin - 8) :][:MAX_LINES])
    end = next(
        (n for n, line in enumerate(lines[begin:], begin) if "[end of output]" in line), len(lines)
    )
    block = tuple(lines[begin:end])
    return block if len(block) <= MAX_LINES else (*block[:4], "...", *block[5 - MAX_LINES :])


def _post_install(failed: FailedStep) -> Finding:
    how = f" with exit status {failed.exit_code}" if failed.exit_code is not None else ""
    return found(
        ErrorCode.POST_INSTALL_FAILED, f"post_inst.sh ended{how}.", excerpt=tail(failed.lines)
    )


def _other(failed: FailedStep) -> Finding:
    return found(
        ErrorCode.BUILD_STEP_FAILED,
        excerpt=tail(failed.lines),
        message=_own_words(failed) or failed.message or "A step failed without saying why.",
    )


def _own_words(failed: FailedStep) -> str:
    """Return what a script of the recipe said of its failure, if it did."""
    own = next((line for line in reversed(failed.lines) if line.startswith("cic: error: ")), "")
    return own.removeprefix("cic: error: ")


def _push(lines: Sequence[str]) -> Cause:
    said = next((line for line in reversed(lines) if _REFUSED.search(line)), "")
    if said:
        return Cause(
            code=ErrorCode.PUSH_FAILED,
            step=PUSH,
            message="The image registry refused the image.",
            hint="Check `user`, `token` and `images_prefix` of the registry.",
            excerpt=(said,),
        )
    said = first_match(_NO_SPACE, lines)
    if said:
        return Cause(
            code=ErrorCode.NO_SPACE, step=PUSH, message="The disk is full.", excerpt=(said,)
        )
    said = next((line for line in reversed(lines) if _DAEMON.search(line)), "")
    if said:
        return Cause(
            code=ErrorCode.DOCKER_UNAVAILABLE,
            step=PUSH,
            excerpt=(said,),
            message="The Docker daemon does not answer, or went away during the push.",
            hint="Try again; if it stays, the operator has to look at dockerd.",
        )
    said = next((line for line in reversed(lines) if _UNREACHABLE.search(line)), "")
    if said:
        return Cause(
            code=ErrorCode.IMAGE_REGISTRY_UNAVAILABLE,
            step=PUSH,
            excerpt=(said,),
            message="The image registry cannot be reached.",
            hint="Try again later.",
        )
    return Cause(
        code=ErrorCode.PUSH_FAILED,
        step=PUSH,
        message="The image could not be pushed.",
        excerpt=tail(lines, 5),
    )


def _conversion(lines: Sequence[str]) -> Cause:
    rules: Iterable[tuple[re.Pattern[str], ErrorCode, str]] = (
        (_NO_SPACE, ErrorCode.NO_SPACE, "The disk is full."),
        (_NO_MEMORY, ErrorCode.OUT_OF_MEMORY, "Memory ran out while the image was converted."),
        (
            re.compile("Cannot connect to the Docker daemon"),
            ErrorCode.DOCKER_UNAVAILABLE,
            "The Docker daemon does not answer.",
        ),
    )
    for pattern, code, message in rules:
        if first_match(pattern, lines):
            return Cause(code=code, step=CONVERT, message=message, excerpt=tail(lines, 10))
    fatal = next((line for line in reversed(lines) if "FATAL" in line), lines[-1] if lines else "")
    said = fatal.rpartition("FATAL:")[2].strip() or "no reason was given"
    return Cause(
        code=ErrorCode.CONVERSION_FAILED,
        step=CONVERT,
        excerpt=tail(lines, 10),
        message=f"The image could not be converted: {said}",
    )
