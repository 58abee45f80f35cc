"""The recipe's sharing of built packages: real processes on one folder, with a fake in place of
Spack.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PROGRAM = PROJECT / "image_builder" / "recipes" / "1" / "packages.py"
FAKE = Path(__file__).with_name("fake_spack.py")
LAYOUTS = ("build_cache", "v3")
pytestmark = pytest.mark.timeout(120)
program = runpy.run_path(str(PROGRAM))


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest().translate(str.maketrans("018", "xyz"))[:32]


def lock_of(
    dependencies: Mapping[str, Sequence[str]], versions: Mapping[str, str] | None = None
) -> str:
    """A lock of these packages, each with what it needs; those that nothing needs are the roots."""
    needed = {name for names in dependencies.values() for name in names}
    return json.dumps(
        {
            "roots": [
                {"hash": digest_of(name), "spec": name}
                for name in dependencies
                if name not in needed
            ],
            "concrete_specs": {
                digest_of(name): {
                    "name": name,
                    "version": (versions or {}).get(name, "1.0"),
                    "external": name == "glibc",
                    "dependencies": [{"hash": digest_of(other)} for other in names],
                }
                for name, names in dependencies.items()
            },
        }
    )


@dataclasses.dataclass
class Folder:
    """A cache and the builds that use it."""

    root: Path
    layout: str
    builds: int = 0

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def journal(self) -> list[str]:
        path = self.root / "journal"
        return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []

    def start(self, lock: str, *options: str, seconds: float = 0) -> subprocess.Popen[bytes]:
        self.builds += 1
        own = self.root / f"build-{self.builds}"
        (own / "installed").mkdir(parents=True)
        (own / "scope").mkdir()
        (own / "spack.lock").write_text(lock, "utf-8")
        (self.cache).mkdir(exist_ok=True)
        return subprocess.Popen(
            [
                sys.executable,
                str(PROGRAM),
                "install",
                str(self.cache),
                str(own / "spack.lock"),
                str(own / "scope"),
                *options,
                "--",
                sys.executable,
                str(FAKE),
                str(own / "installed"),
                str(own / "spack.lock"),
                str(own / "scope"),
                str(self.root / "journal"),
                str(seconds),
                self.layout,
            ]
        )

    def run(self, lock: str, *options: str, seconds: float = 0) -> list[str]:
        """What one build adds to the journal."""
        before = len(self.journal)
        assert self.start(lock, *options, seconds=seconds).wait() == 0
        return self.journal[before:]

    def published(self) -> list[Path]:
        return [path for path in (self.cache / "shared").rglob("*") if path.is_file()]

    def spec_file(self, name: str) -> Path:
        return next(
            path
            for path in self.published()
            if path.name.endswith("json") and digest_of(name) in path.name
        )

    def archive(self, name: str) -> Path:
        spec = json.loads(self.spec_file(name).read_text("utf-8"))
        if self.layout == "v3":
            return next(
                path for path in self.published() if path.name == spec["data"][0]["checksum"]
            )
        return next(
            path for path in self.published() if path.name.endswith(f"{digest_of(name)}.spack")
        )


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path, request.param)


CHAIN = {"glibc": [], "zlib": ["glibc"], "png": ["zlib"], "viewer": ["png", "zlib"]}


def test_a_second_build_takes_what_the_first_made(folder: Folder) -> None:
    assert [line for line in folder.run(lock_of(CHAIN)) if line.startswith("compiled")] == [
        "compiled zlib",
        "compiled png",
        "compiled viewer",
    ]
    assert folder.run(lock_of({**CHAIN, "editor": ["png"]})) == [
        "took zlib",
        "took png",
        "took viewer",
        "began editor",
        "compiled editor",
    ]
    assert list((folder.cache / "builds").iterdir()) == []


def test_roots_are_built_where_they_must_be_and_do_not_replace_what_is_there(
    folder: Folder,
) -> None:
    folder.run(lock_of(CHAIN))
    before = {path: path.stat().st_mtime_ns for path in folder.published()}
    assert folder.run(lock_of(CHAIN), "--build-roots") == [
        "took zlib",
        "took png",
        "began viewer",
        "compiled viewer",
    ]
    assert {path: path.stat().st_mtime_ns for path in folder.published()} == before


def test_what_a_killed_build_had_finished_is_not_lost(folder: Folder) -> None:
    process = folder.start(lock_of({"zlib": [], "png": ["zlib"]}), seconds=1.5)
    wait_until(lambda: "began png" in folder.journal)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(
        lambda: "compiled png" in folder.journal
    )  # the fake, which the kernel of a container would end too
    assert folder.run(lock_of({"zlib": [], "png": ["zlib"]})) == ["took zlib", "took png"]
    assert list((folder.cache / "builds").iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "no spec"])
def test_a_broken_entry_is_put_aside_and_built_again(folder: Folder, harm: str) -> None:
    folder.run(lock_of({"zlib": [], "png": ["zlib"]}))
    path = folder.spec_file("zlib") if harm == "no spec" else folder.archive("zlib")
    content = path.read_bytes()
    path.unlink()
    if harm in ("cut", "no spec"):
        path.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    lock = lock_of({"zlib": [], "png": ["zlib"], "gif": ["zlib"]})
    assert sorted(folder.run(lock)) == [
        "began gif",
        "began zlib",
        "compiled gif",
        "compiled zlib",
        "took png",
    ]
    assert sorted(folder.run(lock)) == ["took gif", "took png", "took zlib"]


def test_half_an_entry_is_no_entry(folder: Folder) -> None:
    """A build may be ended between the archive and the file that names it."""
    folder.run(lock_of({"zlib": []}))
    folder.spec_file("zlib").unlink()
    assert folder.run(lock_of({"zlib": []})) == ["began zlib", "compiled zlib"]
    assert folder.run(lock_of({"zlib": []})) == ["took zlib"]


def test_nothing_is_compiled_twice_by_builds_at_once(folder: Folder) -> None:
    shared = {"zlib": [], "png": ["zlib"], "blas": [], "fft": ["blas"]}
    processes = [
        folder.start(lock_of({**shared, f"own{number}": [("png", "fft")[number % 2]]}), seconds=0.2)
        for number in range(10)
    ]
    assert [process.wait() for process in processes] == [0] * 10
    compiled = Counter(line for line in folder.journal if line.startswith("compiled"))
    assert set(compiled.values()) == {1}
    assert len(compiled) == len(shared) + 10


def test_builds_that_need_each_others_packages_both_end(folder: Folder) -> None:
    one: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}
    other = {**dict(reversed(one.items())), "e": ["d"]}
    processes = [
        folder.start(lock_of(packages), seconds=0.3) for packages in (one, other, one, other)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    assert set(
        Counter(line for line in folder.journal if line.startswith("compiled")).values()
    ) == {1}


def test_a_failed_build_leaves_its_packages_and_no_lock(folder: Folder) -> None:
    assert folder.start(lock_of({"zlib": [], "broken": ["zlib"]})).wait() == 1
    assert folder.run(lock_of({"zlib": [], "png": ["zlib"]})) == [
        "took zlib",
        "began png",
        "compiled png",
    ]


def test_wanted_packages_are_copied_to_another_cache(folder: Folder, tmp_path: Path) -> None:
    folder.run(lock_of({"zlib": [], "png": ["zlib"], "gif": ["zlib"]}))
    folder.archive("gif").write_bytes(b"cut")
    (tmp_path / "wanted").write_text(
        "".join(f"{digest_of(name)}\n" for name in ("zlib", "gif", "unknown")), "utf-8"
    )
    other = Folder(tmp_path / "other", folder.layout)
    other.root.mkdir()
    for _ in range(2):
        subprocess.run(
            [
                sys.executable,
                str(PROGRAM),
                "copy",
                str(folder.cache / "shared"),
                str(other.cache),
                str(tmp_path / "wanted"),
            ],
            check=True,
        )
    assert len([path for path in other.published() if path.name.endswith(".json")]) == 1
    assert list((other.cache / "builds").iterdir()) == []
    assert sorted(other.run(lock_of({"zlib": [], "gif": ["zlib"]}))) == [
        "began gif",
        "compiled gif",
        "took zlib",
    ]


@pytest.mark.parametrize("version", ["main", "develop", "git.abc=1.0", "2.0"])
def test_a_version_that_moves_is_not_shared(folder: Folder, version: str) -> None:
    lock = lock_of({"zlib": [], "app": ["zlib"]}, {"app": version})
    assert folder.run(lock)[-1] == "compiled app"
    assert folder.run(lock) == ["took zlib", "began app", "compiled app"]


@pytest.mark.parametrize(
    ("version", "text", "shared"),
    [
        ("1.2", 'version("1.2", sha256="00")', True),
        ("1.2", 'version("1.2", branch="release-1.2")', False),
        ("1.2", "version('1.2',\n  tag='v1.2')", False),
        ("1.2", 'version("1.2", tag="v1.2", commit="00")', True),
        ("1.2", "", True),
        ("master", 'version("master", sha256="00")', False),
    ],
)
def test_which_versions_are_shared(version: str, text: str, shared: bool) -> None:
    assert program["may_be_shared"](version, text) is shared


def wait_until(what: Callable[[], object], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
