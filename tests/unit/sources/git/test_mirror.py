"""A mirror that is shared, damaged, cut off and made anew."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from image_builder.errors import Cancelled, ErrorCode, Misconfigured, NoSpace, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.sources.git.mirror import STATE_FILE, Mirror, Repository
from image_builder.sources.git.remote import Network
from image_builder.sources.git.revisions import Versions
from image_builder.sources.git.trees import Limits
from image_builder.sources.git.urls import parse_url
from tests.support.git_repository import GitHttpServer, GitRepository


@pytest.fixture
def upstream(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "upstream")
    for number in range(5):
        repository.write(f"folder/file{number}", f"content {number}\n" * 50)
        repository.commit()
    return repository


def mirror_of(url: str, mirrors: Path, *, timeout_s: float = 300) -> Mirror:
    repository = Repository(
        url=parse_url(url),
        name="workflow registry",
        key="workflow_repository",
        code=ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
    )
    return Mirror(repository, mirrors, Network(timeout_s=timeout_s))


@pytest.fixture
def mirror(upstream: GitRepository, tmp_path: Path) -> Iterator[Mirror]:
    made = mirror_of(upstream.url, tmp_path / "mirrors")
    yield made
    made.close()


def remove_objects(folder: Path) -> None:
    shutil.rmtree(folder / "objects")


def empty_objects(folder: Path) -> None:
    remove_objects(folder)
    (folder / "objects").mkdir()


def cut_packs(folder: Path) -> None:
    for pack in (folder / "objects/pack").glob("*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(pack.read_bytes()[:60])


def spoil_packs(folder: Path) -> None:
    for pack in (folder / "objects/pack").glob("*.pack"):
        pack.chmod(0o600)
        raw = pack.read_bytes()
        pack.write_bytes(raw[:40] + bytes(byte ^ 0xFF for byte in raw[40:-20]) + raw[-20:])


def remove_indexes(folder: Path) -> None:
    for index in (folder / "objects/pack").glob("*.idx"):
        index.unlink()


def remove_state(folder: Path) -> None:
    (folder / STATE_FILE).unlink()


def spoil_state(folder: Path) -> None:
    (folder / STATE_FILE).write_text('{"format": 1, "fetched_at": ')


def other_state(folder: Path) -> None:
    (folder / STATE_FILE).write_text('{"format": 99}')


def remove_head(folder: Path) -> None:
    (folder / "HEAD").unlink()


def leave_locks(folder: Path) -> None:
    (folder / "packed-refs.lock").write_text("")
    for ref in list((folder / "refs/cic").rglob("*")):
        if ref.is_file():
            ref.with_name(ref.name + ".lock").write_text("")


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGES = [
    remove_objects,
    empty_objects,
    cut_packs,
    spoil_packs,
    remove_indexes,
    remove_state,
    spoil_state,
    other_state,
    remove_head,
    leave_locks,
    become_a_file,
    shutil.rmtree,
]


def read_all(mirror: Mirror, *, not_before: float, out: Path) -> str:
    snapshot = mirror.snapshot(not_before=not_before)
    resolved = Versions(mirror).resolve("latest", snapshot)
    assert resolved is not None
    tree = mirror.tree_of(resolved.commit)
    mirror.write(mirror.entries(tree, Limits()), out)
    return resolved.commit


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("moment", ["before a fetch", "before it is read", "while it is open"])
def test_a_damaged_mirror_is_made_anew(
    upstream: GitRepository, mirror: Mirror, tmp_path: Path, damage: object, moment: str
) -> None:
    first = read_all(mirror, not_before=0, out=tmp_path / "first")
    if moment != "while it is open":
        mirror.close()
        mirror = mirror_of(upstream.url, tmp_path / "mirrors")
    damage(mirror.folder)  # type: ignore[operator]
    if moment == "before a fetch":
        upstream.write("folder/new", "new")
        first = upstream.commit()
    not_before = mirror.now() if moment == "before a fetch" else 0
    assert read_all(mirror, not_before=not_before, out=tmp_path / "second") == first
    assert (tmp_path / "second/folder/new").exists() == (moment == "before a fetch")
    assert [item.name for item in (tmp_path / "mirrors").iterdir() if item.is_dir()] == [
        mirror.folder.name
    ]
    mirror.close()


def test_a_damaged_mirror_of_a_registry_that_is_gone_is_unavailable(
    upstream: GitRepository, mirror: Mirror, tmp_path: Path
) -> None:
    read_all(mirror, not_before=0, out=tmp_path / "first")
    spoil_packs(mirror.folder)
    shutil.rmtree(upstream.folder)
    mirror.close()
    with pytest.raises(Unavailable) as failure:
        read_all(
            mirror_of(upstream.url, tmp_path / "mirrors"), not_before=0, out=tmp_path / "second"
        )
    assert failure.value.code is ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE
    assert not (tmp_path / "second").exists()


def test_what_a_killed_process_left_is_cleared(
    upstream: GitRepository, mirror: Mirror, tmp_path: Path
) -> None:
    leftover = tmp_path / "mirrors" / f"{mirror.folder.stem}.aside-half"
    (leftover / "objects").mkdir(parents=True)
    read_all(mirror, not_before=0, out=tmp_path / "out")
    assert not leftover.exists()


def test_a_clock_that_was_set_back_does_not_freeze_the_mirror(
    upstream: GitRepository, tmp_path: Path
) -> None:
    now = [2_000_000.0]
    mirror = Mirror(
        Repository(
            url=parse_url(upstream.url), name="r", key="k", code=ErrorCode.CATALOGUE_UNAVAILABLE
        ),
        tmp_path / "mirrors",
        Network(),
        clock=lambda: now[0],
    )
    before = mirror.recent(30).head
    upstream.commit()
    assert mirror.recent(30).head == before
    now[0] -= 1_000_000
    assert mirror.recent(30).head == upstream.git("rev-parse", "HEAD") != before
    now[0] += 31
    assert mirror.recent(30).fetched_at == now[0]


WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from image_builder.settings import RepositorySettings
from image_builder.sources.workflow_registry import WorkflowRegistry
url, mirrors = sys.argv[1:]
def locate(_):
    registry = WorkflowRegistry(RepositorySettings(workflow_repository=url, mirror_max_age_s=3600), Path(mirrors))
    ref = registry.locate("flow", "step")
    registry.read(ref)
    return ref.commit
with ThreadPoolExecutor(4) as pool:
    print(" ".join(sorted(set(pool.map(locate, range(8))))))
"""


