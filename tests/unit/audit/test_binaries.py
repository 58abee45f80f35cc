"""What was built, looked at by the script and judged: with real programs, compiled here where there
is a compiler.
"""

from __future__ import annotations

import json
import platform as platform_module
import shutil
import subprocess
import sys
from pathlib import Path

import archspec.cpu
import pytest

from image_builder.audit import binaries
from image_builder.audit.binaries import UnreadableInventory, audit_files, features_of
from image_builder.audit.lock_audit import Check, Verdict
from tests.conftest import PROJECT

SCRIPT = PROJECT / "image_builder" / "recipes" / "1" / "inventory.py"
NONE = Verdict(checks=(), problems=())
X86 = bytes.fromhex("7f454c46020101" + "00" * 9 + "03003e00") + bytes(44)
ARM = bytes.fromhex("7f454c46020101" + "00" * 9 + "0300b700") + bytes(44)
SUM = "float sum(const float *a, int n) { float s = 0; for (int i = 0; i < n; ++i) s += a[i] * a[i]; return s; }\n"


def listing(files: dict[str, bytes], **instructions: list[str]) -> str:
    return json.dumps(
        {
            "files": [[path, start.hex()] for path, start in files.items()],
            "instructions": instructions,
        }
    )


def test_a_file_for_another_machine_is_a_problem() -> None:
    first = Verdict(checks=(Check(name="target", expected="a", found="a", ok=True),), problems=())
    verdict = audit_files(
        first, listing({"/s/a.so": X86, "/s/b.so": ARM}), platform="linux/amd64", target="haswell"
    )
    assert [check.name for check in verdict.checks] == ["target", "files"]
    [problem] = verdict.problems
    assert problem.message == "/s/b.so is for 64-bit little-endian aarch64, not linux/amd64"
    assert verdict.checks[1].found == "1 of 2 programs and libraries"


def test_files_for_the_platform_pass() -> None:
    assert audit_files(
        NONE, listing({"/s/b.so": ARM}), platform="linux/arm64", target="neoverse_v2"
    ).ok
    assert audit_files(NONE, listing({}), platform="linux/amd64", target="x86_64").ok


def test_instructions_beyond_the_target_are_told_and_fail_nothing() -> None:
    text = listing(
        {"/s/a.so": X86}, **{"/s/a.so": ["mov", "%ymm", "vfmadd231ps", "%zmm"], "/s/c": ["pdep"]}
    )
    verdict = audit_files(NONE, text, platform="linux/amd64", target="haswell")
    assert verdict.ok
    assert verdict.checks[1].found == (
        "2 files sampled, using avx bmi2 fma; 1 hold more than haswell has, to be "
        "chosen at run time: /s/a.so (avx512f)"
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": [["a", "zz"]], "instructions": {}}', '{"files": 3}', "[" * 50_000],
)
def test_something_else_than_an_inventory(text: str) -> None:
    with pytest.raises(UnreadableInventory):
        audit_files(NONE, text, platform="linux/amd64", target="haswell")


def test_every_feature_of_the_table_is_one_of_archspecs() -> None:
    for family, table in binaries._table().items():
        known = {
            feature
            for cpu in archspec.cpu.TARGETS.values()
            if cpu.family.name == family
            for feature in cpu.features
        }
        assert set(table.values()) <= known


def test_an_unknown_family_uses_nothing_that_is_known() -> None:
    assert features_of(["mov", "%ymm"], "ppc64le") == frozenset()


@pytest.mark.skipif(
    platform_module.machine() != "x86_64" or not shutil.which("gcc") or not shutil.which("objdump"),
    reason="needs gcc and objdump on x86_64",
)
@pytest.mark.parametrize(
    ("march", "features"),
    [("haswell", {"avx", "fma"}), ("skylake-avx512", {"avx512f", "fma"}), ("x86-64", set())],
)
def test_real_libraries_are_found_and_read(tmp_path: Path, march: str, features: set[str]) -> None:
    (tmp_path / "sum.c").write_text(SUM, "utf-8")
    subprocess.run(
        [
            "gcc",
            "-O3",
            "-ffast-math",
            f"-march={march}",
            "-mprefer-vector-width=512",
            "-shared",
            "-fPIC",
            "-nostdlib",
            "-o",
            str(tmp_path / "libsum.so"),
            str(tmp_path / "sum.c"),
        ],
        check=True,
    )
    (tmp_path / "link.so").symlink_to("libsum.so")
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], check=True, capture_output=True, text=True
    )
    content = json.loads(printed.stdout)
    assert [path for path, _ in content["files"]] == [str(tmp_path / "libsum.so")]
    assert features <= features_of(content["instructions"][str(tmp_path / "libsum.so")], "x86_64")
    assert (
        "avx512f" in features_of(content["instructions"][str(tmp_path / "libsum.so")], "x86_64")
    ) == (march == "skylake-avx512")
    assert audit_files(NONE, printed.stdout, platform="linux/amd64", target="haswell").ok
    assert not audit_files(NONE, printed.stdout, platform="linux/arm64", target="neoverse_n1").ok


def test_the_script_works_where_nothing_is() -> None:
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), "/nonexistent"], check=True, capture_output=True, text=True
    )
    assert json.loads(printed.stdout) == {"files": [], "instructions": {}}
