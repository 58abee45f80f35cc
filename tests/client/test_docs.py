"""What docs/client.md shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from cic_client.arguments import parser
from flask import Flask

from tests.client.conftest import Cic, token_of
from tests.conftest import PROJECT
from tests.service.conftest import FakeBuilder

TEXT = (PROJECT / "docs" / "client.md").read_text("utf-8")
COMMANDS = re.findall(r"^(cic .*)$", "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)), re.M)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)
    for end in (">", "|"):
        words = words[: words.index(end)] if end in words else words
    asked = parser().parse_args(words[1:])
    assert asked.verb


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10


def test_the_programs_run(ada: Cic, app: Flask, address: str, builder: FakeBuilder) -> None:
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert programs
    (ada.home / "token").write_text(token_of(app, "ada") + "\n")
    (ada.home / "images").mkdir()
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program.replace("https://cic.example.org", address)],
            cwd=ada.home,
            env=ada.environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    (image,) = (ada.home / "images").iterdir()
    assert image.suffix == ".sif"
