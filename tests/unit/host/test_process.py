"""Processes: real ones, how they end, and what is heard of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_builder.errors import Cancelled, ErrorCode, Interrupted, LimitReached, ToolMissing
from image_builder.host import process, process_guard
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, ProcessFailed, run, started
from image_builder.host.secrets import Secret
from tests.conftest import PROJECT

LONG_S = 600
"""Longer than any test: what lasts this long was ended by somebody."""


def shell(script: str, **options: object) -> Command:
    return Command(name="the test", argv=("sh", "-c", script), **options)  # type: ignore[arg-type]


def python(code: str, **options: object) -> Command:
    return Command(name="the test", argv=(sys.executable, "-c", code), **options)  # type: ignore[arg-type]


def lines_of(command: Command, **options: object) -> list[str]:
    heard: list[str] = []
    run(command, on_line=heard.append, **options)  # type: ignore[arg-type]
    return heard


def is_running(pid: int) -> bool:
    """Whether a process lives; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def mark_of(pid: int) -> str:
    """What a command's processes are found by."""
    return dict(process_guard._marks())[pid]


def marked(mark: str) -> list[int]:
    return [pid for pid, found in process_guard._marks() if found == mark]


def alone_in_their_session(mark: str) -> list[int]:
    """The `sleep` processes with this mark that lead a session."""
    return [
        pid
        for pid in marked(mark)
        if os.getsid(pid) == pid
        and b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:1]
    ]


