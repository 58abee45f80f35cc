"""Make a mirror of apt and an index of pip that never change: a folder for any web server.

Beside a real package of each, they have one that does what makes images differ: it adds a user,
compiles Python, and writes logs, caches and the time.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

DEB, WHEEL = "restless", "restless_wheel"
_CONTROL = f"""Package: {DEB}
Version: 1:2.0-1
Architecture: all
Maintainer: Tests <tests@example.org>
Description: a package whose installation leaves traces
"""
_POSTINST = f"""#!/bin/sh
set -e
useradd --system --no-create-home {DEB}
update-alternatives --install /usr/bin/rest rest /usr/bin/{DEB} 10
python3 -m compileall -q /usr/lib/{DEB}
ldconfig
echo "installed at $(date) by $$" >>/var/log/apt/{DEB}.log
"""


def make_mirror(folder: Path) -> None:
    """Fill a folder with `debian/`, a flat archive, and `simple/`, an index."""
    _archive(folder / "debian", folder / "work")
    _index(folder / "simple", folder / "files")


def _archive(archive: Path, work: Path) -> None:
    archive.mkdir(parents=True)
    subprocess.run(["apt-get", "-q", "download", "bc"], cwd=archive, check=True)
    for path, text, mode in (
        ("DEBIAN/control", _CONTROL, 0o644),
        ("DEBIAN/postinst", _POSTINST, 0o755),
        (f"usr/bin/{DEB}", "#!/bin/sh\necho rest\n", 0o755),
        (f"usr/lib/{DEB}/module.py", "VALUES = {'a', 'b'}\n", 0o644),
    ):
        file = work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", work, archive], check=True)
    (archive / "Packages").write_text("\n".join(map(_stanza, sorted(archive.glob("*.deb")))))


def _stanza(deb: Path) -> str:
    control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True)
    content = deb.read_bytes()
    return (
        f"{control.stdout}Filename: ./{deb.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )


def _index(index: Path, files: Path) -> None:
    files.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", files, "six"]
    subprocess.run(command, check=True)
    _wheel(files)
    for file in sorted(files.iterdir()):
        project = index / file.name.split("-")[0].replace("_", "-")
        project.mkdir(parents=True)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        link = f'<a href="../../files/{file.name}#sha256={digest}">{file.name}</a>'
        (project / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")


def _wheel(folder: Path) -> None:
    """Write a wheel of a package with a module, which pip compiles."""
    info = f"{WHEEL}-1.0.dist-info"
    files = {
        f"{WHEEL}/__init__.py": "NAMES = frozenset({'a', 'b'})\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {WHEEL}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{WHEEL}-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
