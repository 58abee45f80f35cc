"""Asks the Spack of a base image what it knows, once for each image, and keeps that in a folder."""

from __future__ import annotations

import contextlib
import functools
import gzip
import time
import zlib
from importlib import resources
from pathlib import Path

from image_builder.docker.base_image import BaseFacts
from image_builder.docker.container import run_probe
from image_builder.errors import CicError
from image_builder.host import file_leases, files
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.spack.knowledge import (
    FORMAT,
    MAX_BYTES,
    SpackKnowledge,
    UnreadableKnowledge,
    read_knowledge,
)

LOADING_S = 300
"""For how long all packages are loaded, which takes 15 to 40 s of a processor; emulated, ten times
that.
"""
ASKING_S = 420.0
RETRY_S = 3600
"""After how long a Spack that did not answer, or had no time for all packages, is asked again."""
_PROGRAM = """
for spack in "$(command -v spack)" "$SPACK_ROOT/bin/spack" /opt/spack/bin/spack /spack/bin/spack; do
  if [ -x "$spack" ]; then
    file=$(mktemp) && printf '%s' "$1" >"$file" && exec "$spack" python "$file" "$2" "$3"
  fi
done
"""


def spack_knowledge(base: BaseFacts, cache: Path) -> tuple[SpackKnowledge | None, str]:
    """Return what the Spack of a base image knows, and a warning where that is not known.

    `cache` is a folder. An image without Spack, whose digest is not known, or that is not on this
    machine is not asked.
    """
    if base.spack_version is None or base.digest is None or not base.is_here:
        return None, ""
    try:
        return _kept_or_asked(base, _place(base, cache)), ""
    except (CicError, OSError, UnreadableKnowledge) as error:
        return None, f"What the base image's Spack knows could not be found out: {error}"


def kept_knowledge(base: BaseFacts, cache: Path) -> SpackKnowledge | None:
    """Return what an earlier question found out, or None; this asks nothing and never waits."""
    if base.digest is None:
        return None
    try:
        return _read(_place(base, cache))
    except (OSError, UnreadableKnowledge):
        return None


def _place(base: BaseFacts, cache: Path) -> Path:
    assert base.digest is not None
    name = f"{base.digest.replace(':', '-')}_{base.platform.replace('/', '-')}_{FORMAT}"
    return cache / f"{name}.json.gz"


def _kept_or_asked(base: BaseFacts, path: Path) -> SpackKnowledge:
    if (kept := _enough(path)) is not None:
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_leases.exclusively(path.with_suffix(".lock")):
        if (kept := _enough(path)) is not None:  # another process asked while this one waited
            return kept
        _refuse_so_soon(path)
        return _asked(base, path)


def _enough(path: Path) -> SpackKnowledge | None:
    """Return what is kept, if all packages could be loaded or that was tried a short while ago."""
    try:
        kept = _read(path)
        is_recent = time.time() - path.stat().st_mtime < RETRY_S
    except (FileNotFoundError, UnreadableKnowledge):
        return None
    return kept if kept.has_all_packages or is_recent else None


def _asked(base: BaseFacts, path: Path) -> SpackKnowledge:
    """Ask the image's Spack, and keep the answer, or why there is none."""
    try:
        output = run_probe(
            base.reference,
            base.platform,
            question(),
            timeout_s=ASKING_S,
            max_output_bytes=MAX_BYTES,
        )
        knowledge = read_knowledge(output)
    except (CicError, UnreadableKnowledge) as error:
        files.write_whole(_failure(path), str(error))
        raise
    files.write_whole(path, gzip.compress(output.encode(), mtime=0))
    return knowledge


def question() -> tuple[str, ...]:
    """Return the program that asks, with its arguments."""
    script = resources.files("image_builder").joinpath("recipes/probe/spack_knowledge.py")
    first = [*mpi_facts()["implementations"], *gpu_facts()["runtimes"]]
    arguments = (script.read_text("utf-8"), str(LOADING_S), ",".join(first))
    return ("/bin/sh", "-c", _PROGRAM, "sh", *arguments)


def _read(path: Path) -> SpackKnowledge:
    return _read_as_of(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_as_of(path: Path, _mtime_ns: int) -> SpackKnowledge:
    try:
        with gzip.open(path) as file:
            return read_knowledge(file.read(MAX_BYTES).decode("utf-8", "replace"))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableKnowledge(f"{path} is broken: {error}") from None


def _refuse_so_soon(path: Path) -> None:
    """Raise `UnreadableKnowledge` where the image did not answer a short while ago."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - _failure(path).stat().st_mtime < RETRY_S:
            raise UnreadableKnowledge(_failure(path).read_text("utf-8", "replace")[:2000])


def _failure(path: Path) -> Path:
    return path.with_suffix(".failure")
