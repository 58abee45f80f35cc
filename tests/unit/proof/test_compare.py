"""What differs between two images is named by its file and by whose file it is."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from cic_builder import main
from image_builder.proof.compare import FileState, differences, owners_of, report
from image_builder.proof.compare_sifs import compare
from image_builder.sif import format

FILE = FileState(kind="file", mode=0o644, owner=(0, 0), time_s=1, content="a")
LISTS = {
    "var/lib/dpkg/info/bc.list": "/.\n/usr/bin\n/usr/bin/bc\n/lib/x86_64/libbc.so\n",
    "var/lib/dpkg/info/libz:amd64.list": "/usr/lib/libz.so\n",
    "usr/lib/python3/six-1.0.dist-info/RECORD": "six.py,sha256=x,1\n../../bin/six,,\n",
}


def changed(**fields: object) -> FileState:
    return dataclasses.replace(FILE, **fields)  # type: ignore[arg-type]


def test_each_difference_is_named_with_its_package() -> None:
    prefix = "opt/spack/opt/spack/linux-zen2/lz4-1.9-" + "a" * 32
    one = dict.fromkeys(("usr/bin/bc", "usr/lib/x86_64/libbc.so", "usr/lib/libz.so", "same"), FILE)
    one |= {f"{prefix}/bin/lz4": FILE, "gone": FILE, "usr/lib/python3/six.py": FILE}
    other = {
        "usr/bin/bc": changed(content="b", time_s=2),
        "usr/lib/x86_64/libbc.so": changed(mode=0o755),
        "usr/lib/libz.so": changed(owner=(0, 1)),
        "same": FILE,
        f"{prefix}/bin/lz4": changed(time_s=3),
        "usr/lib/python3/six.py": changed(kind="link"),
        "usr/bin/six": FILE,
    }
    found = {one.path: one for one in differences(one, other, owners_of(LISTS))}
    assert {path: (one.package, one.what) for path, one in found.items()} == {
        "gone": ("no package", "only in the first"),
        "usr/bin/bc": ("Debian's bc", "time, content"),
        "usr/lib/x86_64/libbc.so": ("Debian's bc", "mode"),
        "usr/lib/libz.so": ("Debian's libz", "owner"),
        f"{prefix}/bin/lz4": (f"Spack's lz4-1.9-{'a' * 32}", "time"),
        "usr/lib/python3/six.py": ("Python's six-1.0", "kind"),
        "usr/bin/six": ("Python's six-1.0", "only in the second"),
    }
    said = report(list(found.values()), ["sbom.spdx.json"])
    assert said.startswith("differs: sbom.spdx.json\nDebian's bc: 2 files differ\n  /usr/bin/bc: ")


def sif(folder: Path, name: str, files: dict[str, str], time_s: int = 0) -> Path:
    """A SIF with these files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mtime = len(text), time_s
            tar.addfile(member, io.BytesIO(text.encode()))
    squashfs = folder / f"{name}.squashfs"
    subprocess.run(
        ["tar2sqfs", "--quiet", "--force", str(squashfs)],
        input=archive.getvalue(),
        check=True,
        env={"SOURCE_DATE_EPOCH": "0", "PATH": "/usr/bin:/bin"},
    )
    made = folder / f"{name}.sif"
    format.write(made, architecture="amd64", small=[], squashfs=squashfs, group=1, time_s=0)
    return made


def test_sifs_are_compared_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"etc/time": "now\n", "etc/same": "x\n"}
    one = sif(tmp_path, "one", files)
    equal = sif(tmp_path, "equal", files)
    other = sif(tmp_path, "other", {**files, "etc/time": "now!\n"})
    later = sif(tmp_path, "later", files, time_s=9)
    assert compare(one, equal) == ""
    assert compare(one, other) == "no package: 1 file differs\n  /etc/time: content\n"
    assert "/etc/same: time" in compare(one, later)
    assert main(["compare", str(one), str(equal)]) == 0
    assert main(["compare", str(one), str(other)]) == 1
    assert "/etc/time" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no SIF"])
def test_what_is_no_sif_is_said(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.sif", tmp_path / "other.sif"
    one.write_bytes(content)
    other.write_bytes(b"another")
    assert main(["compare", str(one), str(other)]) == 2
    assert "is no SIF" in capsys.readouterr().err
    assert main(["compare", str(one), str(tmp_path / "missing")]) == 2