def eventually(what: Callable[[], bool]) -> bool:
    """Wait until `what` is true; False if it is not after a minute."""
    end = time.monotonic() + 60
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class TestEnds:
    def test_exit_code_0_is_success_whatever_the_output_says(self) -> None:
        done = run(shell("echo error: failed; echo more >&2"))
        assert done.tail == ("error: failed", "more")
        assert done.stdout == b""

    def test_another_exit_code_is_a_failure_with_its_last_line(self) -> None:
        with pytest.raises(
            ProcessFailed, match=r"the test ended with exit code 7. Its last line: all"
        ) as caught:
            run(shell("echo all is well; echo; exit 7"))
        assert (caught.value.exit_code, caught.value.tail) == (7, ("all is well", ""))

    def test_a_crash_is_a_failure(self) -> None:
        with pytest.raises(ProcessFailed, match="was ended by signal 11"):
            run(shell("kill -SEGV $$"))

    @pytest.mark.parametrize("signal", ["KILL", "TERM", "INT", "HUP"])
    def test_who_is_ended_by_others_has_not_failed(self, signal: str) -> None:
        with pytest.raises(Interrupted, match="the test was ended from outside") as caught:
            run(shell(f"kill -{signal} $$"))
        assert caught.value.code is ErrorCode.INTERRUPTED

    def test_a_missing_program(self) -> None:
        with pytest.raises(ToolMissing, match="no-such-program is not installed") as caught:
            run(Command(name="x", argv=("no-such-program", "-v")))
        assert caught.value.code is ErrorCode.TOOL_MISSING

    def test_a_file_that_is_no_program(self, tmp_path: Path) -> None:
        file = tmp_path / "plain"
        file.write_text("text")
        with pytest.raises(ToolMissing, match="not executable"):
            run(Command(name="x", argv=(str(file),)))

    def test_a_missing_folder_is_not_a_missing_program(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            run(shell("true", cwd=tmp_path / "nowhere"))

    def test_arguments_do_not_pass_a_shell(self) -> None:
        assert lines_of(Command(name="x", argv=("printf", "%s\\n", "$(id); `id` $HOME *"))) == [
            "$(id); `id` $HOME *"
        ]

    def test_its_printing_leaves_out_the_environment(self) -> None:
        command = shell(
            "true", env={"KEY": "canary"}, stdin=Secret("canary"), secrets=(Secret("canary"),)
        )
        assert "canary" not in f"{command} {command!r}"


class TestOutput:
    def test_lines_come_while_the_process_runs(self, tmp_path: Path) -> None:
        """It goes on only after its first line was heard."""
        go = tmp_path / "go"
        heard: list[str] = []

        def hear(line: str) -> None:
            heard.append(line)
            go.touch()

        run(
            shell(f"echo first; while [ ! -e '{go}' ]; do sleep 0.02; done; echo second"),
            on_line=hear,
        )
        assert heard == ["first", "second"]

    def test_both_streams_in_order(self) -> None:
        assert lines_of(shell("echo a; echo b >&2; echo c")) == ["a", "b", "c"]

    def test_captured_output_is_whole_and_not_heard(self) -> None:
        heard: list[str] = []
        code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096); print('said', file=sys.stderr)"
        done = run(python(code), on_line=heard.append, capture_stdout=True)
        assert done.stdout == bytes(range(256)) * 4096
        assert heard == ["said"]

    @pytest.mark.parametrize(
        ("written", "heard"),
        [
            (r"10\r50\r100\n", ["10", "50", "100"]),
            (r"a\r\nb\n", ["a", "b"]),
            (r"a\r", ["a"]),
            (r"no line end", ["no line end"]),
            (r"a\n\nb", ["a", "", "b"]),
            (r"", []),
        ],
    )
    def test_line_ends(self, written: str, heard: list[str]) -> None:
        assert lines_of(shell(f"printf '{written}'")) == heard

    def test_a_line_end_that_two_reads_tear_apart_is_one(self) -> None:
        """The second half is written only after the first was heard."""

        class Gate:
            def __init__(self) -> None:
                self.heard: list[str] = []
                self.read, self.write = os.pipe()

            def __call__(self, line: str) -> None:
                self.heard.append(line)
                os.write(self.write, b"x")

        gate = Gate()
        code = f"import os; os.write(1, b'a\\r'); os.read({gate.read}, 1); os.write(1, b'\\nb\\n')"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process.subprocess, "Popen", _keeping(gate.read))
            run(python(code), on_line=gate)
        os.close(gate.read)
        os.close(gate.write)
        assert gate.heard == ["a", "b"]

    def test_bytes_that_are_no_text(self) -> None:
        assert lines_of(shell(r"printf 'a\377b\n'")) == ["a\N{REPLACEMENT CHARACTER}b"]

    def test_an_endless_line_comes_in_pieces(self) -> None:
        heard = lines_of(python("import sys; sys.stdout.write('x' * 1_000_000)"))
        assert len(heard) > 1
        assert "".join(heard) == "x" * 1_000_000

    def test_the_tail_is_short_and_the_last(self) -> None:
        tail = run(shell("seq 1000")).tail
        assert tail == tuple(map(str, range(1001 - process.TAIL_LINES, 1001)))

    def test_an_error_of_who_listens_ends_the_process(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"

        def full(_: str) -> None:
            raise LimitReached("too much")

        with pytest.raises(LimitReached, match="too much"):
            run(shell(f"echo $$ > '{pid_file}'; echo x; exec sleep {LONG_S}"), on_line=full)
        assert not is_running(int(pid_file.read_text()))


def _keeping(descriptor: int) -> Callable[..., subprocess.Popen[bytes]]:
    """The real Popen, which hands one more file descriptor to the child."""
    popen = subprocess.Popen

    def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        return popen(*arguments, pass_fds=(descriptor,), **options)  # type: ignore[call-overload,no-any-return]

    return start


class TestSecrets:
    CANARY = "canary-7f3a91"

    def heard(self, code: str, *secrets: str) -> str:
        command = python(
            code, stdin=Secret("\n".join(secrets)), secrets=tuple(map(Secret, secrets))
        )
        return "\n".join(lines_of(command))

    def test_they_are_blotted_out_of_lines_and_errors(self) -> None:
        heard: list[str] = []
        with pytest.raises(ProcessFailed) as caught:
            run(
                shell(
                    "read s; echo token=$s.; exit 1",
                    stdin=Secret(self.CANARY),
                    secrets=(Secret(self.CANARY),),
                ),
                on_line=heard.append,
            )
        assert heard == ["token=[hidden]."]
        assert self.CANARY not in f"{caught.value} {caught.value.tail}"

    def test_a_secret_that_is_written_in_two_goes(self) -> None:
        code = "import os, time; s = input()\nfor c in s + '\\n': os.write(1, c.encode()); time.sleep(0.01)"
        assert self.heard(code, self.CANARY) == "[hidden]"

    @pytest.mark.parametrize(
        "before", [process.MAX_LINE_BYTES + shift for shift in (-14, -7, -1, 0, 1, 7, 13, 14, 27)]
    )
    def test_a_secret_where_an_endless_line_is_cut(self, before: int) -> None:
        """Wherever the cut falls, no part of the secret of more than a few letters is heard."""
        code = (
            f"import os, time; s = input().encode()\nos.write(1, b'x' * {before} + s[:5]); time.sleep(0.2)\n"
            f"os.write(1, s[5:] + b'y' * 70000)"
        )
        heard = self.heard(code, self.CANARY).replace("\n", "")
        assert heard == "x" * before + "[hidden]" + "y" * 70_000

    def test_one_that_holds_another_goes_first(self) -> None:
        assert self.heard("print(input())", self.CANARY + "-long", self.CANARY) == "[hidden]"

    def test_each_line_of_one_with_several(self) -> None:
        assert self.heard(
            "print(input()); print('a', input())", "first-line-of-key\nsecond-line-of-key\nab"
        ) == ("[hidden]\na [hidden]")

    def test_an_empty_one_blots_nothing(self) -> None:
        assert self.heard("print('text')", "") == "text"

    def test_standard_input_is_closed_where_none_is_given(self) -> None:
        assert lines_of(python("import sys; print(repr(sys.stdin.read()))")) == ["''"]

    def test_a_large_input_that_nobody_reads_is_no_obstacle(self) -> None:
        assert lines_of(shell("echo done", stdin=b"x" * 5_000_000)) == ["done"]

    def test_our_own_settings_are_not_inherited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CIC_SECRET_KEY", "canary")
        monkeypatch.setenv("HARMLESS", "here")
        heard = lines_of(Command(name="env", argv=("env",), env={"CIC_GIVEN": "on purpose"}))
        assert "HARMLESS=here" in heard
        assert [line for line in heard if line.startswith("CIC_")] == ["CIC_GIVEN=on purpose"]


class TestLimits:
    def test_time(self) -> None:
        with pytest.raises(LimitReached, match="the test took longer than") as caught:
            run(
                shell("while :; do echo x; sleep 0.05; done", timeout_s=0.5, quiet_timeout_s=LONG_S)
            )
        assert caught.value.code is ErrorCode.TIMEOUT

    def test_quiet_time(self) -> None:
        with pytest.raises(LimitReached, match="wrote nothing for") as caught:
            run(shell(f"echo x; sleep {LONG_S}", timeout_s=LONG_S, quiet_timeout_s=0.5))
        assert caught.value.code is ErrorCode.QUIET_TIMEOUT

    def test_time_of_several_commands(self) -> None:
        cancel = CancelToken()
        with cancel.limited(0.5, ErrorCode.TOTAL_TIMEOUT):
            run(shell("true"), cancel=cancel)
            with pytest.raises(LimitReached, match="in all") as caught:
                run(shell(f"sleep {LONG_S}"), cancel=cancel)
        assert caught.value.code is ErrorCode.TOTAL_TIMEOUT

    def test_who_is_done_in_time_is_not_ended(self) -> None:
        cancel = CancelToken()
        with cancel.limited(0.3, ErrorCode.TOTAL_TIMEOUT):
            run(shell("true"), cancel=cancel)
        assert not cancel.wait(0.6)

    def test_quiet_time_counts_from_the_last_output(self) -> None:
        assert (
            lines_of(
                shell("for i in 1 2 3 4 5 6; do sleep 0.3; echo $i; done", quiet_timeout_s=1.5)
            )[-1]
            == "6"
        )

    def test_time_holds_for_a_process_that_closed_its_output(self) -> None:
        with pytest.raises(LimitReached):
            run(shell(f"exec >&- 2>&-; sleep {LONG_S}", timeout_s=0.5))

    @pytest.mark.parametrize(
        "left_behind", [f"sleep {LONG_S}", "while :; do echo tick; sleep 0.1; done", "yes"]
    )
    def test_who_is_left_behind_with_the_output_open_is_not_waited_for(
        self, left_behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "GRACE_S", 0.5)
        monkeypatch.setattr(process, "ORPHAN_S", 1.0)
        pid_file = tmp_path / "pid"
        heard = lines_of(shell(f"echo main; ({left_behind}) & echo $! > '{pid_file}'"))
        assert "main" in heard
        assert eventually(lambda: not is_running(int(pid_file.read_text())))


class TestCancel:
    def test_it_ends_grandchildren_too(self, tmp_path: Path) -> None:
        cancel = CancelToken()
        pids = tmp_path / "pids"
        script = (
            f'sh -c \'sleep {LONG_S} & echo $! >> "{pids}"; trap "" TERM; echo $$ >> "{pids}"; echo up; '
            f"while :; do sleep 1; done' & echo $$ >> '{pids}'; wait"
        )
        heard: list[str] = []

        def hear(line: str) -> None:
            heard.append(line)
            cancel.cancel("Somebody said so.")

        with pytest.raises(Cancelled, match="Somebody said so"):
            run(shell(script), on_line=hear, cancel=cancel)
        assert heard == ["up"]
        family = [int(pid) for pid in pids.read_text().split()]
        assert len(family) == 3
        assert eventually(lambda: not any(map(is_running, family)))

    def test_from_another_thread_while_nothing_is_written(self) -> None:
        cancel = CancelToken()
        timer = threading.Timer(0.3, cancel.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            run(shell(f"sleep {LONG_S}"), cancel=cancel)
        timer.join()

    def test_before_the_start(self) -> None:
        cancel = CancelToken()
        cancel.cancel()
        with pytest.raises(Cancelled):
            run(shell(f"sleep {LONG_S}"), cancel=cancel)

    def test_the_first_reason_stays(self) -> None:
        cancel = CancelToken()
        assert not cancel.is_set
        cancel.cancel("first")
        cancel.cancel("second")
        with pytest.raises(Cancelled, match="first"):
            cancel.check()
        assert cancel.wait(0)


class TestEscapes:
    """A process that left the group for a session of its own."""

    ESCAPE = f"setsid sh -c 'sleep {LONG_S} & echo $$ $!; wait' & sleep 0.2"

    def test_it_ends_with_the_command(self) -> None:
        pids = [int(pid) for line in lines_of(shell(self.ESCAPE)) for pid in line.split()]
        assert len(pids) == 2
        assert not any(map(is_running, pids))

    def test_it_ends_with_a_cancelled_command(self) -> None:
        cancel, heard = CancelToken(), []

        def hear(line: str) -> None:
            heard.extend(map(int, line.split()))
            cancel.cancel()

        with pytest.raises(Cancelled):
            run(shell(f"{self.ESCAPE}; sleep {LONG_S}"), on_line=hear, cancel=cancel)
        assert heard
        assert not any(map(is_running, heard))

    def test_other_commands_are_left_alone(self) -> None:
        with started(shell(f"setsid sleep {LONG_S} & echo; wait"), stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            mark = mark_of(other.pid)
            assert eventually(lambda: bool(alone_in_their_session(mark)))
            run(shell(self.ESCAPE))
            assert all(map(is_running, [other.pid, *alone_in_their_session(mark)]))


class TestPipelines:
    def test_leaving_the_block_ends_the_group(self, tmp_path: Path) -> None:
        with started(shell(f"sleep {LONG_S} & wait"), stdout=subprocess.DEVNULL) as child:
            assert child.pid == os.getpgid(child.pid) != os.getpgid(0)
        assert child.returncode is not None

    def test_one_process_feeds_another(self) -> None:
        with (
            started(shell("seq 3"), stdout=subprocess.PIPE) as first,
            started(shell("sort -r"), stdin=first.stdout, stdout=subprocess.PIPE) as second,
        ):
            assert second.stdout is not None
            assert second.stdout.read().split() == [b"3", b"2", b"1"]


OWNER = """
import os, signal, sys
from image_builder.host import process
from image_builder.host.process import Command, run
if sys.argv[2] == "without its guard":
    def hear(line):
        os.kill(process._guard._process.pid, signal.SIGKILL)
        process._guard._process.wait()
        run(Command(name="another", argv=("true",)))
        print(line, flush=True)
elif sys.argv[2] == "forked":
    run(Command(name="before the fork", argv=("true",)))
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        sys.exit()
    def hear(line):
        print(f"{line} {os.getpid()}", flush=True)
else:
    def hear(line):
        print(line, flush=True)
run(Command(name="x", argv=("sh", "-c", sys.argv[1])), on_line=hear)
"""


@contextlib.contextmanager
def owner_of(script: str, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process of its own that runs `script` through `run`."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, script, how], cwd=PROJECT, stdout=subprocess.PIPE
    ) as owner:
        try:
            yield owner
        finally:
            owner.kill()


def guards_of(owner: int) -> list[int]:
    """The guards among a process's children."""
    children = Path(f"/proc/{owner}/task/{owner}/children").read_text().split()
    return [
        int(child)
        for child in children
        if process_guard.__file__.encode() in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


class TestGuard:
    @pytest.mark.parametrize("how", ["as it is", "without its guard", "forked"])
    def test_it_ends_what_a_killed_owner_leaves(self, how: str) -> None:
        """Also after the guard itself was killed and replaced, and in a process that was forked
        off.
        """
        with owner_of(f"sleep {LONG_S} & echo $$ $!; wait", how) as owner:
            assert owner.stdout is not None
            leader, child, *forked = map(int, owner.stdout.readline().split())
            assert is_running(leader) and is_running(child)
            os.kill(forked[0] if forked else owner.pid, signal.SIGKILL)
            assert eventually(lambda: not is_running(leader) and not is_running(child))

    def test_it_ends_what_made_a_session_of_its_own(self) -> None:
        with owner_of(f"setsid sleep {LONG_S} & echo $$ $!; wait", "as it is") as owner:
            assert owner.stdout is not None
            leader, _ = map(int, owner.stdout.readline().split())
            mark = mark_of(leader)
            assert eventually(lambda: len(alone_in_their_session(mark)) == 1)
            os.kill(owner.pid, signal.SIGKILL)
            assert eventually(lambda: not marked(mark))

    def test_what_a_dead_owner_and_its_dead_guard_left_is_ended_later(self) -> None:
        script = f"sleep {LONG_S} & echo $$ $!; wait"
        with owner_of(script, "as it is") as dead, owner_of(script, "as it is") as alive:
            assert dead.stdout is not None and alive.stdout is not None
            orphans, others = (
                [*map(int, owner.stdout.readline().split())]
                for owner in (dead, alive)
                if owner.stdout
            )
            assert eventually(lambda: bool(guards_of(dead.pid)))
            os.kill(guards_of(dead.pid)[0], signal.SIGKILL)
            dead.kill()
            dead.wait()
            assert all(map(is_running, orphans))
            process_guard.end_orphans()
            assert eventually(lambda: not any(map(is_running, orphans)))
            assert all(map(is_running, others)), "their owner lives"

    def test_it_goes_when_its_owner_goes(self) -> None:
        code = (
            "from image_builder.host import process\nfrom image_builder.host.process import Command, run\n"
            "run(Command(name='x', argv=('true',)))\nprint(process._guard._process.pid)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, check=True
        )
        assert eventually(lambda: not is_running(int(ended.stdout)))
