"""What build steps can reach and use: rules in a network of their own, limits on this machine's
daemon.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder.docker.isolation import cgroup, check
from image_builder.errors import Cancelled
from image_builder.host.cancellation import CancelToken
from tests.support.daemon_images import remove_images, remove_tags
from tests.support.site import BASE_IMAGE, MACHINE, PROJECT, Site, make_site
from tests.system.own_docker import (
    GATEWAY,
    HOST,
    METADATA,
    PRIVATE,
    OwnDocker,
    listening,
    own_docker,
)

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

BRIDGE = "172.17.0.1"
REACH = """
import socket, sys
for line in open("targets"):
    name, host, port = line.split()
    try:
        socket.create_connection((host, int(port)), 3).close()
        print("REACHED", name)
    except OSError as error:
        print("refused", name, error)
"""
NAME_SERVERS = [
    words[1]
    for words in map(str.split, Path("/etc/resolv.conf").read_text().splitlines())
    if words[:1] == ["nameserver"] and "." in words[1] and not words[1].startswith("127.")
]
"""Those that containers are given here. Their networks may be blocked all the same."""
TARGETS = {
    "host": (BRIDGE, 8081),
    "host's other address": (HOST, 8081),
    "metadata": (METADATA, 80),
    "private network": (PRIVATE, 80),
    "package registry": (GATEWAY, 80),
}


def request(step: str, **changes: object) -> str:
    return json.dumps(
        {
            "machine": {**MACHINE, "container_engine": "docker"},
            "workflow": "demo",
            "step_id": step,
            "push": False,
            "force": True,
            **changes,
        }
    )


class TestNetwork:
    @pytest.fixture
    def own(self) -> Iterator[OwnDocker]:
        with (
            own_docker(addresses=NAME_SERVERS) as running,
            listening(running.host, 8081),
            listening(running.world, 80),
            listening(running.world, 53),
        ):
            yield running

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        return make_site(tmp_path / "site").with_environ(
            CIC_BUILD_BLOCKED_NETWORKS=",".join(["169.254.0.0/16", "10.0.0.0/8", *NAME_SERVERS]),
            CIC_BUILD_STEPS_CGROUP=f"cic-test-{secrets.token_hex(4)}",
        )

    def build(self, own: OwnDocker, site: Site) -> subprocess.CompletedProcess[str]:
        return own.on_host(
            sys.executable,
            "cic_builder.py",
            "--request",
            "-",
            environ=site.environ,
            cwd=PROJECT,
            input=request("reach"),
        )

    def reached(self, own: OwnDocker, site: Site, expected: int) -> set[str]:
        ended = self.build(own, site)
        assert ended.returncode == 0, ended.stderr
        lines = ended.stderr.splitlines()
        assert sum("refused" in line or "REACHED" in line for line in lines) == expected, (
            ended.stderr
        )
        return {
            line.partition("REACHED ")[2].replace("_", " ") for line in lines if "REACHED" in line
        }

    def isolate(self, own: OwnDocker, site: Site, what: str) -> str:
        ended = own.on_host(
            sys.executable, "isolate_builds.py", what, environ=site.environ, cwd=PROJECT
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def test_rules_keep_build_steps_from_the_host_and_let_them_reach_registries(
        self, own: OwnDocker, site: Site
    ) -> None:
        """And as long as they are not there, a build that requires them is refused."""
        neighbour = own.on_host(
            "docker",
            "run",
            "--detach",
            "--stop-signal=KILL",
            BASE_IMAGE,
            "python3",
            "-m",
            "http.server",
            "8000",
            environ=site.environ,
        ).stdout.strip()
        address = own.on_host(
            "docker",
            "inspect",
            "--format",
            "{{.NetworkSettings.IPAddress}}",
            neighbour,
            environ=site.environ,
        ).stdout.strip()
        resolvers = {f"name server {name}": (name, 53) for name in NAME_SERVERS}
        targets = TARGETS | resolvers | {"other container": (address, 8000)}
        site.add_step(
            "demo",
            "reach",
            {
                "eflows4hpc.yaml": "",
                "post_inst.sh": "python3 reach.py\n",
                "reach.py": REACH,
                "targets": "".join(
                    f"{name.replace(' ', '_')} {host} {port}\n"
                    for name, (host, port) in targets.items()
                ),
            },
        )
        strict = site.with_environ(CIC_BUILD_REQUIRE_ISOLATION="true")
        before = own.on_host("iptables-save", environ=site.environ).stdout
        try:
            assert self.reached(own, site, len(targets)) == set(targets)
            refused = self.build(own, strict)
            assert (refused.returncode, "MISCONFIGURED" in refused.stderr) == (2, True), (
                refused.stderr
            )
            assert f"{BRIDGE}:" in refused.stderr and "isolate_builds.py apply" in refused.stderr

            shown = self.isolate(own, site, "apply")
            assert self.isolate(own, site, "apply") == shown == self.isolate(own, site, "show")
            assert self.reached(own, site, len(targets)) == {"package registry", *resolvers}
            assert self.reached(own, strict, len(targets)) == {"package registry", *resolvers}
        finally:
            self.isolate(own, site, "remove")
        after = own.on_host("iptables-save", environ=site.environ).stdout
        assert rules_of(after) == rules_of(before)
        assert "No rules" in self.isolate(own, site, "show")


def rules_of(saved: str) -> list[str]:
    """The rules that `iptables-save` printed, without times and counters."""
    return [line for line in saved.splitlines() if line.startswith("-A ")]


class TestLimits:
    """On the machine's daemon, in a control group of the test's own."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[Site]:
        made = make_site(tmp_path).with_environ(
            CIC_BUILD_STEPS_CGROUP=f"cic-test-{secrets.token_hex(4)}",
            CIC_BUILD_STEPS_MEMORY_BYTES=str(256 * 1024**2),
            CIC_BUILD_STEPS_PIDS="40",
            CIC_BUILD_STEPS_CPUS="0.5",
        )
        settings = made.settings.library.build
        if not cgroup.prepare(settings):
            pytest.skip("no control groups can be made here")
        yield made
        cgroup.remove(settings)
        remove_images(made)

    def build(self, site: Site, script: str) -> subprocess.CompletedProcess[str]:
        site.add_step("demo", "greedy", {"eflows4hpc.yaml": "", "post_inst.sh": script})
        return subprocess.run(
            [sys.executable, "cic_builder.py", "--request", "-"],
            cwd=PROJECT,
            capture_output=True,
            env=dict(site.environ),
            text=True,
            timeout=300,
            input=request("greedy"),
        )

    def test_a_modest_step_is_built_in_the_group(self, site: Site) -> None:
        ended = self.build(site, "cat /proc/self/cgroup\n")
        assert ended.returncode == 0, ended.stderr
        assert f"/{site.environ['CIC_BUILD_STEPS_CGROUP']}/" in ended.stderr

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            ("python3 -c 'print(len(b\"x\" * (1 << 30)))'\n", "OUT_OF_MEMORY"),
            ("for i in $(seq 200); do sleep 5 & done; wait\n", "TOO_MANY_PROCESSES"),
            (
                "python3 -c 'import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, "
                "args=(5,)).start()'\n",
                "TOO_MANY_PROCESSES",
            ),
        ],
    )
    def test_a_greedy_step_fails_and_the_message_names_the_limit(
        self, site: Site, script: str, code: str
    ) -> None:
        ended = self.build(site, script)
        assert ended.returncode == 3, ended.stderr
        assert code in ended.stderr
        assert "268435456 bytes of memory, 40 processes, 0.5 CPUs" in ended.stderr

    def test_without_a_group_builds_go_on_and_it_is_told(self, site: Site) -> None:
        without = site.with_environ(CIC_BUILD_STEPS_CGROUP="cic-test-none")
        ended = self.build(without, "true\n")
        assert ended.returncode == 0, ended.stderr
        found = cgroup.problem(without.settings.library.build)
        assert found is not None and "have no limits" in found.message


