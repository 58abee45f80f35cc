"""The main job on real parts: through REST, through `cic_cli`, and without the service."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from image_builder.docker import daemon
from tests.support.daemon_images import remove_images
from tests.support.site import (
    HELLO,
    MACHINE,
    PASSWORD,
    PROJECT,
    USER,
    ImageRegistry,
    Service,
    Site,
    make_site,
    own_tag,
    running_service,
)

pytestmark = pytest.mark.system

REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}
SEED_REQUEST = """{
  "machine": {
    "platform": "linux/amd64",
    "architecture": "rome",
    "container_engine": "singularity"},
  "workflow":"demo",
  "step_id" :"hello",
  "force": False
}"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One running service for the tests that do not change its settings."""
    site = make_site(tmp_path_factory.mktemp("site"))
    site.add_step("demo", "hello", HELLO)
    with running_service(site) as running:
        yield running
    remove_images(site)


def run_sif(sif: Path, *command: str) -> str:
    """What a command prints inside a SIF."""
    may_raise_limits = (
        int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text()).group(1), 16) >> 24
        & 1
    )
    options = () if os.geteuid() or may_raise_limits else ("--userns",)
    return subprocess.run(
        [
            "singularity",
            "--quiet",
            "exec",
            *options,
            "--cleanenv",
            "--no-home",
            "--pwd",
            "/",
            str(sif),
            *command,
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
    ).stdout


def cic_cli(service: Service, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROJECT / "cic_cli"), USER, PASSWORD, service.url, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )


def response(completed: subprocess.CompletedProcess[str]) -> dict:
    assert completed.returncode == 0, completed.stderr
    head, _, body = completed.stdout.partition("\n")
    assert head == "Response:"
    return json.loads(body)


def test_build_download_and_run_through_rest(service: Service, tmp_path: Path) -> None:
    status = service.build(REQUEST)

    assert status["status"] == "FINISHED", status
    assert status["filename"] == "demo_hello_x86_64_nompi_nogpu_v_latest.sif"
    answer = service.call("GET", f"/images/download/{status['filename']}")
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == status["sha256"]
    sif = tmp_path / "hello.sif"
    sif.write_bytes(answer.content)
    assert run_sif(sif, "python3", "/hello/hello.py") == "hello 42\n"


def test_an_interrupted_download_resumes(service: Service, tmp_path: Path) -> None:
    status = service.build(REQUEST)
    url = f"{service.url}/image_creation/images/download/{status['filename']}"
    file = tmp_path / "image.sif"
    whole = service.call("GET", f"/images/download/{status['filename']}").content
    file.write_bytes(whole[:100_000])

    subprocess.run(
        ["curl", "-sS", "--fail", "-C", "-", "-u", f"{USER}:{PASSWORD}", "-o", str(file), url],
        check=True,
    )

    assert file.read_bytes() == whole
    file.write_bytes(whole[:200_000])
    subprocess.run(
        [
            "wget",
            "-q",
            "-c",
            "--auth-no-challenge",
            f"--user={USER}",
            f"--password={PASSWORD}",
            "-O",
            str(file),
            url,
        ],
        check=True,
    )
    assert file.read_bytes() == whole


