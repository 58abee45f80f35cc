"""The parts of the set-up scripts that choose: which apt sources count, and whether the demo can
use a running service.

That they install a machine is shown by `make test` itself, which begins with them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def bash(code: str, *, path: Path | None = None) -> str:
    """What `code` prints with the scripts' library loaded; `path` holds programs that come before
    the machine's.
    """
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    script = f'set -euo pipefail; . "{SCRIPTS}/lib.sh"; os_codename() {{ echo bookworm; }}; {code}'
    return subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def fake_apt(tmp_path: Path) -> Path:
    """A folder with a fake apt-get that knows two mirrors, a third party and a cdrom."""
    mirrors = tmp_path / "mirrors.list"
    mirrors.write_text(
        "# the nearest\nhttps://mirror.example/debian\thigh\nhttps://other.example/debian\n"
    )
    targets = "\n".join(
        [
            "Debian|cdrom:[Debian 12]/|bookworm|main",
            f"Debian|mirror+file:{mirrors}/|bookworm|main",
            f"Debian|mirror+file:{mirrors}/|bookworm|contrib",
            "Debian|http://security.example/debian-security/|bookworm-security|main",
            "Debian|http://backports.example/debian/|bookworm-backports|main",
            "Somebody|http://vendor.example/apt/|bookworm|main",
        ]
    )
    apt_get = tmp_path / "apt-get"
    apt_get.write_text(f"#!/bin/sh\ncat <<'END'\n{targets}\nEND\n")
    apt_get.chmod(0o755)
    return tmp_path


def test_only_debians_own_sources_of_this_release_go_into_an_image(fake_apt: Path) -> None:
    assert bash("debian_sources", path=fake_apt).splitlines() == [
        "http://security.example/debian-security bookworm-security",
        "https://mirror.example/debian bookworm",
    ]


def test_another_suite_is_pinned_away_but_for_the_packages_asked_for(
    fake_apt: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    bash(f"CIC_SETUP_CACHE={cache}; suite_options trixie docker.io docker-buildx", path=fake_apt)

    assert (
        (cache / "apt-trixie/sources.list")
        .read_text()
        .splitlines()[-1]
        .endswith("https://mirror.example/debian trixie main")
    )
    everything, chosen = (cache / "apt-trixie/preferences").read_text().split("\n\n")
    assert everything.splitlines() == ["Package: *", "Pin: release n=trixie", "Pin-Priority: -1"]
    assert chosen.splitlines()[0] == "Package: docker.io docker-buildx"


def test_a_failing_command_is_quiet_only_until_it_fails() -> None:
    assert bash("quietly echo fine") == ""
    with pytest.raises(subprocess.CalledProcessError) as failure:
        bash("quietly sh -c 'echo why; exit 3'")
    assert "why" in failure.value.stderr


def test_what_a_check_hid_is_shown_when_it_matters() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        bash("die_of sh -c 'echo why >&2; exit 3' -- 'the program does not run: mend it'")
    assert failure.value.stderr.splitlines() == ["why", "!! the program does not run: mend it"]


@pytest.mark.parametrize(
    ("program", "command", "status"),
    [("true", "true", 0), ("false", "true", 1), ("true", "false", 1)],
)
def test_of_two_parts_of_the_set_up_at_once_both_must_succeed(
    program: str, command: str, status: int
) -> None:
    setup = (SCRIPTS / "setup").read_text()
    alongside = setup[setup.index("alongside() {") : setup.index("commands() {")]
    done = subprocess.run(
        ["bash", "-euc", f"{alongside}\nalongside {program} {command}"], check=False
    )
    assert done.returncode == status


@pytest.fixture
def fake_docker(tmp_path: Path) -> Path:
    """A folder with a fake docker that has the image `base:1`, and whose builds and imports fail."""
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*inspect*Labels*) exit 1 ;;\n"
        "*inspect*base:1) echo sha256:0 ;;\n"
        "*inspect*) echo Error: No such image >&2; exit 1 ;;\n"
        "*) echo the reason; exit 1 ;;\n"
        "esac\n"
    )
    docker.chmod(0o755)
    return tmp_path


def run_script(name: str, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        [SCRIPTS / name, *arguments], env=environ, capture_output=True, text=True, check=False
    )


def test_an_image_that_cannot_be_made_says_why(fake_docker: Path) -> None:
    failed = run_script("runtime_base", "runtime:1", "base:1", path=fake_docker)
    assert failed.returncode != 0
    assert "the reason" in failed.stderr.splitlines()
    assert "failed: docker buildx build" in failed.stderr


def test_a_missing_base_is_named_before_anything_is_built(fake_docker: Path) -> None:
    failed = run_script("runtime_base", "runtime:1", "other:1", path=fake_docker)
    assert failed.returncode != 0
    assert "there is no image other:1" in failed.stderr
    assert "the reason" not in failed.stderr


def test_apptainer_comes_with_the_libraries_that_apt_names(tmp_path: Path) -> None:
    """apt decides what the program needs: new names, new versions and no libraries at all."""
    apt_get = tmp_path / "apt-get"
    apt_get.write_text(
        "#!/bin/sh\ncat <<'END'\n"
        "'http://a.example/a/apptainer_9.9-1_amd64.deb' apptainer_9.9-1_amd64.deb 1 SHA256:0\n"
        "'http://a.example/n/libnew7t64_7%2bb1_amd64.deb' libnew7t64_7%2bb1_amd64.deb 1 SHA256:0\n"
        "'http://a.example/l/libc6_3.0-1_amd64.deb' libc6_3.0-1_amd64.deb 1 SHA256:0\n"
        "'http://a.example/u/uidmap_5_amd64.deb' uidmap_5_amd64.deb 1 SHA256:0\n"
        "END\n"
    )
    apt_get.chmod(0o755)
    script = (SCRIPTS / "install_apptainer").read_text()
    archives = script[script.index("archives() {") : script.index("download() {")]
    printed = bash(f"ALONE=(); {archives}\narchives", path=tmp_path)
    assert printed.split() == ["apptainer", "libc6", "libnew7t64"]


def test_every_script_can_be_parsed_and_run() -> None:
    scripts = [path for path in SCRIPTS.iterdir() if path.suffix != ".sh"]
    assert scripts
    for script in scripts:
        assert os.access(script, os.X_OK), script
        text = script.read_text()
        if text.startswith("#!/usr/bin/env python3\n"):
            compile(text, str(script), "exec")
        else:
            subprocess.run(["bash", "-n", script], check=True)


def test_a_foreign_process_is_not_taken_for_the_demos_service(tmp_path: Path) -> None:
    """A pid file outlives its process; the number may be anybody's by then."""
    project = tmp_path / "project"
    (project / ".demo").mkdir(parents=True)
    (project / "scripts").symlink_to(SCRIPTS)
    (project / ".demo/service.pid").write_text(str(os.getpid()))

    stopped = subprocess.run(
        [project / "scripts/demo_service", "stop"], capture_output=True, text=True, check=False
    )

    assert (stopped.returncode, stopped.stderr) == (0, "")
