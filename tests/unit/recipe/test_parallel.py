"""The recipe's program that installs several packages at once, run by a fake of Spack's modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PROGRAM = PROJECT / "image_builder" / "recipes" / "1" / "parallel.py"
FAKE_SPACK = {
    "__init__": "",
    "error": """
import sys
class SpackError(Exception):
    def die(self):
        print("==> Error: " + str(self), flush=True)
        sys.exit(1)
""",
    "environment": """
import contextlib, json, os
FOLDER = os.environ["FOLDER"]
class Spec:
    def __init__(self, name, needs):
        self.name, self.needs = name, needs
    installed = property(lambda self: os.path.exists(os.path.join(FOLDER, "done", self.name)))
    def dag_hash(self): return self.name
    def dependencies(self): return [Environment.specs[need] for need in self.needs]
    def traverse(self):
        yield self
        for need in self.dependencies():
            yield from need.traverse()
class Environment:
    specs = {name: Spec(name, needs) for name, needs in json.load(open(FOLDER + "/graph.json")).items()}
    def all_specs(self): return list(self.specs.values())
    @contextlib.contextmanager
    def write_transaction(self): yield
    def write(self, regenerate): open(FOLDER + "/view", "a").write("view\\n")
    def regenerate_views(self): raise AssertionError
def active_environment(): return Environment()
""",
    "main": """
import argparse, os, sys, time
import spack.environment, spack.error
FOLDER = os.environ["FOLDER"]
def note(text):
    with open(FOLDER + "/journal", "a") as file:
        file.write(text + "\\n")
def install(parser, args):
    name = args.words[-1].lstrip("/")
    assert args.words[:4] == ["install", "--no-add", "--only", "package"], args.words
    note("begin " + name)
    print(name, "begins")
    os.write(1, (name + " is at work\\n").encode())  # as a process below does
    for line in range(4):
        print(name, "line", line, flush=True)
        time.sleep(0.05)
    if name.startswith("bad"):
        print("==> Error: " + name, flush=True)
        time.sleep(0.2)
        raise spack.error.SpackError(name + " again")
    time.sleep(30 if name.startswith("endless") else 0.1)
    spack.environment.Environment().write(regenerate=True)
    open(os.path.join(FOLDER, "done", name), "w").close()
    note("end " + name)
class Parser:
    def add_command(self, name): return install
    def parse_args(self, words): return argparse.Namespace(words=words)
make_argument_parser = Parser
""",
}
WITH_JOBSERVER = """
mkfifo "$FOLDER/fifo"
exec 8<>"$FOLDER/fifo" 9<>"$FOLDER/fifo"
head -c "$TOKENS" /dev/zero >&9
export MAKEFLAGS=" -j$((TOKENS + 1)) --jobserver-auth=8,9"
"$@"
status=$?
echo end >&9
head -n 1 <&8 | tr -d '\\nend' | wc -c >"$FOLDER/left"
exit $status
"""
"""What the recipe does around the program; afterwards it counts the tokens that came back."""

Graph = dict[str, list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spack").mkdir()
    (tmp_path / "done").mkdir()
    for name, text in FAKE_SPACK.items():
        (tmp_path / "spack" / f"{name}.py").write_text(text, "utf-8")
    return tmp_path


def run(
    folder: Path, graph: Graph, *hashes: str, tokens: int | None = 1
) -> subprocess.CompletedProcess[str]:
    (folder / "graph.json").write_text(json.dumps(graph), "utf-8")
    command = [sys.executable, str(PROGRAM), "", "--jobs", "2", *(f"/{key}" for key in hashes)]
    around = ["sh", "-c", WITH_JOBSERVER, "sh"] if tokens is not None else []
    environ = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "FOLDER": str(folder),
        "TOKENS": f"{tokens}",
        "PYTHONUNBUFFERED": "",  # as in a build
    }
    return subprocess.run(
        [*around, *command], env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def journal(folder: Path) -> list[tuple[str, str]]:
    text = (folder / "journal").read_text("utf-8")
    return [(line.split()[0], line.split()[1]) for line in text.splitlines()]


def most_at_once(folder: Path) -> int:
    running, most = 0, 0
    for what, _ in journal(folder):
        running += 1 if what == "begin" else -1
        most = max(most, running)
    return most


WIDE: Graph = {"root": ["a", "b", "c", "d"], "a": ["e"], "b": [], "c": ["e"], "d": [], "e": []}


def test_a_package_begins_when_what_it_needs_is_there_and_not_before(folder: Path) -> None:
    done = run(folder, WIDE)
    assert done.returncode == 0, done.stdout + done.stderr
    order = journal(folder)
    assert sorted(name for what, name in order if what == "end") == sorted(WIDE)
    for name, needs in WIDE.items():
        for needed in needs:
            assert order.index(("end", needed)) < order.index(("begin", name))
    assert (folder / "view").read_text("utf-8") == "view\n", "the view is made once, at the end"


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_no_more_packages_than_jobs_and_all_tokens_come_back(folder: Path, tokens: int) -> None:
    assert run(folder, WIDE, tokens=tokens).returncode == 0
    assert most_at_once(folder) == tokens + 1
    assert (folder / "left").read_text("utf-8").strip() == str(tokens)


def test_a_line_comes_when_it_is_printed(folder: Path) -> None:
    """Spack 1.1 leaves the line that begins a package in the process's buffer."""
    lines = run(folder, WIDE).stdout.splitlines()
    for name in WIDE:
        assert lines.index(f"{name} begins") < lines.index(f"{name} is at work")


def test_without_a_jobserver_one_package_follows_the_other(folder: Path) -> None:
    assert run(folder, WIDE, tokens=None).returncode == 0
    assert most_at_once(folder) == 1
    assert journal(folder)[0] == ("begin", "e"), "what the longest chain waits for comes first"


def test_only_what_was_named_is_installed_with_what_it_needs(folder: Path) -> None:
    assert run(folder, WIDE, "a").returncode == 0
    assert {name for _, name in journal(folder)} == {"a", "e"}
    assert not (folder / "view").exists(), "the rest is still to come"


def test_what_is_installed_is_not_installed_again(folder: Path) -> None:
    (folder / "done" / "e").touch()
    assert run(folder, WIDE).returncode == 0
    assert "e" not in {name for _, name in journal(folder)}


def test_a_failure_ends_all_and_its_lines_stay_together(folder: Path) -> None:
    graph: Graph = {"root": ["bad", "endless", "other"], "bad": [], "endless": [], "other": ["bad"]}
    done = run(folder, graph)
    assert done.returncode == 1
    assert {name for _, name in journal(folder)} == {"bad", "endless"}
    lines = done.stdout.splitlines()
    place = lines.index("==> Error: bad")
    assert lines[place : place + 2] == ["==> Error: bad", "==> Error: bad again"]
    assert not (folder / "view").exists()
