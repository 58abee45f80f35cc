"""Real Spack, from a checkout named by CIC_SPACK_ROOT (and CIC_SPACK_PACKAGES for Spack 1.0 and
newer).

A base image with that Spack, Debian's compilers and Debian's Open MPI; our example catalogue, whose
package depends on `mpi`; and a source mirror of tarballs that Debian has too, so that nothing is
fetched from elsewhere.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from image_builder.errors import BuildFailed, ErrorCode
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import BuildResult, build_image
from image_builder.request.mpi_gpu import is_mpi
from image_builder.request.parsing import parse_request
from image_builder.state import BuildState
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import PROJECT, Site, make_site
from tests.support.spack_site import (
    REAL_SPACK,
    RUNTIME_BASE,
    SPACK_BASE,
    SPACK_ROOT,
    make_runtime_base,
)
from tests.system.test_main_job import run_sif

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK"
    ),
]

MPIRUN = (
    "env",
    "OMPI_ALLOW_RUN_AS_ROOT=1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    "mpirun",
    "--oversubscribe",
    "-n",
    "2",
)
WITH_STAGES = {
    "eflows4hpc.yaml": "apt: [jq]\npip: [six]\n"
    "spack:\n  specs:\n    - heat\n    - bzip2@1.0.8\n    - libmd@1.0.4\n",
    "post_inst.sh": "#!/bin/bash\n"
    "[[ $PWD == /solver ]]\n"
    "command -v heat || exit 1\n"
    "cp /tmp/root/spack-stage/spack-stage-bzip2-*/spack-src/README /solver/from-the-stage\n"
    "cd /tmp/root/spack-stage/spack-stage-libmd-*/spack-src && touch include/md5.h\n"
    "make --dry-run >/solver/made-again\n",
}
SLIM = {
    "eflows4hpc.yaml": "pip: [six]\nspack:\n  specs: [heat]\nslim: true\nsmoke: [./solve.sh]\n",
    "solve.sh": "#!/bin/sh\nexec mpirun --oversubscribe -n 2 heat\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on a base image with the given Spack, with the example catalogue and a source mirror."""
    assert SPACK_ROOT is not None
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    root = tmp_path_factory.mktemp("real-spack")
    mirror = root / "mirror"
    subprocess.run([str(REAL_SPACK / "source_mirror"), str(mirror)], check=True)
    make_runtime_base()
    catalogue = root / "catalogue"
    shutil.copytree(PROJECT / "examples" / "software-catalog", catalogue)
    shutil.rmtree(catalogue / "cfg")
    made = make_site(root).with_environ(
        CIC_BUILD_BASE_IMAGE=SPACK_BASE,
        CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE,
        CIC_BUILD_SPACK_MIRROR=str(mirror),
        CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(catalogue),
    )
    made.add_step("heat", "solver", WITH_STAGES)
    made.add_step("heat", "plain", {"eflows4hpc.yaml": "spack:\n  specs: [heat]\n"})
    made.add_step("heat", "slim", SLIM)
    made.add_step("heat", "impossible", {"eflows4hpc.yaml": "spack:\n  specs: ['heat@9:']\n"})
    made.add_step("heat", "empty", {"eflows4hpc.yaml": "# nothing but the machine's MPI\n"})
    yield made
    remove_images(made)


def build(site: Site, step: str, heard: Heard, **machine: str) -> BuildResult:
    request = parse_request(
        {
            "machine": {"platform": "linux/amd64", "mpi": "openmpi@4", **machine},
            "workflow": "heat",
            "step_id": step,
            "push": False,
        }
    )
    return build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=heard,
        cancel=CancelToken(),
    )