def test_the_seeds_request_goes_through_cic_cli_unchanged(service: Service, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(SEED_REQUEST)

    build_id = response(cic_cli(service, "build", "request.json", folder=tmp_path))["id"]
    log = cic_cli(service, "log", build_id, folder=tmp_path)
    waited = cic_cli(service, "wait", build_id, folder=tmp_path)

    assert "CONVERTING" in log.stdout or log.stdout.strip(), log.stderr
    status = response(waited)
    assert status["status"] == "FINISHED", status
    assert status["filename"] == "demo_hello_rome_nompi_nogpu_v_latest.sif"
    assert response(cic_cli(service, "status", build_id, folder=tmp_path)) == status
    downloaded = cic_cli(service, "download", status["filename"], folder=tmp_path)
    assert downloaded.returncode == 0, downloaded.stderr
    assert (
        hashlib.sha256((tmp_path / status["filename"]).read_bytes()).hexdigest() == status["sha256"]
    )
    assert build_id in cic_cli(service, "list", folder=tmp_path).stdout
    assert status["filename"] in cic_cli(service, "images", folder=tmp_path).stdout


def test_the_same_request_again_starts_no_build(service: Service) -> None:
    first = service.build(REQUEST)
    second = service.build(REQUEST)

    assert second["status"] == "FINISHED"
    assert second["sha256"] == first["sha256"]


def test_fifty_identical_requests_from_two_servers_make_one_run(service: Service) -> None:
    service.site.add_step(
        "demo", "crowd", {"eflows4hpc.yaml": "apt: []\n", "post_inst.sh": "sleep 5\n"}
    )
    with running_service(service.site, name="second") as second:

        def submit(index: int) -> str:
            answer = (service, second)[index % 2].call(
                "POST", "/build/", json={**REQUEST, "step_id": "crowd"}
            )
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        with ThreadPoolExecutor(50) as pool:
            ids = list(pool.map(submit, range(50)))
        ends = [service.wait_for(build_id) for build_id in ids]

    assert len(set(ids)) == 50
    assert {end["status"] for end in ends} == {"FINISHED"}, ends[0]
    assert len({end["sha256"] for end in ends}) == 1
    logs = {service.call("GET", f"/build/{build_id}/log").text for build_id in ids}
    assert len(logs) == 1


def test_latest_is_rebuilt_when_its_folder_moved_and_only_then(service: Service) -> None:
    moving = {"eflows4hpc.yaml": "apt: []\n", "value": "one\n"}
    service.site.add_step("demo", "moving", moving)
    request = {**REQUEST, "step_id": "moving"}
    first = service.build(request)

    service.site.add_step("demo", "other", {"eflows4hpc.yaml": "apt: []\n"})
    unmoved = service.build(request)
    service.site.add_step("demo", "moving", {**moving, "value": "two\n"})
    moved = service.build(request)

    assert [end["status"] for end in (first, unmoved, moved)] == ["FINISHED"] * 3
    assert unmoved["identity"] == first["identity"]
    assert unmoved["sha256"] == first["sha256"]
    assert moved["identity"] != first["identity"]
    assert moved["sha256"] != first["sha256"]


def test_a_failed_step_says_why_and_leaves_nothing(service: Service) -> None:
    service.site.add_step(
        "demo",
        "broken",
        {"eflows4hpc.yaml": "apt: []\n", "post_inst.sh": "echo the reason stands here\nexit 3\n"},
    )
    request = {**REQUEST, "step_id": "broken"}

    failed = service.build(request)

    assert failed["status"] == "FAILED"
    assert failed["error_code"] == "POST_INSTALL_FAILED", failed
    assert (
        "the reason stands here"
        in failed["message"] + service.call("GET", f"/build/{failed['id']}/log").text
    )
    assert daemon.image_labels(failed["image_id"]) == {}
    assert failed["hint"] and failed["filename"] is None
    name = "demo_broken_x86_64_nompi_nogpu_v_latest.sif"
    assert service.call("GET", f"/images/download/{name}").status_code == 404
    service.site.add_step(
        "demo", "broken", {"eflows4hpc.yaml": "apt: []\n", "post_inst.sh": "true\n"}
    )
    repaired = service.build(request)
    assert (repaired["status"], repaired["filename"]) == ("FINISHED", name)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("apt:\n\t- bc\n", "line 2"),
        ("apt: 3\n", "line 1"),
        ("spack: !!python/object/apply:os.system ['id']\n", "line 1"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
            "line",
        ),
    ],
)
def test_a_bad_description_fails_with_file_and_line(service: Service, text: str, line: str) -> None:
    service.site.add_step("demo", "bad", {"eflows4hpc.yaml": text})

    status = service.build({**REQUEST, "step_id": "bad"})

    assert status["status"] == "FAILED"
    assert status["error_code"] == "BAD_DESCRIPTION"
    assert "eflows4hpc.yaml" in status["message"]
    assert line in status["message"]