def test_processes_and_threads_share_one_clone(upstream: GitRepository, tmp_path: Path) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    commit = upstream.commit()
    with GitHttpServer(tmp_path, "u", "p").running() as server:
        url = f"http://u:p@127.0.0.1:{server.server_port}/upstream/.git"
        command = [sys.executable, "-c", WORKER, url, str(tmp_path / "mirrors")]
        with ThreadPoolExecutor(3) as pool:
            workers = [
                pool.submit(subprocess.run, command, capture_output=True, text=True)
                for _ in range(3)
            ]
        answers = [(worker.result().stdout.split(), worker.result().stderr) for worker in workers]
    assert answers == [([commit], "")] * 3
    assert len([path for path in server.paths if "/info/refs" in path]) == 1


def test_threads_read_one_mirror_while_it_is_replaced(
    upstream: GitRepository, mirror: Mirror, tmp_path: Path
) -> None:
    first = read_all(mirror, not_before=0, out=tmp_path / "first")
    trees = {
        commit: upstream.git("rev-parse", f"{commit}^{{tree}}")
        for commit in upstream.git("rev-list", "HEAD").split()
    }

    def read(number: int) -> bool:
        other = mirror_of(upstream.url, tmp_path / "mirrors")
        fresh = other if number % 3 == 0 else mirror
        if number % 5 == 0:
            other.snapshot(not_before=other.now())
        if number % 7 == 0:
            spoil_state(mirror.folder)
        resolved = Versions(fresh).resolve("latest", fresh.snapshot(not_before=0))
        known = all(fresh.tree_of(commit) == tree for commit, tree in trees.items())
        fresh.write(fresh.entries(fresh.tree_of(first), Limits()), tmp_path / f"out{number}")
        other.close()
        return known and resolved is not None and resolved.commit == first

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(36)))


class SilentServer:
    """A server that takes connections and never says a word (a registry that hangs)."""

    def __init__(self, on_connection: threading.Event) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._connected = on_connection
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self._kept.append(self._socket.accept()[0])
            except OSError:
                return
            self._connected.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._kept:
            connection.close()


