"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from image_builder.settings import BuildSettings, LibrarySettings, RepositorySettings

pytest.register_assert_rewrite("tests.support")
# How long an example takes says how busy the machine is, and no test asserts that.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parent / "data"

_PROCESS_EVENTS = frozenset(
    {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty"}
)
_PATH_EVENTS = frozenset(
    {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "os.utime",
        "sqlite3.connect",
    }
)
"""What changes a disk, with the path, or two of them, as its first arguments."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_process_listener: Callable[[str], None] | None = None
_path_listener: Callable[[str], None] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _process_listener is not None and event in _PROCESS_EVENTS:
        _process_listener(f"{event} {arguments[:2]!r}")
    if _path_listener is None:
        return
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    for path in arguments[:2] if event in _PATH_EVENTS else arguments[:1] if is_write else ():
        if isinstance(path, (str, bytes, os.PathLike)):
            _path_listener(os.path.abspath(os.fsdecode(path)))


sys.addaudithook(_hear)  # for good: Python has no way to remove one

# A shell's `&` and nohup start programs with ignored signals, which all that they start inherits.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


OWN_IMAGES = frozenset(
    {
        "test_cancel.py",
        "test_conversion.py",
        "test_deploy.py",
        "test_hostile_description.py",
        "test_isolation.py",
        "test_kills.py",
        "test_limits.py",
        "test_mod_wsgi.py",
        "test_nothing_lost.py",
        "test_oras.py",
        "test_package_registry.py",
    }
)
"""Modules of tests/system whose steps and images no other module has."""
STANDIN = frozenset(
    {
        "test_again.py",
        "test_bundle.py",
        "test_client.py",
        "test_reproducible.py",
        "test_spack_standin.py",
    }
)
"""Modules that have their own, too, most of them on the stand-in Spack; they take as long as those."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real parts share the machine's Docker: three processes run them, each its group in
    the order of its files.

    A group's modules must not run at the same time: many build the same step, and one would find
    the image of another, or test_conversion would sweep what test_deploy converts elsewhere. The
    groups begin at once, for they take longest; all else fills what is left of each process.
    """
    of_system: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        if item.path.is_relative_to(PROJECT / "tests" / "system"):
            item.add_marker(pytest.mark.xdist_group(_group(item.path.name)))
            of_system.append(item)
        else:
            others.append(item)
    items[:] = of_system + others


def _group(name: str) -> str:
    if name in STANDIN:
        return "stand-in"
    return "own-images" if name in OWN_IMAGES else "shared-steps"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long texts and numbers are named by their beginnings: a test's name is read by people, and
    stands in the environment of processes, which has bounds. pytest numbers equal names.
    """
    if not isinstance(val, (str, bytes, int)):
        return None
    text = val.decode("latin-1") if isinstance(val, bytes) else str(val)
    return f"{' '.join(text[:160].split())[:37]}..." if len(text) > 40 else None


@pytest.fixture
def started_processes() -> Iterator[list[str]]:
    """What this Python process starts while the test runs, as the interpreter itself reports it."""
    global _process_listener
    heard: list[str] = []
    _process_listener = heard.append
    yield heard
    _process_listener = None


@pytest.fixture
def written_paths() -> Iterator[list[str]]:
    """Where this Python process writes, or changes what lies there, while the test runs."""
    global _path_listener
    heard: list[str] = []
    _path_listener = heard.append
    yield heard
    _path_listener = None


@pytest.fixture
def library_settings(tmp_path: Path) -> LibrarySettings:
    """Settings that point below `tmp_path`; nothing is there yet."""
    return LibrarySettings(
        repositories=RepositorySettings(workflow_repository=f"file://{tmp_path / 'registry'}"),
        build=BuildSettings(tmp_folder=tmp_path / "tmp", builder_home=PROJECT, base_image="base:1"),
    )
