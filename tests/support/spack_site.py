"""Make a site on a base image with real Spack, for tests and measurements of what builds share.

Its catalogue holds an FFTW whose source Debian has, and `tiny`, which is compiled in an instant; a
source mirror of Debian's own tarballs stands for the network.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import BuildResult, build_image
from image_builder.request.parsing import parse_request
from tests.support.recording import Heard
from tests.support.site import PROJECT, Site, make_site

SPACK_ROOT = os.environ.get("CIC_SPACK_ROOT")
SPACK_BASE = os.environ.get("CIC_TEST_SPACK_BASE", "cic-test-spack:1")
RUNTIME_BASE = f"{SPACK_BASE}-runtime"
"""Of the same Debian packages: a slim image wants those of the full one, security updates too."""
REAL_SPACK = Path(__file__).parent / "real_spack"
MEASURED = ("fftw@3.3.10", "lz4@1.9.4", "bzip2@1.0.8")
"""The environment that all figures about Spack are of."""

_EXTRACTING = re.compile(
    r"==> Extracting (\S+)-[^-\s]+-[a-z0-9]{32} from binary cache|"
    r"\[ \] [a-z0-9]{7} (\S+)@\S+ relocating\b"
)
_INSTALLING = re.compile(
    r"==> (\S+): Executing phase: 'install'|\[ \] [a-z0-9]{7} (\S+)@\S+ install\b"
)
"""What Spack writes before and from 1.2 on."""


def make_runtime_base() -> None:
    """Make what slim images are put on, of the base image with Spack."""
    command = [str(PROJECT / "scripts" / "runtime_base"), RUNTIME_BASE, SPACK_BASE]
    subprocess.run(command, check=True)


def make_spack_site(root: Path) -> Site:
    """Return a site that shares neither layers nor packages with any other.

    Its Spack configuration is its own.
    """
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    mirror = Path("/var/tmp/cic-test-sources")
    subprocess.run([str(REAL_SPACK / "source_mirror"), str(mirror)], check=True)
    catalogue = root / "catalogue"
    shutil.copytree(REAL_SPACK / "catalogue", catalogue)
    site = make_site(root).with_environ(
        CIC_BUILD_BASE_IMAGE=SPACK_BASE,
        CIC_BUILD_SPACK_MIRROR=str(mirror),
        CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(catalogue),
    )
    return anew(site)


def anew(site: Site) -> Site:
    """Return the same site with nothing in its caches."""
    folder = site.root / f"spack-config-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"# {folder.name}\nconfig: {{}}\n", "utf-8")
    return site.with_environ(CIC_BUILD_SPACK_CFG=str(folder))


def environment(specs: Sequence[str]) -> dict[str, str]:
    """Return the files of a step with these specs."""
    return {
        "eflows4hpc.yaml": "spack:\n  specs:\n" + "".join(f"    - {spec}\n" for spec in specs),
        "run.sh": "#!/bin/sh\necho first\n",
    }


def build(
    site: Site,
    step: str,
    heard: Heard,
    *,
    force: bool = False,
    workspace: str = "workspace",
    cancel: CancelToken | None = None,
) -> BuildResult:
    """Build a step of the workflow `spack` as an image of the daemon."""
    request = parse_request(
        {
            "machine": {
                "platform": "linux/amd64",
                "architecture": "haswell",
                "container_engine": "docker",
            },
            "workflow": "spack",
            "step_id": step,
            "push": False,
            "force": force,
        }
    )
    return build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / workspace,
        observer=heard,
        cancel=cancel or CancelToken(),
    )


@dataclasses.dataclass(frozen=True)
class Told:
    """What a build's log records of packages, by name."""

    compiled: tuple[str, ...]
    taken: tuple[str, ...]

    @classmethod
    def of(cls, lines: Sequence[str]) -> Told:
        compiled = [name for line in lines if (name := _named(_INSTALLING, line))]
        taken = [name for line in lines if (name := _named(_EXTRACTING, line))]
        return cls(tuple(compiled), tuple(taken))


def _named(pattern: re.Pattern[str], line: str) -> str:
    match = pattern.search(line)
    return next((name for name in match.groups() if name), "") if match else ""
