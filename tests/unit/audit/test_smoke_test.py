"""The smoke command: how it is started, and what becomes of its end. The daemon and its containers
are not used.
"""

from __future__ import annotations

import pytest

from image_builder.audit import smoke_test
from image_builder.audit.smoke_test import run_smoke, smoke_container
from image_builder.docker import container, daemon
from image_builder.errors import CicError, ErrorCode, LimitReached
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed, LineSink, ProcessFailed
from tests.support.planning import machine

WORDS = ("python3", "--version")


def test_it_is_started_as_a_user_would_and_with_no_rights() -> None:
    made = smoke_container(
        "sha256:abc",
        ("-x", "a b"),
        platform="linux/arm64",
        step_id="solver",
        timeout_s=7,
        cpus=2,
        cgroup="/steps",
    )
    command = container.run_command(made, name="n", tag="t")
    assert command.argv == (
        "docker",
        "run",
        "--name=n",
        "--label=cic-container=t",
        "--platform=linux/arm64",
        "--pull=never",
        "--log-driver=none",
        "--network=none",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--memory=4294967296",
        "--pids-limit=1024",
        "--cpus=2",
        "--cgroup-parent=/steps",
        "--user=1000:1000",
        "--read-only",
        "--tmpfs=/tmp:rw,exec,mode=1777",
        "--env=HOME=/tmp",
        "--workdir=/solver",
        "sha256:abc",
        "-x",
        "a b",
    )
    assert command.timeout_s == 7


class FakeRunner:
    """Says some lines, and ends as it is told."""

    def __init__(self, end: CicError | int) -> None:
        self.end = end

    def __call__(
        self,
        command: Command,
        *,
        on_line: LineSink | None = None,
        cancel: CancelToken | None = None,
        capture_stdout: bool = False,
    ) -> Completed:
        assert on_line is not None
        for number in range(50):
            on_line(f"line {number}")
        if isinstance(self.end, CicError):
            raise self.end
        if self.end:
            raise ProcessFailed(command, self.end, ["line 49"])
        return Completed(tail=())


def run(end: CicError | int) -> list[str]:
    heard: list[str] = []
    run_smoke(
        "sha256:abc",
        WORDS,
        machine=machine(),
        step_id="solver",
        timeout_s=5,
        cpus=1,
        cgroup=None,
        runner=FakeRunner(end),
        on_line=heard.append,
        cancel=CancelToken(),
    )
    return heard


@pytest.fixture(autouse=True)
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The containers that were removed, in place of a daemon."""
    names: list[str] = []
    monkeypatch.setattr(daemon, "remove_container", names.append)
    return names


def test_a_command_that_works_says_what_it_says(removed: list[str]) -> None:
    assert len(run(0)) == 50
    assert len(removed) == 1 and removed[0].startswith("cic-")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (3, ErrorCode.SMOKE_FAILED),
        (-9, ErrorCode.SMOKE_FAILED),
        (LimitReached("too long"), ErrorCode.SMOKE_FAILED),
        (LimitReached("too much", code=ErrorCode.LOG_TOO_LARGE), ErrorCode.LOG_TOO_LARGE),
        (smoke_test.DOCKERS_OWN_FAILURE, ErrorCode.DOCKER_UNAVAILABLE),
    ],
)
def test_how_it_ends(end: CicError | int, code: ErrorCode, removed: list[str]) -> None:
    with pytest.raises(CicError) as caught:
        run(end)
    assert caught.value.code is code
    assert len(removed) == 1
    if code is ErrorCode.SMOKE_FAILED:
        assert getattr(caught.value, "excerpt", ())[-1] == "line 49"


def test_what_this_host_cannot_execute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke_test.host_cpu, "host_warning", lambda target: "too new")
    monkeypatch.setattr(smoke_test.host_cpu, "is_emulated", lambda target: False)
    reason = smoke_test.incompatibility(
        "sha256:abc", machine(), runner=FakeRunner(0), cancel=CancelToken(), cgroup=None
    )
    assert reason == "too new"