def test_a_probe_that_never_ends_is_cancelled(tmp_path: Path) -> None:
    """The base image's bash never answers; what was found till then is not remembered."""
    reference = f"cic-test-silent-{secrets.token_hex(4)}:1"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nRUN printf '#!/bin/sh\\nexec sleep infinity\\n' >/bin/bash\n"
    )
    subprocess.run(
        ["docker", "buildx", "build", "--quiet", f"--tag={reference}", str(tmp_path)],
        check=True,
        capture_output=True,
    )
    settings = make_site(tmp_path / "site").settings.library.build.model_copy(
        update={"require_isolation": True}
    )
    cancel = CancelToken()

    def running() -> list[str]:
        listed = subprocess.run(
            ["docker", "ps", "--quiet", f"--filter=ancestor={reference}"],
            check=True,
            capture_output=True,
            text=True,
        )
        return listed.stdout.split()

    def cancel_when_it_runs() -> None:
        while not running() and not cancel.is_set:
            cancel.wait(0.1)
        cancel.cancel("Enough.")

    waiter = threading.Thread(target=cancel_when_it_runs)
    waiter.start()
    try:
        with pytest.raises(Cancelled, match="Enough"):
            check.require(settings, base_image=reference, cancel=cancel)
        assert running() == []
        with pytest.raises(Cancelled, match="Enough"):
            check.require(settings, base_image=reference, cancel=cancel)
    finally:
        cancel.cancel()
        waiter.join()
        remove_tags(reference)
