"""Imports point down only, and what is dangerous is used in one place."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PACKAGES = ("image_builder", "config", "service")
ENTRY_POINTS = ("builder_service", "builder_worker", "wsgi", "cic_builder", "isolate_builds")
IN_THE_IMAGE = PROJECT / "image_builder" / "recipes"
"""Scripts that run in the image, where nothing of ours is."""

MAY_IMPORT = {
    "image_builder": {"image_builder"},
    "config": {"config", "image_builder"},
    "service": {"service", "config", "image_builder"},
    "cic_builder": {"config", "image_builder"},
    "isolate_builds": {"config", "image_builder"},
    "builder_service": {"service", "config", "image_builder"},
    "builder_worker": {"service", "config", "image_builder"},
    "wsgi": {"builder_service", "service", "config", "image_builder"},
}
"""What of ours each part may know."""

NO_WEB = ("flask", "flask_sqlalchemy", "flask_migrate", "sqlalchemy", "alembic", "werkzeug")

ALONE_IN = {
    "docker": {
        "image_builder/docker/base_image.py",
        "image_builder/docker/buildx.py",
        "image_builder/docker/daemon.py",
        "image_builder/docker/registry.py",
        "image_builder/sif/docker_export.py",
    },
    "celery": {"service/workers/celery_executor.py"},
    "kombu": {"service/workers/celery_executor.py"},
    "git": {"image_builder/sources/git/objects.py"},
    "multiprocessing": set(),
    "pty": set(),
}
"""Who may import what."""

STARTS_PROCESSES = {
    "image_builder/host/process.py",
    "service/workers/executors.py",
    "service/server.py",
}
"""The library starts programs in one place; the service starts its own processes beside that."""

BECOMES_DOCKER = ("cic_builder.py", "execvp")
"""`cic_builder.py --shell` ends as an interactive `docker run`: there is nothing left to look after
it.
"""

OS_CALLS = {
    "system",
    "popen",
    "execl",
    "execle",
    "execlp",
    "execlpe",
    "execv",
    "execve",
    "execvp",
    "execvpe",
    "posix_spawn",
    "posix_spawnp",
    "spawnl",
    "spawnle",
    "spawnlp",
    "spawnlpe",
    "spawnv",
    "spawnve",
    "spawnvp",
    "spawnvpe",
    "forkpty",
}


FLOORS = (
    {"data"},
    {"errors", "settings", "spack", "state"},
    {"hints", "host", "request", "timeline"},
    {"docker", "observer", "sources"},
    {"recipe", "sif", "store"},
    {"launch"},
    {"audit", "plan", "proof"},
    {"build"},
    {"pipeline"},
    {"bundle"},
)
"""The packages and modules of the library, from the ground up; each imports from lower floors only."""


def modules() -> list[Path]:
    """Every module of ours that runs on the host."""
    found = [
        path
        for package in PACKAGES
        for path in sorted((PROJECT / package).rglob("*.py"))
        if IN_THE_IMAGE not in path.parents
    ]
    return found + [path for name in ENTRY_POINTS if (path := PROJECT / f"{name}.py").exists()]


def label(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def part(path: Path) -> str:
    """The package or entry point that a module belongs to."""
    return path.relative_to(PROJECT).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a module imports, anywhere in it."""
    package = ".".join(path.relative_to(PROJECT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (f"{package}." if node.level else "") + (node.module or "")
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def calls(path: Path) -> Iterator[ast.Call]:
    return (
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    )


def call_name(call: ast.Call) -> tuple[str, str]:
    """`os.system(...)` -> `os`, `system`; the first is empty for a bare name."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return (function.value.id if isinstance(function.value, ast.Name) else "?"), function.attr
    return "", getattr(function, "id", "?")


every_module = pytest.mark.parametrize("path", modules(), ids=label)


def test_there_is_something_to_look_at() -> None:
    assert {part(path) for path in modules()} >= {*PACKAGES, "cic_builder"}


@every_module
def test_imports_point_down(path: Path) -> None:
    ours = roots(path) & {*PACKAGES, *ENTRY_POINTS}
    assert ours <= MAY_IMPORT[part(path)]


@every_module
def test_the_library_knows_no_web_and_no_database(path: Path) -> None:
    if part(path) != "service" and part(path) not in ("builder_service", "builder_worker", "wsgi"):
        assert not roots(path) & {
            *NO_WEB,
            "sqlite3",
            "flask_login",
            "flask_wtf",
            "flask_httpauth",
            "gunicorn",
        }


def room(module: str) -> str:
    """`image_builder.sources.git.urls` -> `sources`"""
    return module.split(".")[1]


LIBRARY = {
    name.removesuffix(".__init__"): path
    for path in modules()
    if (name := ".".join(path.relative_to(PROJECT).with_suffix("").parts)).startswith(
        "image_builder."
    )
    if name != "image_builder.__init__"
}


def own_imports(path: Path) -> set[str]:
    """The modules of the library that a module imports, at its top or anywhere inside."""
    return {
        module
        for name in imported(path)
        for module in (name, name.rpartition(".")[0])
        if module in LIBRARY
    }


def test_every_room_of_the_library_has_its_floor() -> None:
    assert {room(module) for module in LIBRARY} == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


@pytest.mark.parametrize("module", sorted(LIBRARY))
def test_imports_in_the_library_point_to_lower_floors(module: str) -> None:
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    above = {
        other
        for other in own_imports(LIBRARY[module])
        if room(other) != room(module) and floors[room(other)] >= floors[room(module)]
    }
    assert above == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_run_in_a_circle(package: str) -> None:
    """Late imports and those for types alone count as well."""
    names = {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules()
        if part(path) == package
    }
    arrows = {
        module: {
            name if name in names else name.rpartition(".")[0]
            for name in imported(path)
            if name in names or name.rpartition(".")[0] in names
        }
        - {module}
        for module, path in names.items()
    }
    tuple(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError


@every_module
def test_nothing_reaches_for_private_names_of_another_module(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            private = [alias.name for alias in node.names if re.match("_[a-zA-Z]", alias.name)]
            assert private == [], f"line {node.lineno}"


def test_the_library_has_few_modules_outside_its_packages() -> None:
    flat = [path for path in LIBRARY.values() if path.parent == PROJECT / "image_builder"]
    assert len(flat) <= 6, [path.name for path in flat]


@pytest.mark.parametrize("name", ALONE_IN)
def test_some_libraries_are_used_in_one_place(name: str) -> None:
    users = {label(path) for path in modules() if name in roots(path)}
    assert users <= ALONE_IN[name]


@every_module
def test_processes_are_started_in_few_places(path: Path) -> None:
    """Others may name what the module holds (`subprocess.PIPE`), and call nothing in it."""
    if label(path) not in STARTS_PROCESSES:
        for call in calls(path):
            assert call_name(call)[0] != "subprocess", f"line {call.lineno}"


@every_module
def test_nothing_passes_a_shell_or_runs_text(path: Path) -> None:
    for call in calls(path):
        owner, name = call_name(call)
        where = f"{owner}.{name} in line {call.lineno}"
        assert not (owner == "os" and name in OS_CALLS) or (label(path), name) == BECOMES_DOCKER, (
            where
        )
        assert not (owner == "" and name in ("eval", "exec")), where
        assert not (owner == "yaml" and name in ("load", "load_all", "unsafe_load", "full_load")), (
            where
        )
        assert owner not in ("pickle", "marshal", "shelve"), where
        assert not any(keyword.arg == "shell" for keyword in call.keywords), where


def test_the_library_is_imported_without_the_service() -> None:
    """In an interpreter of its own: `cic_builder.py` brings neither Flask nor a database with it."""
    code = "import json, sys, cic_builder; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True
    )
    loaded = json.loads(ended.stdout)
    assert "image_builder.pipeline" in loaded
    assert not {name.split(".")[0] for name in loaded} & {*NO_WEB, "service", "builder_service"}
