"""Conversion's arguments, its way back to `build`, and what its failures say."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from image_builder.errors import (
    Cancelled,
    ErrorCode,
    LimitReached,
    NoSpace,
    ServiceError,
    ToolMissing,
)
from image_builder.host import sudo
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed, LineSink, ProcessFailed
from image_builder.sif import convert, flow, oci_layout, streaming
from image_builder.sif.convert import ConversionFailed
from image_builder.sif.docker_export import NotStreamable
from tests.support.planning import build_settings as site


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `build` unpacks is an empty folder: the programs here are fakes."""
    monkeypatch.setattr(oci_layout, "write", lambda image, folder, **_: folder.mkdir())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, with programs that do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    convert.takes_mksquashfs_arguments.cache_clear()
    return folder


def install(folder: Path, *names: str, script: str = "") -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def test_the_build_is_one_list_of_arguments(installed: Path) -> None:
    install(installed, "apptainer", script="echo '  --mksquashfs-args string   extra arguments'")
    program = convert.program()
    command = convert.build_command(
        program,
        "docker-daemon:sha256:abc",
        Path("/s/made.sif"),
        scratch=Path("/work/b"),
        platform="linux/arm64",
        settings=site(),
        time_s=7,
    )
    assert command.argv == (
        program,
        "build",
        "--force",
        "--arch",
        "arm64",
        "--mksquashfs-args",
        "-comp zstd -Xcompression-level 3",
        "/s/made.sif",
        "docker-daemon:sha256:abc",
    )
    assert command.env == {
        "APPTAINER_TMPDIR": "/work/b",
        "APPTAINER_CACHEDIR": "/work/b",
        "SINGULARITY_TMPDIR": "/work/b",
        "SINGULARITY_CACHEDIR": "/work/b",
        "SOURCE_DATE_EPOCH": "7",
    }
    assert command.timeout_s == site().convert_timeout_s


def test_an_old_singularity_is_not_told_how_to_compress(installed: Path) -> None:
    install(installed, "singularity")
    command = convert.build_command(
        convert.program(),
        "docker-daemon:x",
        Path("/s/made.sif"),
        scratch=Path("/w"),
        platform="linux/amd64",
        settings=site(),
        time_s=7,
    )
    assert command.argv[1:] == (
        "build",
        "--force",
        "--arch",
        "amd64",
        "/s/made.sif",
        "docker-daemon:x",
    )


def test_sudo_hands_the_environment_on_and_asks_for_no_password() -> None:
    made = sudo.arguments(
        ("/usr/bin/singularity", "build"), leave=Path("/w/leave"), environment={"B": "2", "A": "1"}
    )
    assert made[:7] == ("sudo", "-n", "env", "A=1", "B=2", "sh", "-c")
    assert made[8:] == ("cic", "/w/leave", str(os.getpid()), "/usr/bin/singularity", "build")


FAKE_SUDO = 'if [ "$2" = chown ]; then exit 0; fi; shift; exec setsid --wait "$@"'
"""Stands for sudo: what it runs is in another session, where our signals do not reach it."""


@pytest.fixture
def fake_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    install(folder, "sudo", script=FAKE_SUDO)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return folder


def test_what_root_runs_ends_as_it_ends(fake_sudo: Path, tmp_path: Path) -> None:
    install(fake_sudo, "apptainer", script="echo broken as root >&2; exit 7")
    with pytest.raises(ServiceError, match="broken as root"):
        convert.convert(
            "x:1",
            tmp_path / "out.sif",
            platform="linux/amd64",
            settings=site(sif_compressor="lz4", singularity_sudo=True),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"programs"}


@pytest.mark.slow
@pytest.mark.parametrize("why", ["cancel", "timeout"])
def test_what_root_runs_ends_when_we_want_it_to(fake_sudo: Path, tmp_path: Path, why: str) -> None:
    note = tmp_path / "note"
    install(
        fake_sudo,
        "apptainer",
        script=f'[ "$2" = --help ] && exit; echo $$ > {note}; exec sleep 600',
    )
    cancel = CancelToken()

    def cancel_when_it_runs() -> None:
        while not (note.exists() and note.read_text().strip()):
            time.sleep(0.01)
        cancel.cancel("enough")

    thread = threading.Thread(target=cancel_when_it_runs if why == "cancel" else lambda: None)
    thread.start()
    limit_s = 600 if why == "cancel" else 1.5
    with pytest.raises(Cancelled if why == "cancel" else LimitReached):
        convert.convert(
            "x:1",
            tmp_path / "out.sif",
            platform="linux/amd64",
            cancel=cancel,
            settings=site(sif_compressor="lz4", singularity_sudo=True, convert_timeout_s=limit_s),
        )
    thread.join()
    ended = Path("/proc", note.read_text().strip())
    for _ in range(600):  # its end is root's own business: it follows ours by a moment
        if not ended.exists():
            break
        time.sleep(0.1)
    assert not ended.exists()


