"""The whole way with a stand-in for Spack, where no real one is needed: what the recipe does around
it.

What Spack decides is tested in `test_real_spack.py`.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archspec.cpu
import pytest

from image_builder.docker import daemon
from image_builder.errors import BuildFailed, ErrorCode, UserError
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import BuildResult, build_image
from image_builder.request.parsing import parse_request
from image_builder.spack import lockfile
from image_builder.store.folder import ImageStore
from image_builder.timeline import origins, spans
from tests.support.daemon_images import remove_images, remove_tags
from tests.support.recording import Heard
from tests.support.site import (
    BASE_IMAGE,
    PASSWORD,
    PROJECT,
    RUN,
    RUNTIME_BASE_IMAGE,
    USER,
    Site,
    make_site,
    running_service,
)
from tests.support.spack_site import anew

pytestmark = pytest.mark.system


def _host_target() -> str:
    """The highest x86-64 level that this machine runs, whoever made its CPU: each product has some
    flags that another maker's products of its time lack.
    """
    host = archspec.cpu.host()
    names = {host.name, *(ancestor.name for ancestor in host.ancestors)}
    return next((level for level in ("x86_64_v3", "x86_64_v2") if level in names), "x86_64")


TARGET = _host_target()
POST_INSTALL = """set -u
# no set -e: only the exit status at the end counts
false
pwd >where
command -v heat >found
cat /tmp/root/spack-stage/spack-stage-heat-1.0-*/spack-src/source.txt >stage
ls /tmp/root/spack-stage >stages
python3 -c 'import six' 2>/dev/null && echo early >pip-came-first
exit 0
"""


@contextlib.contextmanager
def standin_base(root: Path) -> Iterator[str]:
    """The test base with the stand-in as its Spack."""
    repository = f"cic-test-standin-{secrets.token_hex(4)}"
    name = f"{repository}:1"
    (root / "base").mkdir()
    dockerfile = (
        f"FROM {BASE_IMAGE}\nCOPY --chmod=755 spack /usr/local/bin/spack\n"
        'LABEL "site.name"="the \\"first\\" of \\$2"\nWORKDIR "/data sets"\n'
    )
    (root / "base" / "Dockerfile").write_text(dockerfile, "utf-8")
    (root / "base" / "spack").write_bytes(
        (PROJECT / "tests" / "support" / "standin" / "spack").read_bytes()
    )
    subprocess.run(
        [
            "docker",
            "buildx",
            "build",
            "--quiet",
            "--provenance=false",
            "--load",
            "--tag",
            name,
            str(root / "base"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    yield name
    remove_tags(repository)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on that base."""
    root = tmp_path_factory.mktemp("standin")
    with standin_base(root) as name:
        made = make_site(root).with_environ(CIC_BUILD_BASE_IMAGE=name)
        yield made
        remove_images(made)


def build(
    site: Site, step: str, files: dict[str, str], *, heard: Heard | None = None, **machine: str
) -> BuildResult:
    site.add_step("spack", step, {"run-of-tests.txt": RUN, **files})
    request = parse_request(
        {
            "machine": {
                "platform": "linux/amd64",
                "architecture": TARGET,
                "container_engine": "docker",
                **machine,
            },
            "workflow": "spack",
            "step_id": step,
            "push": False,
        }
    )
    return build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=heard or Heard(),
        cancel=CancelToken(),
    )


def described(*specs: str, more: str = "") -> dict[str, str]:
    return {
        "eflows4hpc.yaml": "spack:\n  specs:\n" + "".join(f"  - {spec}\n" for spec in specs) + more
    }


