"""What a base image contains, as it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.docker import base_image
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.settings import RegistrySettings


class TestProbe:
    ANSWER = (
        "os=debian\nos_version=12\ncompiler=gcc:12.2.0\ncompiler=clang:14.0.6\npython=3.11.2\n"
        "spack=0.23.1 (2bfcc69fa870d3c6919be87593f22647981b648a)\ndpkg=yes\n"
    )

    @pytest.fixture(autouse=True)
    def config(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"WorkingDir": "/data", "Labels": {"site": "=\nhere"}}
        monkeypatch.setattr(base_image, "image_config", lambda reference: config)
        monkeypatch.setattr(base_image, "has_image", lambda reference: True)

    def test_what_an_answer_means(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: list[str] = []

        def fake_probe(reference: str, platform: str, script: str, **_: object) -> str:
            asked.append(reference)
            return self.ANSWER

        monkeypatch.setattr(base_image, "run_probe", fake_probe)
        for _ in range(2):
            facts = base_image.probe_base("base:1", "sha256:12", "linux/amd64", tmp_path / "cache")
            assert (facts.os_id, facts.os_version, facts.python) == ("debian", "12", "3.11.2")
            assert facts.compilers == {"gcc": "12.2.0", "clang": "14.0.6"}
            assert facts.spack_version == (0, 23, 1) and facts.has_dpkg
            assert (facts.folder, facts.labels) == ("/data", {"site": "=\nhere"})
        assert asked == ["base:1"], "what is known of a digest is remembered"
        base_image.probe_base("base:1", "sha256:12", "linux/arm64", tmp_path / "cache")
        base_image.probe_base("base:1", None, "linux/amd64", tmp_path / "cache")
        assert len(asked) == 3

    @pytest.mark.parametrize(
        "answer", ["", "os=\nos_version=\nspack=\npython=\n", "spack=command not found\nnoise\n"]
    )
    def test_a_base_that_says_little(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
    ) -> None:
        monkeypatch.setattr(base_image, "run_probe", lambda *_, **__: answer)
        facts = base_image.probe_base("base:1", "sha256:12", "linux/amd64", tmp_path)
        assert (facts.spack_version, facts.python, facts.compilers) == (None, None, {})
        assert not facts.has_dpkg

    @pytest.mark.parametrize(
        ("reference", "version"),
        [
            ("ghcr.io/eflows4hpc/spack_base:0.19.2", (0, 19, 2)),
            ("host:5000/spack_base", None),
            ("debian:12.1", None),
            ("spack_base:1.1@sha256:00", (1, 1)),
            ("spack_base:latest", None),
        ],
    )
    def test_a_base_that_cannot_be_asked_is_guessed(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        reference: str,
        version: tuple[int, ...] | None,
    ) -> None:
        def fake_probe(*_: object, **__: object) -> str:
            raise BaseImageUnavailable("It does not run here.")

        monkeypatch.setattr(base_image, "run_probe", fake_probe)
        facts, warning = base_image.facts_or_guess(reference, "sha256:12", "linux/amd64", tmp_path)
        assert facts.spack_version == version
        assert "It does not run here" in warning
        assert list(tmp_path.iterdir()) == [], "a guess is not remembered"

    def test_a_web_request_pulls_nothing_and_the_build_does(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        pulled: list[str] = []
        monkeypatch.setattr(base_image, "has_image", lambda reference: reference in pulled)
        monkeypatch.setattr(
            base_image, "pull", lambda reference, *_, **__: pulled.append(reference)
        )
        monkeypatch.setattr(base_image, "run_probe", lambda *_, **__: self.ANSWER)
        asked = ("spack_base:0.23.1", "sha256:12", "linux/amd64", tmp_path / "cache")
        facts, warning = base_image.facts_or_guess(*asked)
        assert not facts.is_here and "when the build begins" in warning and not pulled
        assert facts.spack_version == (0, 23, 1)
        facts, warning = base_image.facts_or_guess(*asked, pull_from=RegistrySettings())
        assert facts.is_here and facts.os_id == "debian" and not warning
        facts, warning = base_image.facts_or_guess(*asked)
        assert facts.os_id == "debian" and pulled == [asked[0]]