@pytest.mark.parametrize(
    ("user", "asked", "needed"),
    [(0, True, False), (0, False, False), (1000, True, True), (1000, False, False)],
)
def test_sudo_is_nothing_when_already_root(
    user: int, asked: bool, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert convert.needs_sudo(site(singularity_sudo=asked)) is needed


@pytest.mark.parametrize(
    ("keys", "mksquashfs", "tar2sqfs"),
    [
        (
            {},
            "-comp zstd -Xcompression-level 3",
            ("--compressor", "zstd", "--comp-extra", "level=3"),
        ),
        (
            {"sif_compression_level": 15},
            "-comp zstd -Xcompression-level 15",
            ("--compressor", "zstd", "--comp-extra", "level=15"),
        ),
        (
            {"sif_compressor": "gzip"},
            "-comp gzip -Xcompression-level 6",
            ("--compressor", "gzip", "--comp-extra", "level=6"),
        ),
        ({"sif_compressor": "xz", "sif_compression_level": 3}, "-comp xz", ("--compressor", "xz")),
    ],
)
def test_both_ways_compress_alike(
    keys: dict[str, Any], mksquashfs: str, tar2sqfs: tuple[str, ...]
) -> None:
    assert convert.mksquashfs_arguments(site(**keys)) == mksquashfs
    command = flow.squashfs_command(
        Path("/s/x.squashfs"), convert.level(site(**keys)), site(**keys), time_s=7
    )
    assert command.env == {"SOURCE_DATE_EPOCH": "7"}
    assert command.argv == (
        "tar2sqfs",
        "--quiet",
        "--force",
        "--no-skip",
        *tar2sqfs,
        "/s/x.squashfs",
    )


def test_either_name_of_the_program_will_do(installed: Path) -> None:
    with pytest.raises(ToolMissing, match="Neither apptainer nor singularity"):
        convert.program()
    install(installed, "singularity")
    assert convert.program() == str(installed / "singularity")
    install(installed, "apptainer")
    assert convert.program() == str(installed / "apptainer")


def test_missing_programs_for_streaming_are_named(installed: Path) -> None:
    install(installed, "docker", "tar2sqfs", "sqfs2tar")
    with pytest.raises(NotStreamable, match="unsquashfs is not installed"):
        streaming.require_programs()
    install(installed, "unsquashfs")
    streaming.require_programs()


class FakeSingularity:
    """A runner that stands for `singularity build`: it writes what it is given, or fails."""

    def __init__(self, content: bytes | None, *output: str) -> None:
        self.content, self.output = content, output
        self.commands: list[Command] = []

    def __call__(
        self,
        command: Command,
        *,
        on_line: LineSink | None = None,
        cancel: CancelToken | None = None,
        capture_stdout: bool = False,
    ) -> Completed:
        self.commands.append(command)
        if self.content is None:
            raise ProcessFailed(command, 255, self.output)
        if "build" in command.argv:
            Path(command.argv[-2]).write_bytes(self.content)
        return Completed(tail=self.output)


def test_without_the_tools_it_says_so_and_builds(installed: Path, tmp_path: Path) -> None:
    install(installed, "apptainer")
    lines: list[str] = []
    runner = FakeSingularity(b"no SIF at all")
    with pytest.raises(ConversionFailed, match="shorter than a header") as failure:
        convert.convert(
            "sha256:abc",
            tmp_path / "out.sif",
            platform="linux/amd64",
            settings=site(),
            runner=runner,
            on_line=lines.append,
        )
    assert failure.value.code == ErrorCode.CONVERSION_FAILED
    assert "takes longer: docker, tar2sqfs, sqfs2tar, unsquashfs is not installed" in lines[-1]
    assert runner.commands[0].argv[-1] == "oci:image"
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


@pytest.mark.parametrize("compressor", ["lz4", "lzo"])
def test_what_streaming_cannot_compress_is_built(compressor: str, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(ConversionFailed):
        convert.convert(
            "x:1",
            tmp_path / "out.sif",
            platform="linux/amd64",
            on_line=lines.append,
            settings=site(sif_compressor=compressor),
            runner=FakeSingularity(b""),
        )
    assert f"streaming cannot make {compressor}" in lines[-1]


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("sudo: a password is required", "without a password"),
        ("FATAL: something else", ""),
    ],
)
def test_a_failed_build_tells_its_last_line_and_what_to_do(
    output: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionFailed) as failure:
        convert.convert(
            "x:1",
            tmp_path / "out.sif",
            platform="linux/amd64",
            settings=site(sif_compressor="lz4"),
            runner=FakeSingularity(None, output),
        )
    assert output in failure.value.message and hint in failure.value.hint
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    runner = FakeSingularity(None, "FATAL: write /x: no space left on device")
    with pytest.raises(NoSpace) as failure:
        convert.convert(
            "x:1",
            tmp_path / "out.sif",
            platform="linux/amd64",
            settings=site(sif_compressor="lz4"),
            runner=runner,
        )
    assert failure.value.code == ErrorCode.NO_SPACE


def test_the_origin_in_a_sif_is_the_image_and_not_the_empty_archive() -> None:
    renamed = streaming.OriginRewriter("empty.tar", "demo:1", 1_700_000_000)
    assert renamed.in_file(
        ".singularity.d/Singularity", b"bootstrap: docker-archive\nfrom: empty.tar\n\n"
    ) == (b"bootstrap: docker-daemon\nfrom: demo:1\n\n")
    labels = renamed.in_file(
        ".singularity.d/labels.json",
        '{"a": "ü & <b>", "org.label-schema.usage.singularity.deffile.from": "x"}'.encode(),
    )
    assert '"a": "ü & <b>"'.encode() in labels and b'deffile.from": "demo:1"' in labels
    assert b'build-date": "Tuesday_14_November_2023_22:13:20_UTC"' in labels
    assert renamed.in_file("etc/hosts", b"docker-archive") == b"docker-archive"


@pytest.fixture(autouse=True)
def an_apptainer_to_find(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is installed here, the tests find a program of this name."""
    if "installed" not in request.fixturenames and shutil.which("apptainer") is None:
        folder = tmp_path_factory.mktemp("programs")
        install(folder, "apptainer")
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{folder}")
