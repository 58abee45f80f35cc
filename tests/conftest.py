"""Fixtures that every kind of test may use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.settings import BuildSettings, LibrarySettings, RepositorySettings

pytest.register_assert_rewrite("tests.images_contract")

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parent / "data"

_PROCESS_EVENTS = frozenset({"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty"})
_listener: Callable[[str], None] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _listener is not None and event in _PROCESS_EVENTS:
        _listener(f"{event} {arguments[:1]!r}")


sys.addaudithook(_hear)  # for good: Python has no way to remove one


@pytest.fixture
def started_processes() -> Iterator[list[str]]:
    """What this Python process starts while the test runs, as the interpreter itself reports it."""
    global _listener
    heard: list[str] = []
    _listener = heard.append
    yield heard
    _listener = None


@pytest.fixture
def library_settings(tmp_path: Path) -> LibrarySettings:
    """Settings that point below `tmp_path`; nothing is there yet."""
    return LibrarySettings(
        repositories=RepositorySettings(workflow_repository=f"file://{tmp_path / 'registry'}"),
        build=BuildSettings(tmp_folder=tmp_path / "tmp", builder_home=PROJECT, base_image="base:1"))
