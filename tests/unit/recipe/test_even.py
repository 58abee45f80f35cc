"""What Spack writes of times and of the order of its work: two installs of the same are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT

PROGRAM = PROJECT / "image_builder" / "recipes" / "1" / "even.py"
EPOCH = "315619200"


def install(tree: Path, *, at_s: float, order: tuple[str, ...]) -> None:
    """Lay down what Spack leaves of two packages that were installed in some order at some time."""
    installs: dict[str, Any] = {}
    for name in order:
        notes = tree / name / ".spack"
        (notes / "archived-files").mkdir(parents=True)
        (notes / "archived-files" / "config.log").write_text(f"pid {at_s}\n")
        (notes / "spack-build-out.txt.gz").write_bytes(str(at_s).encode())
        (notes / "install_times.json").write_text(json.dumps({"total": at_s}))
        (notes / "spec.json").write_text('{"spec": {}}')
        (notes / "install_manifest.json").write_text(
            json.dumps({"/x": {"time": at_s, "hash": "h"}})
        )
        (notes / "sbom").mkdir()
        document = {
            "creationInfo": {"created": str(at_s)},
            "documentNamespace": f"https://x/{at_s}",
            "packages": [name],
        }
        (notes / "sbom" / "spdx-2.3.json").write_text(json.dumps(document))
        installs[name] = {"path": str(tree / name), "installation_time": at_s}
    installs["external"] = {"path": "/usr", "installation_time": at_s}
    installs["nowhere"] = {"path": None}
    database = tree / ".spack-db"
    database.mkdir()
    (database / "index.json").write_text(json.dumps({"database": {"installs": installs}}))
    (database / "index_verifier").write_text(f"uuid-{at_s}")


def even(tree: Path) -> None:
    subprocess.run(
        [sys.executable, str(PROGRAM), str(tree), str(tree / "no-such-tree")],
        env={"SOURCE_DATE_EPOCH": EPOCH},
        check=True,
    )


def files_of(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): path.read_text().replace(str(tree), "TREE")
        for path in sorted(tree.rglob("*"))
        if path.is_file() and path.name != "index_verifier"
    }


def test_two_installs_of_the_same_are_equal(tmp_path: Path) -> None:
    trees = [tmp_path / "one", tmp_path / "two"]
    install(trees[0], at_s=1.5, order=("a-hash1", "b-hash2"))
    install(trees[1], at_s=99.25, order=("b-hash2", "a-hash1"))
    assert files_of(trees[0]) != files_of(trees[1])
    for tree in trees:
        even(tree)
    left = files_of(trees[0])
    assert left == files_of(trees[1])
    assert {"a-hash1/.spack/spec.json", "a-hash1/.spack/sbom/spdx-2.3.json"} < left.keys()
    assert not any("log" in name or "times" in name or "build-out" in name for name in left)
    assert len((trees[0] / ".spack-db" / "index_verifier").read_text()) == 32


def test_it_may_run_again(tmp_path: Path) -> None:
    install(tmp_path, at_s=1.5, order=("a-hash1",))
    even(tmp_path)
    once = files_of(tmp_path)
    even(tmp_path)
    assert files_of(tmp_path) == once
