"""Finds out what a base image holds: one container run for each digest, remembered on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

from image_builder import docker
from image_builder.base import BaseFacts
from image_builder.errors import CicError

QUESTIONS = 3
"""The number of what is asked below: answers to fewer questions are not used any more."""
_SCRIPT = """
. /etc/os-release 2>/dev/null; echo "os=$ID"; echo "os_version=$VERSION_ID"
for c in gcc clang; do command -v $c >/dev/null 2>&1 && echo "compiler=$c:$($c -dumpfullversion -dumpversion)"; done
command -v python3 >/dev/null 2>&1 && echo "python=$(python3 -c 'import platform; print(platform.python_version())')"
for s in "$(command -v spack)" "$SPACK_ROOT/bin/spack" /opt/spack/bin/spack /spack/bin/spack; do
  [ -x "$s" ] && { echo "spack=$("$s" --version 2>/dev/null)"; break; }
done
tr '\\0\\n' '\\n ' </proc/self/environ | sed 's/^/variable=/'
"""
_VERSION = re.compile(r"\d+(?:\.\d+)+")


def probe_base(reference: str, digest: str | None, platform: str, cache: Path) -> BaseFacts:
    """What the base image holds. `cache` is a folder; an image that cannot run here gives facts
    that say little.
    """
    remembered = (
        cache / f"{(digest or '').replace(':', '-')}_{platform.replace('/', '-')}_{QUESTIONS}.txt"
    )
    if digest and remembered.is_file():
        output = json.loads(remembered.read_text("utf-8"))
    else:
        output = docker.run_probe(reference, platform, ("/bin/sh", "-c", _SCRIPT))
        output += f"\nconfig={json.dumps(docker.image_config(reference))}\n"
        if digest:
            cache.mkdir(parents=True, exist_ok=True)
            aside = remembered.with_suffix(f".{id(output)}.tmp")
            aside.write_text(json.dumps(output), "utf-8")
            aside.replace(remembered)
    return _facts(output, reference, digest, platform)


def unprobed_base(reference: str, digest: str | None, platform: str) -> BaseFacts:
    """What the reference alone tells: `spack_base:0.19.2` names its Spack."""
    tag = reference.split("@")[0].rsplit(":", 1)[-1]
    named = _VERSION.match(tag) if "spack" in reference else None
    return BaseFacts(
        reference=reference,
        digest=digest,
        platform=platform,
        os_id="",
        os_version="",
        spack_version=_numbers(named.group()) if named else None,
        compilers={},
        python=None,
    )


def facts_or_guess(
    reference: str, digest: str | None, platform: str, cache: Path
) -> tuple[BaseFacts, str]:
    """The facts, and a warning where they had to be guessed."""
    try:
        return probe_base(reference, digest, platform, cache), ""
    except CicError as error:
        return unprobed_base(
            reference, digest, platform
        ), f"What the base image holds is not known: {error.message}"


def _facts(output: str, reference: str, digest: str | None, platform: str) -> BaseFacts:
    pairs = [line.split("=", 1) for line in output.splitlines() if "=" in line]
    single = {key: value for key, value in pairs if key not in ("compiler", "variable")}
    variables = dict(
        value.split("=", 1) for key, value in pairs if key == "variable" and "=" in value
    )
    compilers = dict(
        value.split(":", 1) for key, value in pairs if key == "compiler" and ":" in value
    )
    spack = _VERSION.search(single.get("spack", ""))
    config = json.loads(single["config"])
    return BaseFacts(
        reference=reference,
        digest=digest,
        platform=platform,
        os_id=single.get("os", ""),
        os_version=single.get("os_version", ""),
        spack_version=_numbers(spack.group()) if spack else None,
        compilers=compilers,
        python=single.get("python") or None,
        variables=variables,
        folder=config.get("WorkingDir") or "",
        labels=config.get("Labels") or {},
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
