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
