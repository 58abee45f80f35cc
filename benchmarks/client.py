"""Measure how long whole commands of the client take: `python3 -m benchmarks.client`.

The client is installed into an environment of its own, as users have it, and asks a warm service,
whose only place is taken by a build that does not end. All commands take turns, so that what else the
machine does weighs on all of them. Needs Docker and the base image of the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rows import Row, show
from benchmarks.submitting import SUBMITS, busy_service, request
from tests.support.site import PASSWORD, PROJECT, USER, Service

TURNS = 20
assert TURNS <= SUBMITS, "each turn asks for a step of its own"


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return all figures of this module."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root,
        busy_service(Path(root) / "site") as service,
    ):
        home = Path(root) / "home"
        home.mkdir()
        python = installed(Path(root))
        measured = in_turns(service, python, home)
    median = {name: statistics.median(times) for name, times in measured.items()}
    python_s, curl_s = median["python"], median["curl"]
    return [
        Row(
            "`cic build` until the build is queued, the whole command, median",
            median["queued"],
            0.5,
            " s",
            note=f"of which Python itself starts in {python_s:.3f} s",
        ),
        Row(
            "`cic build` of what is asked for already, the whole command, median",
            median["again"],
            0.3,
            " s",
            note=f"curl, which asks for the same: {curl_s:.3f} s",
        ),
        Row("`cic machines`, the whole command, median", median["machines"], 0.5, " s"),
        Row("`cic --help`, the whole command, median", median["help"], 0.15, " s"),
    ]


def installed(root: Path) -> Path:
    """Return the Python of a new environment that has the client."""
    shutil.copytree(PROJECT / "client", root / "client")  # installing writes beside the sources
    subprocess.run([sys.executable, "-m", "venv", str(root / "venv")], check=True)
    python = root / "venv" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(root / "client")], check=True
    )
    return python


def in_turns(service: Service, python: Path, home: Path) -> dict[str, list[float]]:
    """Return the seconds of each command, of all turns."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CIC_")}
    environ |= {
        "HOME": str(home),
        "CIC_URL": service.url,
        "CIC_USER": USER,
        "CIC_PASSWORD": PASSWORD,
    }
    cic = str(python.with_name("cic"))
    file = home / "request.json"
    curl = [
        "curl", "--silent", "--fail", "--user", f"{USER}:{PASSWORD}", "--data-binary", f"@{file}",
        f"{service.url}/image_creation/build/",
    ]  # fmt: skip
    times: dict[str, list[float]] = {}

    def measure(name: str, command: Sequence[str]) -> None:
        times.setdefault(name, []).append(seconds(command, environ))

    file.write_text(json.dumps(request("many", "warm-up")))
    seconds([cic, "build", str(file)], environ)
    for turn in range(TURNS):
        file.write_text(json.dumps(request("many", f"turn-{turn}")))
        measure("queued", [cic, "build", str(file)])
        measure("again", [cic, "build", str(file)])
        measure("curl", curl)
        measure("machines", [cic, "machines"])
        measure("help", [cic, "--help"])
        measure("python", [str(python), "-c", "pass"])
    return times


def seconds(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Return how long a command takes that succeeds."""
    begun = time.monotonic()
    subprocess.run(
        command,
        check=True,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
