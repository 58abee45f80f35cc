"""What a real shell completes: verbs, options, and names that are remembered or asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cic_client import Client, completing, names, places

from tests.client.conftest import Cic
from tests.service.conftest import REQUEST

NOWHERE = "http://127.0.0.1:9"
MARK = "READY$ "
FILENAME = "mine_hello_x86_64_nompi_nogpu_v_latest.sif"
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
SETUP = {
    "bash": 'bind "set bell-style none" "set enable-bracketed-paste off"; eval "$(cic completion bash)"',
    "zsh": 'unsetopt zle_bracketed_paste; autoload -Uz compinit && compinit -u -D; eval "$(cic completion zsh)"',
}


@dataclasses.dataclass
class Shell:
    """A shell in a terminal of its own, to which keys are sent."""

    terminal: int
    unread: str = ""

    def keys(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, text: str, limit_s: float = 60) -> str:
        """Return what the terminal shows next, up to a text."""
        end = time.monotonic() + limit_s
        while text not in self.unread:
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.unread!r}"
            self.unread += os.read(self.terminal, 65536).decode("utf-8", "replace")
        seen, _, self.unread = self.unread.partition(text)
        return seen + text

    def completes(self, typed: str, whole: str) -> None:
        """Assert that a tab makes this of what was typed, and empty the line."""
        self.keys(f"{typed}\t")
        self.until(whole)
        self.keys("\x15")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, ada: Cic, tmp_path: Path) -> Iterator[Shell]:
    """Ada's shell, with completion set up as the documentation says."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    program = tmp_path / "bin" / "cic"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cic_client "$@"\n')
    program.chmod(0o755)
    environ = ada.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "TERM": "dumb",
        "PS1": MARK,
        "COLUMNS": "200",
    }
    terminal, its_side = pty.openpty()
    started = subprocess.Popen(
        ["setsid", "--ctty", *SHELLS[name]],
        cwd=ada.home,
        env=environ,
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
    )
    os.close(its_side)
    made = Shell(terminal)
    made.until(MARK)
    made.keys(f"{SETUP[name]}; echo do''ne\n")
    made.until("done")
    made.until(MARK)
    yield made
    os.close(terminal)  # a shell ends with its terminal
    started.wait(60)


def remember(ada: Cic, kind: str, *found: str) -> None:
    names.remember(places.names_file(ada.environ), kind, found)


BUILD_ID = "f1f4699b-9048-4ecc-aff3-1c689b855adc"


def test_a_shell_completes_verbs_options_and_what_is_remembered(shell: Shell, ada: Cic) -> None:
    remember(ada, names.MACHINES, "lumi-c", "leonardo")
    remember(ada, names.IMAGES, FILENAME)
    remember(ada, names.BUILDS, BUILD_ID)
    shell.completes("cic mach", "cic machines ")
    shell.completes("cic build --wa", "cic build --wait ")
    shell.completes("cic build -p zlib -m lu", "cic build -p zlib -m lumi-c ")
    shell.completes("cic pull mi", f"cic pull {FILENAME} ")
    shell.completes("cic check mine_hello_x86_64_nompi_nogpu_v_latest.sif leo", "leonardo ")
    shell.completes("cic watch f1", f"cic watch {BUILD_ID} ")
    shell.completes("cic builds --status fin", "cic builds --status finished ")
    (ada.home / "earlier.json").touch()
    shell.completes("cic plan x.json --against ear", "--against earlier.json ")


def test_a_shell_hears_nothing_of_a_service_that_is_away(shell: Shell, ada: Cic) -> None:
    """The log-in in the environment is of an address where nobody is."""
    shell.keys(f"export CIC_URL={NOWHERE}; echo mo''ved\n")
    shell.until("moved")
    shell.until(MARK)
    shell.keys("cic pull mi\t\t")
    shell.keys("\x15echo go''es on\n")
    seen = shell.until("goes on")
    for word in ("Traceback", "rror", "No answer", "Alarm"):
        assert word not in seen


def completed(ada: Cic, kind: str, patience_s: int, **environ: str) -> tuple[int, list[str]]:
    """The status of a process that completes names, and the names."""
    code = (
        "import json, sys; from cic_client import completing; "
        f"completing.PATIENCE_S = {patience_s}; print(json.dumps(completing.{kind}()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**ada.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout or "[]")


def test_names_are_asked_for_once_and_remembered(ada: Cic, client: Client) -> None:
    build = client.wait(client.submit(REQUEST).id)
    for kind, name in (
        (names.MACHINES, "lumi-c"),
        (names.IMAGES, build.filename),
        (names.BUILDS, build.id),
    ):
        status, found = completed(ada, kind, 60)
        assert status == 0 and name in found
        remembered, age_s = names.remembered(places.names_file(ada.environ), kind)
        assert remembered == found and age_s < completing.FRESH_S[kind]
    file = places.names_file(ada.environ)
    assert file.stat().st_mode & 0o077 == 0
    # Another log-in sees other images.
    other = ada.environ | {"CIC_TOKEN": "another"}
    assert places.names_file(other) != file


def test_a_service_that_never_answers_is_waited_for_once(ada: Cic) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert completed(ada, names.IMAGES, 1, CIC_URL=address) == (-signal.SIGALRM, [])
        assert completed(ada, names.IMAGES, 60, CIC_URL=address) == (0, [])


def test_verbs_that_list_names_let_them_be_completed(ada: Cic) -> None:
    file = places.names_file(ada.environ)
    for verb, kind in (
        ("machines", names.MACHINES),
        ("images", names.IMAGES),
        ("builds", names.BUILDS),
    ):
        assert ada(verb).returncode == 0
        assert names.remembered(file, kind)[1] < completing.FRESH_S[kind]
    assert "lumi-c" in names.remembered(file, names.MACHINES)[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"[]", b'{"images": 7}', b'{"images": {"at": "x"}}', b"\xff"],
)
def test_a_file_of_names_that_is_none_is_no_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(content)
    assert names.remembered(path, names.IMAGES) == ([], float("inf"))


def test_only_names_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "cic" / "names.json"
    strange: list[Any] = ["$(reboot)", "-rf", "a b", "a\nb", "x" * 300, "\x1b[2J", 7, None, "é"]
    names.remember(path, names.IMAGES, [*strange, "good-1.0+x_y.sif"])
    assert names.remembered(path, names.IMAGES)[0] == ["good-1.0+x_y.sif"]
    names.remember(path, names.MACHINES, (f"m{number}" for number in range(10_000)))
    assert len(names.remembered(path, names.MACHINES)[0]) == names.MAX_NAMES
    assert names.remembered(path, names.IMAGES)[0] == ["good-1.0+x_y.sif"]
    names.remember(Path("/proc/nowhere/names.json"), names.IMAGES, ["x"])
