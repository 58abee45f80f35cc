"""The Python client on a machine that has nothing else of the project: from packages to a SIF that runs.

Spack is the stand-in of `test_spack_standin.py`.
"""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
from cic_client.version import VERSION

from tests.conftest import PROJECT
from tests.support.daemon_images import remove_images
from tests.support.site import PASSWORD, USER, Service, make_site, running_service
from tests.system.test_spack_standin import standin_base

pytestmark = pytest.mark.system

PACKAGES = ["zlib", "fftw~mpi"]
MACHINE = "here"
CATALOGUE = """\
machines:
  here:
    title: This machine
    platform: linux/amd64
    architecture: x86_64
    container_engine: singularity
    mpi: openmpi@4
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on that base, with a machine of its own in the catalogue."""
    root = tmp_path_factory.mktemp("client")
    (root / "machines.yaml").write_text(CATALOGUE)
    with standin_base(root) as base:
        site = make_site(root).with_environ(
            CIC_BUILD_BASE_IMAGE=base, CIC_BUILD_MACHINES=str(root / "machines.yaml")
        )
        with running_service(site) as running:
            yield running
        remove_images(site)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is handed out."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PROJECT / "client", root / "client")  # building writes beside the sources
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "dist", "./client"],
        check=True,
        cwd=root,
    )
    (built,) = (root / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def cic(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed into an environment of its own."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", str(root / "venv")], check=True)
    python = root / "venv" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(wheel)],
        check=True,
        cwd=root,
        env=own_environ(root),
    )
    return root / "venv" / "bin" / "cic"


def own_environ(home: Path) -> dict[str, str]:
    """The environment of a user who has nothing of this project."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CIC_", "PYTHON", "XDG_", "VIRTUAL_ENV"))
    }
    return kept | {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}


def run_of(service: Service, build_id: str) -> str:
    """Which run a build is on, of which no answer tells."""
    with sqlite3.connect(service.site.root / "db.sqlite") as database:
        ((run,),) = database.execute("SELECT run_id FROM builds WHERE id = ?", (build_id,))
    return str(run)


def test_packages_become_an_image_that_runs_and_all_ways_share_it(
    service: Service, cic: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    login = {"CIC_URL": service.url, "CIC_USER": USER, "CIC_PASSWORD": PASSWORD}
    environ = own_environ(home) | login
    options = [option for spec in PACKAGES for option in ("-p", spec)]
    build = subprocess.Popen(
        [str(cic), "build", *options, "-m", MACHINE, "--wait", "--pull", "--json"],
        cwd=home,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert build.stderr is not None
    first = build.stderr.readline()
    assert first.startswith("build "), first + build.stderr.read()
    build_id = first.split()[1]
    by_curl = asked_by_curl(service)
    by_form = asked_by_form(service)
    out, notes = build.communicate(timeout=600)
    assert build.returncode == 0, notes
    answer = json.loads(out)
    assert answer["id"] == build_id and answer["status"] == "FINISHED"
    runs_under_apptainer(home / answer["filename"], environ)
    assert len({build_id, by_curl, by_form}) == 3
    for other in (by_curl, by_form):
        ended = service.wait_for(other)
        assert (ended["status"], ended["sha256"]) == ("FINISHED", answer["sha256"])
        assert run_of(service, other) == run_of(service, build_id)
    compared_with_what_was_built(cic, options, build_id, environ)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(file.read(metadata))
        (licence,) = (name for name in names if name.endswith("/LICENSE"))
        assert file.read(licence) == (PROJECT / "LICENSE").read_bytes()
    assert (told["Name"], told["Version"]) == ("cic-client", VERSION)
    assert told["License-Expression"] == "Apache-2.0" and told["Requires-Python"] == ">=3.10"
    assert "cic login" in str(told.get_payload())
    sources = {
        str(path.relative_to(PROJECT / "client"))
        for path in (PROJECT / "client" / "cic_client").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "cic_client/py.typed" in sources
    assert {name for name in names if ".dist-info/" not in name} == sources


def test_the_command_says_its_version_and_nothing_of_the_project_is_there(
    cic: Path, tmp_path: Path
) -> None:
    version = subprocess.run(
        [str(cic), "--version"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert version.stdout == f"cic {VERSION}\n"
    code = (
        "import importlib.util; print([importlib.util.find_spec(n) for n in ('service', 'flask')])"
    )
    found = subprocess.run(
        [str(cic.with_name("python")), "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=own_environ(tmp_path),
    )
    assert found.stdout == "[None, None]\n"


def test_a_users_program_is_checked_against_the_types(cic: Path, tmp_path: Path) -> None:
    (program,) = re.findall(
        r"```python\n(.*?)```", (PROJECT / "docs" / "client.md").read_text("utf-8"), re.DOTALL
    )
    assert checked(cic, tmp_path, program) == ""
    assert "str" in checked(cic, tmp_path, program + "\n    client.status(7)\n")
    assert "filesize" in checked(cic, tmp_path, program + "\n    build.filesize\n")


def checked(cic: Path, folder: Path, program: str) -> str:
    """What mypy says of a program that is run beside the command."""
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary",
            "--python-executable", str(cic.with_name("python")), "program.py",
        ],
        cwd=folder, env=own_environ(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def runs_under_apptainer(sif: Path, environ: Mapping[str, str]) -> None:
    for package in ("zlib", "fftw"):
        printed = subprocess.run(
            ["apptainer", "exec", "--userns", "--cleanenv", str(sif), package],
            env=dict(environ),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert printed == f"{package} 1.0 for x86_64\n"


def asked_by_curl(service: Service) -> str:
    done = subprocess.run(
        [
            "curl", "--silent", "--show-error", "--fail-with-body", "--user", f"{USER}:{PASSWORD}",
            "--data-binary", json.dumps({"packages": PACKAGES, "machine": MACHINE}),
            f"{service.url}/image_creation/build/",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["id"])


def asked_by_form(service: Service) -> str:
    """Send the form as a browser without scripts does."""
    root = f"{service.url}/image_creation"
    with requests.Session() as browser:
        browser.headers["Accept"] = "text/html"
        token = csrf_token(browser.get(f"{root}/login").text)
        browser.post(
            f"{root}/login", data={"name": USER, "password": PASSWORD, "csrf_token": token}
        ).raise_for_status()
        token = csrf_token(browser.get(f"{root}/builds/new").text)
        answer = browser.post(
            f"{root}/builds/new",
            files={
                name: (None, value)
                for name, value in {
                    "csrf_token": token,
                    "what": "own",
                    "packages": "\n".join(PACKAGES),
                    "machine": MACHINE,
                    "push": "default",
                    "version": "latest",
                }.items()
            },
            allow_redirects=False,
        )
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"].rpartition("/")[2]


def csrf_token(page: str) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found, page
    return found[1]


def compared_with_what_was_built(
    cic: Path, options: list[str], build_id: str, environ: Mapping[str, str]
) -> None:
    """The same plan is what was built; another differs in its specs."""
    same, other = (
        subprocess.run(
            [str(cic), "plan", *options, *more, "-m", MACHINE, "--against", build_id],
            cwd=environ["HOME"],
            env=dict(environ),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for more in ([], ["-p", "lz4"])
    )
    # A Dockerfile that was built has the mounts of the build cache besides, which a plan does not.
    assert "(the same)" in same and not re.search(r"^spack.yaml$", same, re.MULTILINE), same
    assert "(the same)" not in other and re.search(r"^\+.*lz4", other, re.MULTILINE), other