def test_a_missing_base_image_fails_the_build_and_not_the_plan(site: Site) -> None:
    with running_service(
        site.with_environ(CIC_BUILD_BASE_IMAGE="no-such-host.invalid/base:1")
    ) as service:
        planned = service.call("POST", "/build/plan", json=REQUEST)
        status = service.build(REQUEST)

    assert planned.status_code == 200, planned.text
    assert planned.json()["identity"] is None
    assert any("no-such-host.invalid/base:1" in warning for warning in planned.json()["warnings"])
    assert status["error_code"] == "BASE_IMAGE_UNAVAILABLE", status
    assert "no-such-host.invalid/base:1" in status["message"]


def test_without_an_image_registry_a_default_push_warns_and_an_explicit_one_is_refused(
    service: Service,
) -> None:
    defaulted = service.build({key: value for key, value in REQUEST.items() if key != "push"})
    explicit = service.call("POST", "/build/", json={**REQUEST, "push": True})

    assert defaulted["status"] == "FINISHED"
    assert any("registry" in warning for warning in defaulted["warnings"])
    assert explicit.status_code == 400
    assert explicit.json()["errors"][0]["field"] == "push"


def test_push_find_and_force_with_a_registry_that_asks_for_a_password(
    site: Site, image_registry: ImageRegistry
) -> None:
    configured = site.with_environ(
        **image_registry.environ,
    )
    with running_service(configured) as service:
        first = service.build({**REQUEST, "push": True})
        assert first["status"] == "FINISHED", first
        assert image_registry.tags("group/demo_hello_x86_64_nompi_nogpu") == [
            own_tag(first),
            "latest",
        ]
        second = service.build({**REQUEST, "push": True})
        forced = service.build({**REQUEST, "push": True, "force": True})
        unpushed = service.build(
            {**REQUEST, "push": False, "machine": {**MACHINE, "architecture": "haswell"}}
        )
        logs = [
            service.call("GET", f"/build/{end['id']}/log").text for end in (first, second, forced)
        ]
        history = subprocess.run(
            ["docker", "history", "--no-trunc", first["image_id"]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        inspected = subprocess.run(
            ["docker", "inspect", first["image_id"]], capture_output=True, text=True, check=True
        ).stdout
    assert second["status"] == "FINISHED"
    assert second["sha256"] == first["sha256"]
    assert forced["status"] == "FINISHED"
    assert "exists already" not in logs[2]
    assert unpushed["status"] == "FINISHED"
    assert image_registry.tags("group/demo_hello_haswell_nompi_nogpu") == []
    canary = image_registry.password
    for text in (*logs, history, inspected, json.dumps([first, second, forced])):
        assert canary not in text
    for path in site.root.rglob("*"):
        if path.is_file() and "image-registry" not in path.parts:
            assert canary.encode() not in path.read_bytes(), path
    remove_images(configured)


def test_the_library_builds_a_local_path_without_the_service(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    for name, text in HELLO.items():
        (folder / name).write_text(text)
    (tmp_path / "request.json").write_text(
        SEED_REQUEST.replace('"force"', f'"path": "{folder}",\n  "force"').replace(
            "False", 'False,\n  "push" : False'
        )
    )

    built = subprocess.run(
        [sys.executable, "cic_builder.py", "-r", str(tmp_path / "request.json")],
        cwd=PROJECT,
        env=dict(site.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert built.returncode == 0, built.stderr
    printed = dict(line.split(": ", 1) for line in built.stdout.splitlines())
    assert printed["image_id"].endswith(":latest")
    assert Path(printed["sif"]).parent == site.tmp_folder / "images"
    assert Path(printed["sif"]).name.endswith("_v_latest.sif")
    assert run_sif(Path(printed["sif"]), "python3", "/hello/hello.py") == "hello 42\n"


def test_the_library_tells_a_bad_request_from_a_failed_build(site: Site, tmp_path: Path) -> None:
    def exit_code(request: dict) -> int:
        return subprocess.run(
            [sys.executable, "cic_builder.py", "--request", "-"],
            cwd=PROJECT,
            env=dict(site.environ),
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=300,
        ).returncode

    site.add_step("demo", "broken", {"eflows4hpc.yaml": "apt: []\n", "post_inst.sh": "exit 3\n"})
    assert exit_code({**REQUEST, "workflow": "../x"}) == 2
    assert exit_code({**REQUEST, "step_id": "helo"}) == 2
    assert exit_code({**REQUEST, "step_id": "broken"}) == 3


@pytest.mark.usefixtures("arm64_base")
def test_an_arm64_image_is_built_through_emulation_and_runs(site: Site) -> None:
    arm = {
        "platform": "linux/arm64",
        "architecture": "neoverse_n1",
        "container_engine": "singularity",
    }
    site.add_step(
        "demo", "arm", {"eflows4hpc.yaml": "apt: []\n", "which.sh": "#!/bin/sh\nuname -m\n"}
    )
    with running_service(site) as service:
        status = service.build({**REQUEST, "machine": arm, "step_id": "arm"})
        assert status["status"] == "FINISHED", status
        (site.root / "arm.sif").write_bytes(
            service.call("GET", f"/images/download/{status['filename']}").content
        )

    header = ["singularity", "sif", "header", str(site.root / "arm.sif")]
    listed = subprocess.run(header, capture_output=True, text=True)
    assert "arm64" in listed.stdout.lower(), listed
    assert run_sif(site.root / "arm.sif", "/arm/which.sh") == "aarch64\n"


def test_an_image_is_checked_against_machines_before_it_runs(
    service: Service, tmp_path: Path
) -> None:
    haswell = service.build({**REQUEST, "machine": {**MACHINE, "architecture": "haswell"}})
    assert haswell["status"] == "FINISHED", haswell
    name = haswell["filename"]

    fits = cic_cli(service, "check", name, "marenostrum5-gpp", folder=tmp_path)
    too_old = cic_cli(
        service, "check", name, "platform=linux/amd64", "architecture=sandybridge", folder=tmp_path
    )
    unknown = cic_cli(service, "check", name, "marenostrm5", folder=tmp_path)

    assert response(fits)["ok"] is True
    assert "singularity" in response(fits)["run_command"]
    assert too_old.returncode == 1
    assert "sandybridge" in too_old.stdout
    assert unknown.returncode == 1
    assert "marenostrum5" in unknown.stderr


def test_a_request_may_name_a_machine_of_the_catalogue(service: Service) -> None:
    planned = service.call("POST", "/build/plan", json={**REQUEST, "machine": "marenostrum5-gpp"})
    named = {entry["name"] for entry in service.call("GET", "/machine/").json()["machines"]}

    assert planned.status_code == 200, planned.text
    assert "sapphirerapids" in planned.json()["image_id"]
    assert len(named) >= 12
    assert "marenostrum5-gpp" in named


def test_what_an_image_was_made_from_can_be_fetched(service: Service) -> None:
    status = service.build(REQUEST)
    shown = service.call("GET", f"/image/{status['filename']}").json()

    assert {"description.yaml", "request.json", "Dockerfile"} <= set(shown["documents"])
    text = service.call("GET", f"/image/{status['filename']}/document/description.yaml").text
    assert text == HELLO["eflows4hpc.yaml"]
    assert (
        service.call("GET", f"/image/{status['filename']}/document/..%2f..%2flock").status_code
        == 404
    )