@pytest.fixture
def silent() -> Iterator[tuple[SilentServer, threading.Event]]:
    connected = threading.Event()
    server = SilentServer(connected)
    yield server, connected
    server.close()


def git_processes(port: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text()
        except OSError:
            continue
        if f"127.0.0.1:{port}/" in arguments and "git" in arguments:
            found.append(arguments)
    return found


def test_a_cancelled_fetch_ends_with_its_processes(
    silent: tuple[SilentServer, threading.Event], tmp_path: Path
) -> None:
    server, connected = silent
    cancel = CancelToken()

    def cancel_when_connected() -> None:
        connected.wait(60)
        cancel.cancel()

    threading.Thread(target=cancel_when_connected, daemon=True).start()
    with pytest.raises(Cancelled):
        mirror_of(f"git://127.0.0.1:{server.port}/r", tmp_path / "mirrors").snapshot(
            not_before=0, cancel=cancel
        )
    assert connected.is_set()
    assert git_processes(server.port) == []
    assert not [item for item in (tmp_path / "mirrors").iterdir() if item.is_dir()]


def test_a_registry_that_hangs_is_unavailable(
    silent: tuple[SilentServer, threading.Event], tmp_path: Path
) -> None:
    server, _ = silent
    mirror = mirror_of(f"http://127.0.0.1:{server.port}/r", tmp_path / "mirrors", timeout_s=1)
    with pytest.raises(Unavailable, match="took longer than 1 s"):
        mirror.snapshot(not_before=0)
    assert git_processes(server.port) == []


def test_those_who_asked_before_a_fetch_failed_share_its_failure(
    silent: tuple[SilentServer, threading.Event], tmp_path: Path
) -> None:
    server, connected = silent
    now = [5.0]
    mirror = Mirror(
        Repository(
            url=parse_url(f"git://127.0.0.1:{server.port}/r"),
            name="r",
            key="k",
            code=ErrorCode.CATALOGUE_UNAVAILABLE,
        ),
        tmp_path / "mirrors",
        Network(),
        clock=lambda: now[0],
    )

    def ask(_: int) -> Unavailable:
        with pytest.raises(Unavailable) as failure:
            mirror.snapshot(not_before=0)
        return failure.value

    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, number) for number in range(5)]
        assert connected.wait(60)
        server.close()
        failures = [answer.result() for answer in answers]
    assert len({id(failure) for failure in failures}) == 1
    now[0] += 1
    assert ask(0) is not failures[0], "who asks later makes another try"


def test_cancelling_while_somebody_else_fetches(
    silent: tuple[SilentServer, threading.Event], tmp_path: Path
) -> None:
    server, connected = silent
    mirror = mirror_of(f"git://127.0.0.1:{server.port}/r", tmp_path / "mirrors")
    first, second = CancelToken(), CancelToken()

    def ask() -> None:
        with pytest.raises(Cancelled):
            mirror.snapshot(not_before=0, cancel=first)

    thread = threading.Thread(target=ask)
    thread.start()
    assert connected.wait(60)
    second.cancel()
    with pytest.raises(Cancelled):
        mirror.snapshot(not_before=0, cancel=second)
    first.cancel()
    thread.join()


def test_a_warm_question_starts_no_process(
    upstream: GitRepository, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> tuple[object, ...]:
        resolved = Versions(mirror).resolve("main", mirror.recent(3600))
        assert resolved is not None
        tree = mirror.item(mirror.tree_of(resolved.commit), "folder")
        assert tree is not None
        return resolved.commit, mirror.items(tree.digest)

    cold = answer()
    mirror.close()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    assert answer() == cold


@pytest.mark.parametrize("free", [0, 1024**4])
def test_a_disk_that_takes_no_mirror_is_told(
    upstream: GitRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    mirror = mirror_of(upstream.url, tmp_path / "mirrors")
    (tmp_path / "mirrors").mkdir()
    mirror.folder.with_suffix(".lock").mkdir()  # nobody can open it as a file, not even root
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(NoSpace if free == 0 else Misconfigured) as failure:
        mirror.snapshot(not_before=0)
    assert str(tmp_path / "mirrors") in failure.value.message
    assert "tmp_folder" in failure.value.hint
