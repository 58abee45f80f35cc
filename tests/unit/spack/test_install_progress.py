"""How far an install is, read from Spack's lines, and what a base image's answers mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_builder.docker import base_image, daemon
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.spack.install_progress import InstallProgress, packages_to_install
from tests.conftest import DATA

HASH = "abcdefghijklmnopqrstuvwxyz234567"


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (f"==> Installing openmpi-4.1.6-{HASH} [3/9]", (0, 9, "openmpi@4.1.6")),
        (
            f"[+] /opt/spack/linux-debian12-zen2/gcc-12.2.0/openmpi-4.1.6-{HASH}",
            (1, 9, "openmpi@4.1.6"),
        ),
        (f"#12 34.5 [+] /opt/software/py-mpi4py-3.1.4-{HASH}", (1, 9, "py-mpi4py@3.1.4")),
        (f"[+] /opt/x/exageostat-master-{HASH} (fetched)", (1, 9, "exageostat@master")),
        (f"[e] /usr (external openmpi-4.1.4-{HASH})", None),
        ("==> openmpi: Executing phase: 'install'", None),
        ("", None),
    ],
)
def test_what_a_line_tells(line: str, heard: tuple[int, int, str] | None) -> None:
    assert InstallProgress(9).heard(line) == heard


def test_a_package_counts_once_and_never_beyond_the_total() -> None:
    progress = InstallProgress(2)
    lines = [f"[+] /opt/{name}-1.0-{HASH}" for name in ("a", "a", "b", "c")]
    assert [heard[0] for line in lines if (heard := progress.heard(line))] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "file", sorted((DATA / "locks").glob("*openmpi-haswell.json")), ids=lambda file: file.stem
)
def test_externals_are_not_installed(file: Path) -> None:
    lock = json.loads(file.read_text())
    count = packages_to_install(lock)
    externals = [node for node in lock["concrete_specs"].values() if node.get("external")]
    assert count == len(lock["concrete_specs"]) - len(externals)
    assert externals and count


def test_an_image_without_spack_installs_nothing() -> None:
    assert packages_to_install({}) == 0


class TestProbe:
    ANSWER = (
        "os=debian\nos_version=12\ncompiler=gcc:12.2.0\ncompiler=clang:14.0.6\npython=3.11.2\n"
        "spack=0.23.1 (2bfcc69fa870d3c6919be87593f22647981b648a)\n"
    )

    @pytest.fixture(autouse=True)
    def config(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"WorkingDir": "/data", "Labels": {"site": "=\nhere"}}
        monkeypatch.setattr(daemon, "image_config", lambda reference: config)

    def test_what_an_answer_means(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: list[str] = []

        def fake_probe(reference: str, platform: str, script: str) -> str:
            asked.append(reference)
            return self.ANSWER

        monkeypatch.setattr(daemon, "run_probe", fake_probe)
        for _ in range(2):
            facts = base_image.probe_base("base:1", "sha256:12", "linux/amd64", tmp_path / "cache")
            assert (facts.os_id, facts.os_version, facts.python) == ("debian", "12", "3.11.2")
            assert facts.compilers == {"gcc": "12.2.0", "clang": "14.0.6"}
            assert facts.spack_version == (0, 23, 1)
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
        monkeypatch.setattr(daemon, "run_probe", lambda *_: answer)
        facts = base_image.probe_base("base:1", "sha256:12", "linux/amd64", tmp_path)
        assert (facts.spack_version, facts.python, facts.compilers) == (None, None, {})

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
        def fake_probe(*_: str) -> str:
            raise BaseImageUnavailable("It does not run here.")

        monkeypatch.setattr(daemon, "run_probe", fake_probe)
        facts, warning = base_image.facts_or_guess(reference, "sha256:12", "linux/amd64", tmp_path)
        assert facts.spack_version == version
        assert "It does not run here" in warning
        assert list(tmp_path.iterdir()) == [], "a guess is not remembered"