def inside(image: str, *command: str, entrypoint: str | None = None) -> str:
    """What a command prints in the image."""
    options = ["--entrypoint", entrypoint] if entrypoint else []
    return subprocess.run(
        ["docker", "run", "--rm", "--network=none", *options, image, *command],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_packages_the_mpi_and_the_step_are_where_they_are_promised(site: Site) -> None:
    result = build(
        site,
        "solver",
        {**described("heat", "lz4@1.9~mpi", more="pip: [six]\n"), "run.txt": "one\n"},
        mpi="openmpi@4",
    )
    assert result.audit is not None and result.audit["ok"]
    image = result.image_id
    assert inside(image, "heat") == f"heat 1.0 for {TARGET}\n"
    assert inside(image, "mpirun", "-n", "2", "heat") == f"heat 1.0 for {TARGET}\n" * 2
    assert inside(image, "-c", "command -v heat", entrypoint="/bin/sh") == "/opt/view/bin/heat\n", (
        "as exec sees it"
    )
    login = inside(image, "-lc", "command -v heat; echo $SPACK_ENV", entrypoint="/bin/bash")
    assert login == "/opt/view/bin/heat\n/opt/cic\n"
    assert inside(image, "cat", "/solver/run.txt") == "one\n"
    lock = json.loads(inside(image, "cat", "/opt/cic/spack.lock"))
    assert [root["spec"] for root in lock["roots"]] == ["heat", "lz4@1.9~mpi", "openmpi@4"]
    assert f"target={TARGET}" in inside(image, "cat", "/opt/cic/spack.yaml")
    assert "lz4@1.9~mpi" in inside(image, "cat", "/opt/cic/description.yaml")
    assert (
        json.loads(inside(image, "cat", "/opt/cic/request.json"))["machine"]["mpi"] == "openmpi@4"
    )
    assert inside(image, "sh", "-c", "ls /tmp/root/spack-stage 2>/dev/null | wc -l").strip() == "0"


def test_a_changed_source_runs_nothing_again(site: Site) -> None:
    files = described("heat", more="apt: [bc]\npip: [six]\n")
    build(site, "changing", {**files, "run.txt": "one\n"})
    heard = Heard()
    result = build(site, "changing", {**files, "run.txt": "two\n"}, heard=heard)
    assert inside(result.image_id, "cat", "/changing/run.txt") == "two\n"
    log = "\n".join(heard.lines)
    assert (
        "Installing heat" not in log
        and "Setting up" not in log
        and "Installing collected packages" not in log
    )


def test_what_ran_is_told_and_where_packages_came_from(site: Site) -> None:
    """The first build installs them, the second finds the layer that they are in.

    The site's Spack configuration is its own: no other test has made its layers.
    """
    own = anew(site)
    store, told = ImageStore(own.tmp_folder / "store"), []
    for text in ("one\n", "two\n"):
        heard = Heard()
        result = build(own, "timed", {**described("heat"), "run.txt": text}, heard=heard)
        ended = [span for span in heard.spans if span.ended_s is not None]
        assert {span.name for span in ended if span.kind == spans.STEP} >= {
            "look up what is named",
            "prepare",
            "install",
            "check the files",
        }
        assert all(
            span.ended_s is not None and span.began_s <= span.ended_s < span.began_s + 600
            for span in ended
        )
        assert {span.outcome for span in ended if span.kind != spans.PACKAGE} == {spans.DONE}
        lock = json.loads(store.document(result.identity, lockfile.FILE) or "")
        known = origins.read(store.document(result.identity, origins.FILE))
        assert set(known) == set(lock["concrete_specs"])
        told.append((known, {span.name for span in ended if span.kind == spans.PACKAGE}, ended))
    (first, packages, ended), (second, none, _) = told
    assert set(first.values()) == {spans.BUILT} and "heat" in packages
    assert set(second.values()) == {origins.LAYER} and none == set()
    layers = [span.name for span in ended if span.kind == spans.LAYER]
    assert any(name.startswith("[") for name in layers), layers


def test_a_post_install_script_finds_stages_and_comes_before_pip(site: Site) -> None:
    result = build(
        site,
        "posted",
        {**described("heat", more="pip: [six]\n"), "post_inst.sh": POST_INSTALL},
        mpi="openmpi@4",
    )
    there = inside(result.image_id, "sh", "-c", "cd /posted && cat where found stage && ls")
    assert there.splitlines()[:2] == ["/posted", "/opt/view/bin/heat"]
    assert there.splitlines()[2].startswith("heat-1.0-")
    assert "pip-came-first" not in there
    assert inside(result.image_id, "python3", "-c", "import six; print(six.__name__)") == "six\n"


def test_a_script_runs_under_its_own_first_line(site: Site) -> None:
    script = "#!/usr/bin/env python3\nopen('by', 'w').write(__import__('sys').argv[0])\n"
    result = build(site, "pythonic", {"eflows4hpc.yaml": "", "post_inst.sh": script})
    assert inside(result.image_id, "cat", "/pythonic/by") == "./post_inst.sh"


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("broken", described("heat", "broken@2"), "broken"),
        ("unfetchable", described("unfetchable"), "unfetchable"),
        ("conflicting", described("conflicting"), "conflicting"),
        (
            "noapt",
            {"eflows4hpc.yaml": "apt: [no-such-package-anywhere]\n"},
            "no-such-package-anywhere",
        ),
        (
            "nopip",
            {"eflows4hpc.yaml": "pip: [no-such-package-of-anybody-7f3a]\n"},
            "no-such-package-of-anybody-7f3a",
        ),
        (
            "badpost",
            {"eflows4hpc.yaml": "", "post_inst.sh": "echo it went wrong here\nexit 3\n"},
            "it went wrong here",
        ),
    ],
)
def test_a_failing_part_fails_the_build(
    site: Site, name: str, files: dict[str, str], words: str
) -> None:
    heard = Heard()
    with pytest.raises(BuildFailed):
        build(site, name, files, heard=heard)
    assert any(words in line for line in heard.lines)
    listed = subprocess.run(
        ["docker", "image", "ls", "--quiet", "--filter", f"reference=*/spack_{name}_*"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout, "nothing is tagged"


SMOKE = "test $PWD = /smoking && test $(id -u) != 0 && heat && ! touch here 2>/dev/null && touch /tmp/there"


def test_a_smoke_command_is_run_as_a_user_would(site: Site) -> None:
    heard = Heard()
    files = {**described("heat"), "check.sh": SMOKE}
    files["eflows4hpc.yaml"] += "smoke: [sh, -e, check.sh]\n"
    build(site, "smoking", files, heard=heard, architecture="x86_64")
    assert "heat 1.0 for x86_64" in heard.lines
    assert "Smoke command: sh -e check.sh" in heard.lines


def test_a_failing_smoke_command_fails_the_build(site: Site) -> None:
    heard = Heard()
    with pytest.raises(BuildFailed) as caught:
        build(
            site,
            "fuming",
            {"eflows4hpc.yaml": "smoke: [sh, -c, 'echo it does not work; exit 7']\n"},
            heard=heard,
        )
    assert caught.value.code is ErrorCode.SMOKE_FAILED
    assert "it does not work" in caught.value.excerpt
    listed = subprocess.run(
        ["docker", "image", "ls", "--quiet", "--filter", "reference=*/spack_fuming_*"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout


@pytest.fixture(scope="module")
def slim_site(site: Site) -> Site:
    """The same site, with something to put slim images on."""
    return site.with_environ(CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE_IMAGE)


def record_of(site: Site, result: BuildResult) -> dict[str, Any]:
    record = ImageStore(site.tmp_folder / "store").by_identity(result.identity)
    assert record is not None
    return record.details


def size_bytes(image: str) -> int:
    return int(
        subprocess.run(
            ["docker", "image", "inspect", "--format={{.Size}}", image],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def labels_and_folder(image: str) -> tuple[str, str]:
    config = daemon.image_config(image)
    return config["Labels"]["site.name"], config["WorkingDir"]


def test_a_slim_image_runs_the_same_without_what_built_it(slim_site: Site) -> None:
    more = "apt: ['bc:amd64=1.*']\npip: [six]\nslim: true\nsmoke: [./run.py]\n"
    files = {
        **described("needy", "lz4@1.9~mpi", more=more),
        "run.py": "#!/usr/bin/env python3\nimport six, subprocess\nsubprocess.run(['needy'], check=True)\n",
    }
    result = build(slim_site, "slender", files, mpi="openmpi@4", architecture="x86_64")
    assert (
        record_of(slim_site, result)["slim"] and not record_of(slim_site, result)["full_because"]
    ), result.warnings
    image = result.image_id
    assert inside(image, "needy") == "needy 1.0 for x86_64\n"
    assert inside(image, "mpirun", "-n", "2", "lz4") == "lz4 1.9 for x86_64\n" * 2
    assert inside(image, "/slender/run.py") == "needy 1.0 for x86_64\n"
    assert inside(image, "sh", "-c", "echo 6*7 | bc") == "42\n"
    login = inside(image, "-lc", "command -v needy; echo $SPACK_ENV", entrypoint="/bin/bash")
    assert login == "/opt/view/bin/needy\n/opt/cic\n"
    assert (
        json.loads(inside(image, "cat", "/opt/cic/request.json"))["machine"]["mpi"] == "openmpi@4"
    )
    gone = inside(
        image, "sh", "-c", "command -v spack git; ls -d /opt/standin-spack/buildtool-*; true"
    )
    assert gone == ""
    assert inside(image, "python3", "-m", "pip", "--version").startswith("pip")
    slim_bytes = size_bytes(image)
    full = build(
        slim_site,
        "slender",
        {**files, "eflows4hpc.yaml": files["eflows4hpc.yaml"].replace("true", "false")},
        mpi="openmpi@4",
        architecture="x86_64",
    )
    assert not record_of(slim_site, full)["slim"]
    assert "spack" in inside(full.image_id, "sh", "-c", "command -v spack")
    assert slim_bytes < size_bytes(full.image_id)
    assert (
        labels_and_folder(image)
        == labels_and_folder(full.image_id)
        == ('the "first" of $2', "/data sets")
    )
    packages = (
        "dpkg-query",
        "-W",
        "bc",
        "libreadline8",
        "libc6",
        "python3",
        "python3-minimal",
        "libexpat1",
    )
    assert inside(image, *packages) == inside(full.image_id, *packages)


def test_a_changed_source_of_a_slim_image_runs_nothing_of_the_packages_again(
    slim_site: Site,
) -> None:
    files = described("heat", more="apt: [bc]\npip: [six]\nslim: true\n")
    build(slim_site, "slimming", {**files, "run.txt": "one\n"})
    heard = Heard()
    result = build(slim_site, "slimming", {**files, "run.txt": "two\n"}, heard=heard)
    assert inside(result.image_id, "cat", "/slimming/run.txt") == "two\n"
    log = "\n".join(heard.lines)
    assert not re.search(
        r"Installing heat|Setting up|Installing collected packages|kept\.sh\S*\]\n#\d+ \d", log
    )


def test_what_a_post_install_script_made_is_in_a_slim_image(slim_site: Site) -> None:
    script = (
        "set -e\nmkdir -p /opt/own && echo made >/opt/own/by-the-script && ln -s /opt/own/by-the-script here\n"
        "cp /bin/true /opt/own/one && chown 1234:56789 /opt/own/one && chmod 4711 /opt/own/one\n"
        "ln /opt/own/one /opt/own/other && touch -d 2001-02-03T04:05:06Z /opt/own/one\n"
        "groupadd -g 1777 data && useradd -m -u 1777 -g data -G video ann\n"
        "apt-get update && apt-get install -y netbase less && echo mine 9/tcp >>/etc/services\n"
        "update-alternatives --set pager /bin/more\n"
    )
    result = build(
        slim_site, "scripted", {"eflows4hpc.yaml": "slim: true\n", "post_inst.sh": script}
    )
    assert record_of(slim_site, result)["slim"], result.warnings
    assert inside(result.image_id, "cat", "/scripted/here") == "made\n"
    told = inside(result.image_id, "stat", "-c", "%u %g %a %h %Y", "/opt/own/one", "/opt/own/other")
    assert told == "1234 56789 4711 2 981173106\n" * 2
    assert inside(
        result.image_id, "sh", "-c", "id ann; stat -c '%U %a' ~ann; getent shadow ann | cut -d: -f2"
    ) == ("uid=1777(ann) gid=1777(data) groups=1777(data),44(video)\nann 755\n!\n")
    assert inside(result.image_id, "tail", "-n1", "/etc/services") == "mine 9/tcp\n"
    edited = inside(result.image_id, "sh", "-c", "dpkg --verify netbase | grep /etc")
    assert edited.split() == ["??5??????", "c", "/etc/services"], "of a package that is there"
    pager = inside(
        result.image_id, "sh", "-c", "readlink -f /usr/bin/pager; update-alternatives --query pager"
    )
    assert (
        pager.startswith("/usr/bin/more\n")
        and "Status: manual" in pager
        and "Alternative: /usr/bin/less" in pager
    )
    files = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
    modes = inside(result.image_id, "stat", "-c", "%a %U:%G", *files)
    assert modes == "644 root:root\n" * 2 + "640 root:shadow\n" * 2


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("pager", "would have /bin/more as pager, and the full image has /opt/own"),
        ("ours", "/usr/bin/ours: -> /etc/alternatives/ours"),
    ],
)
def test_an_alternative_that_only_the_script_knows_makes_no_slim_image(
    slim_site: Site, link: str, reason: str
) -> None:
    script = f"cp /bin/true /opt/own && update-alternatives --install /usr/bin/{link} {link} /opt/own 99\n"
    result = build(
        slim_site, "registered", {"eflows4hpc.yaml": "slim: true\n", "post_inst.sh": script}
    )
    details = record_of(slim_site, result)
    assert not details["slim"] and reason in details["full_because"], details


def test_a_user_who_is_another_in_the_runtime_base_makes_no_slim_image(slim_site: Site) -> None:
    script = "usermod -u 43 _apt\n"
    result = build(
        slim_site, "renumbered", {"eflows4hpc.yaml": "slim: true\n", "post_inst.sh": script}
    )
    details = record_of(slim_site, result)
    assert not details["slim"] and "user _apt is 42 there and 43" in details["full_because"], (
        details
    )


@pytest.mark.parametrize(
    ("package", "then", "reason"),
    [
        ("bc", "", "apt cannot install bc in version 0.1"),
        ("readline-common", "apt-mark auto readline-common", "readline-common:all is "),
    ],
)
def test_a_package_in_another_version_than_the_full_images_makes_no_slim_image(
    slim_site: Site, package: str, then: str, reason: str
) -> None:
    """The full image has a version that the archive does not: of what is needed, and of what only
    that needs.
    """
    control = f"Package: {package}\\nVersion: 0.1\\nArchitecture: all\\nMaintainer: me <me@host>\\nDescription: x\\n"
    script = (
        f"set -e\nmkdir -p made/DEBIAN && printf '{control}' >made/DEBIAN/control\n"
        f"dpkg-deb -b made made.deb && dpkg -i made.deb\n{then}\n"
    )
    result = build(
        slim_site, "older", {"eflows4hpc.yaml": "apt: [bc]\nslim: true\n", "post_inst.sh": script}
    )
    details = record_of(slim_site, result)
    assert not details["slim"] and reason in details["full_because"], details
    assert inside(result.image_id, "dpkg-query", "-W", "-f=${Version}", package) == "0.1"


def test_what_does_not_run_in_a_slim_image_gets_a_full_one(slim_site: Site) -> None:
    result = build(
        slim_site,
        "smokeless",
        {"eflows4hpc.yaml": "slim: true\nsmoke: [git, --version]\n"},
        architecture="x86_64",
    )
    details = record_of(slim_site, result)
    assert not details["slim"] and "smoke command failed" in details["full_because"]
    assert any("not a slim one" in warning for warning in result.warnings)
    assert inside(result.image_id, "git", "--version").startswith("git")


def test_without_a_runtime_base_the_full_image_is_made(site: Site) -> None:
    nowhere = site.with_environ(CIC_BUILD_RUNTIME_BASE_IMAGE="cic-test-no-such-image:1")
    result = build(nowhere, "baseless", {"eflows4hpc.yaml": "slim: true\n"})
    details = record_of(nowhere, result)
    assert not details["slim"] and "cic-test-no-such-image" in details["full_because"]
    assert any("not a slim one" in warning for warning in result.warnings)


def test_the_ca_and_the_sites_secrets_stay_out_of_the_image(site: Site, tmp_path: Path) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    files = described("heat", more="pip: []\n")
    with_secret = site.with_environ(CIC_BUILD_SPACK_MIRROR=f"https://user:{canary}@mirror.test/")
    heard = Heard()
    result = build(with_secret, "secretive", files, heard=heard)
    history = subprocess.run(
        ["docker", "history", "--no-trunc", result.image_id],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert canary not in history and canary not in "\n".join(heard.lines)
    saved = tmp_path / "image.tar"
    subprocess.run(["docker", "save", "--output", str(saved), result.image_id], check=True)
    assert subprocess.run(["grep", "-qF", canary, str(saved)], check=False).returncode == 1
    left = inside(
        result.image_id,
        "sh",
        "-c",
        "ls /run/cic 2>/dev/null; env | grep -i -e cert -e ca_bundle; true",
    )
    assert left == ""


def test_a_workflow_that_names_another_mpi_is_refused(site: Site) -> None:
    with pytest.raises(UserError, match=r"mpich.*openmpi@4"):
        build(site, "otherwise", described("heat ^mpich"), mpi="openmpi@4")


def test_the_seeds_own_example_goes_both_ways_as_it_stands(site: Site, tmp_path: Path) -> None:
    """`rome`, `openmpi@4` and a bare `False`: through `cic_builder.py` with its `path`, and through
    `cic_cli`.
    """
    description = (PROJECT / "tests/data/corpus/tutorial/lysozyme/eflows4hpc.yaml").read_text(
        "utf-8"
    )
    folder = tmp_path / "description"
    folder.mkdir()
    small = description.replace("compss@3.3", "zlib").replace(
        "gromacs@2022.3~mpi^fftw~mpi", "fftw~mpi"
    )
    (folder / "eflows4hpc.yaml").write_text(small.replace("- grace\n", "- bc\n"), "utf-8")
    example = (PROJECT / "tests/data/seed/library_request.json").read_text("utf-8")
    (tmp_path / "library.json").write_text(
        example.replace("/path/to/description/", str(folder)), "utf-8"
    )
    (tmp_path / "service.json").write_text(re.sub(r'\s*"path" : "[^"]*",', "", example), "utf-8")
    site.add_step(
        "tutorial", "lysozyme", {"eflows4hpc.yaml": (folder / "eflows4hpc.yaml").read_text("utf-8")}
    )

    built = subprocess.run(
        [sys.executable, "cic_builder.py", "--request", str(tmp_path / "library.json")],
        cwd=PROJECT,
        env=dict(site.environ),
        capture_output=True,
        text=True,
        timeout=600,
    )
    with running_service(site) as service:
        submitted = subprocess.run(
            [str(PROJECT / "cic_cli"), USER, PASSWORD, service.url, "build", "service.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        status = service.wait_for(json.loads(submitted.stdout.removeprefix("Response:\n"))["id"])
        lock = service.call("GET", f"/image/{status['filename']}/document/spack.lock").json()

    assert built.returncode == 0, built.stderr[-3000:]
    assert "tutorial_lysozyme_rome_openmpi_4_nogpu" in built.stdout
    assert status["status"] == "FINISHED", status
    assert status["filename"] == "tutorial_lysozyme_rome_openmpi_4_nogpu_v_latest.sif"
    targets = {
        node["arch"]["target"]
        if isinstance(node["arch"]["target"], str)
        else node["arch"]["target"]["name"]
        for node in lock["concrete_specs"].values()
        if not node.get("external")
    }
    assert targets == {"zen2"}
    assert "openmpi" in {node["name"] for node in lock["concrete_specs"].values()}