def inside(image: str, *command: str) -> str:
    """What a command prints in the image, as its entry point starts it."""
    return subprocess.run(
        ["docker", "run", "--rm", "--network=none", image, *command],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def lock_of(image: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(inside(image, "cat", "/opt/cic/spack.lock"))
    return loaded


def built_targets(lock: dict[str, Any]) -> set[str]:
    """The targets of the nodes that were built here."""
    targets = [
        node["arch"]["target"]
        for node in lock["concrete_specs"].values()
        if not node.get("external")
    ]
    return {target if isinstance(target, str) else target["name"] for target in targets}


def test_a_workflow_with_everything_becomes_a_sif_that_runs(site: Site) -> None:
    heard = Heard()
    result = build(site, "solver", heard, architecture="haswell", container_engine="singularity")
    assert heard.states == [BuildState.STARTED, BuildState.BUILDING, BuildState.CONVERTING]
    assert result.audit is not None and result.audit["ok"]
    lock = lock_of(result.image_id)
    assert built_targets(lock) == {"haswell"}
    assert [node["name"] for node in lock["concrete_specs"].values() if is_mpi(node["name"])] == [
        "openmpi"
    ]
    assert "libmpi" in inside(result.image_id, "sh", "-c", "ldd /opt/view/bin/heat")
    assert "README" in inside(result.image_id, "cat", "/solver/from-the-stage")
    made_again = inside(result.image_id, "cat", "/solver/made-again")
    assert " md5.c" in made_again and " sha1.c" not in made_again, "what includes the header alone"
    assert inside(result.image_id, "jq", "--version").startswith("jq")
    assert inside(result.image_id, "python3", "-c", "import six; print(six.__name__)") == "six\n"
    assert inside(result.image_id, "bash", "-lc", "command -v heat bzip2").split() == [
        "/opt/view/bin/heat",
        "/opt/view/bin/bzip2",
    ]
    assert result.sif_path is not None
    assert "2 processes" in run_sif(result.sif_path, *MPIRUN, "heat")


def test_another_target_and_nothing_but_the_machine_to_install(site: Site) -> None:
    heard = Heard()
    result = build(site, "plain", heard, architecture="x86_64_v3", container_engine="docker")
    assert built_targets(lock_of(result.image_id)) == {"x86_64_v3"}
    assert "2 processes" in inside(result.image_id, *MPIRUN, "heat")
    assert heard.done and heard.done[-1][0] == heard.done[-1][1], "the last package was heard of"

    empty = build(site, "empty", Heard(), architecture="x86_64_v3", container_engine="docker")
    assert [root["spec"] for root in lock_of(empty.image_id)["roots"]] == ["openmpi@4"]
    assert "Open MPI" in inside(empty.image_id, "mpirun", "--version")


def test_a_slim_image_runs_the_same_in_a_sif(site: Site) -> None:
    heard = Heard()
    result = build(site, "slim", heard, architecture="haswell", container_engine="singularity")
    record = ImageStore(site.tmp_folder / "store").by_identity(result.identity)
    assert record is not None and record.details["slim"], result.warnings
    assert result.audit is not None and result.audit["ok"]
    assert {check["name"] for check in result.audit["checks"]} >= {"target", "mpi", "files"}
    assert "2 processes" in "\n".join(heard.lines), "the smoke command"
    assert (
        inside(
            result.image_id, "sh", "-c", "command -v spack gcc git; ls /opt/spack 2>/dev/null; true"
        )
        == "opt\n"
    )
    assert inside(result.image_id, "bash", "-lc", "command -v heat") == "/opt/view/bin/heat\n"
    assert inside(result.image_id, "python3", "-c", "import six; print(six.__name__)") == "six\n"
    assert inside(result.image_id, "python3", "-m", "pip", "--version").startswith("pip")
    assert result.sif_path is not None
    assert "2 processes" in run_sif(result.sif_path, *MPIRUN, "heat")


def test_what_spack_cannot_concretize_is_said(site: Site) -> None:
    with pytest.raises(BuildFailed) as caught:
        build(site, "impossible", Heard(), architecture="haswell", container_engine="docker")
    assert caught.value.code is ErrorCode.CONCRETIZATION_FAILED
    assert "heat" in str(caught.value) + "\n".join(caught.value.excerpt)
