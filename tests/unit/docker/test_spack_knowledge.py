"""A base image's Spack is asked once, and what it said is kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker import spack_knowledge as asking
from image_builder.docker.base_image import BaseFacts
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.docker.spack_knowledge import kept_knowledge, spack_knowledge
from tests.support.planning import KNOWLEDGE, base

ANSWER = (KNOWLEDGE / "1.2.0.txt").read_text("utf-8")
PARTIAL = ANSWER.replace('"has_all_packages": true', '"has_all_packages": false')


class FakeImage:
    """Stands for the container: it answers, or does not run, and counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
        self.answer, self.asked = answer, 0
        monkeypatch.setattr(asking, "run_probe", self.run)

    def run(self, image: str, platform: str, program: tuple[str, ...], **limits: Any) -> str:
        assert program[0] == "/bin/sh" and "spack_knowledge.py" in program[4]
        assert limits["max_output_bytes"] and limits["timeout_s"] > asking.LOADING_S
        self.asked += 1
        if self.answer is None:
            raise BaseImageUnavailable("The image does not run here")
        return self.answer


def probed(**facts: Any) -> BaseFacts:
    return base((1, 2, 0), **{"digest": "sha256:1", **facts})


def age(folder: Path, seconds: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (time.time() - seconds, time.time() - seconds))


def test_it_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = FakeImage(monkeypatch, ANSWER)
    assert kept_knowledge(probed(), tmp_path) is None
    knows, warning = spack_knowledge(probed(), tmp_path)
    assert knows is not None and knows.package("mpich") is not None and warning == ""
    age(tmp_path, 10**6)
    assert spack_knowledge(probed(), tmp_path) == (knows, "") and image.asked == 1
    assert kept_knowledge(probed(), tmp_path) == knows
    spack_knowledge(probed(digest="sha256:2"), tmp_path)
    spack_knowledge(probed(platform="linux/arm64"), tmp_path)
    assert image.asked == 3


def test_one_that_had_no_time_is_asked_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = FakeImage(monkeypatch, PARTIAL)
    spack_knowledge(probed(), tmp_path)
    assert spack_knowledge(probed(), tmp_path)[0] is not None and image.asked == 1
    age(tmp_path, asking.RETRY_S + 1)
    image.answer = ANSWER
    knows, _ = spack_knowledge(probed(), tmp_path)
    assert knows is not None and knows.has_all_packages and image.asked == 2


@pytest.mark.parametrize("answer", [None, "", "==> Error: python\n", "cic-spack-knowledge {}"])
def test_one_that_does_not_answer_is_told_and_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    image = FakeImage(monkeypatch, answer)
    for _ in range(3):
        knows, warning = spack_knowledge(probed(), tmp_path)
        assert knows is None and "could not be found out" in warning
    assert image.asked == 1
    age(tmp_path, asking.RETRY_S + 1)
    image.answer = ANSWER
    assert spack_knowledge(probed(), tmp_path)[0] is not None


@pytest.mark.parametrize("facts", [{"spack_version": None}, {"digest": None}, {"is_here": False}])
def test_what_cannot_answer_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]
) -> None:
    image = FakeImage(monkeypatch, ANSWER)
    unknown = BaseFacts(**{**vars(probed()), **facts})
    assert spack_knowledge(unknown, tmp_path) == (None, "") and image.asked == 0


def test_a_kept_file_that_is_broken_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = FakeImage(monkeypatch, ANSWER)
    spack_knowledge(probed(), tmp_path)
    (kept,) = tmp_path.glob("*.json.gz")
    kept.write_bytes(b"torn")
    assert kept_knowledge(probed(), tmp_path) is None
    assert spack_knowledge(probed(), tmp_path)[0] is not None and image.asked == 2
