"""What a full image tells for its slim one, and what lies in apt's archives: nothing of it is believed.

A description's code runs in the full image before that is looked at.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker import daemon
from tests.support.daemon_images import remove_images
from tests.support.memory import steady_memory
from tests.support.site import (
    BASE_IMAGE,
    MACHINE,
    PROJECT,
    RUNTIME_BASE_IMAGE,
    Service,
    Site,
    make_site,
    running_service,
)

pytestmark = pytest.mark.system
RECIPE = PROJECT / "image_builder" / "recipes" / "1"

POISON = r"""
mkdir -p /carrier/DEBIAN && cd /carrier
printf 'Package: carrier\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n' >DEBIAN/control
printf '#!/bin/sh\n{ id; ls /run/cic /run/cic/archives; cat /run/cic/site; } >/stolen 2>&1\n' >DEBIAN/postinst
chmod 755 DEBIAN/postinst && dpkg-deb --build /carrier /carrier.deb
real=$(readlink -f /usr/bin/python3)
cat >/forger <<END
#!/bin/sh
$real "\$@" || exit 1
case \$1 in
    */collect.py) FORGERY ;;
esac
END
chmod 755 /forger && rm /usr/bin/python3 && mv /forger /usr/bin/python3
"""
CARRIED = "cp /carrier.deb /cic-slim.facts/carrier.deb"
FORGERIES = {
    "path": f"{CARRIED}; echo /run/cic/facts/carrier.deb >>/cic-slim.facts/packages",
    "option": "echo -oDir::Cache::Archives=/tmp >>/cic-slim.facts/packages",
    "user": "echo '+::0:0:::' >>/cic-slim.facts/passwd",
    "alternative": "echo --set auto /bin/sh >>/cic-slim.facts/alternatives",
    "link": "ln -sf /etc/hostname /cic-slim.facts/versions",
    "huge": "head -c 100000000 /dev/zero >/cic-slim.facts/packages",
    "folder": "rm /cic-slim.facts/packages; mkdir /cic-slim.facts/packages",
    "fifo": "rm /cic-slim.facts/packages; mkfifo /cic-slim.facts/packages",
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path / "site").with_environ(
        CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE_IMAGE,
        CIC_BUILD_BUILD_JOBS="3",
    )
    yield made
    remove_images(made)


def built(service: Service, step: str) -> dict[str, Any]:
    return service.build(
        {
            "machine": MACHINE | {"container_engine": "docker"},
            "workflow": "demo",
            "step_id": step,
            "push": False,
            "slim": True,
        }
    )


def test_no_forged_fact_makes_a_slim_image(site: Site) -> None:
    for name, forgery in FORGERIES.items():
        script = f"# {secrets.token_hex()}\n" + POISON.replace("FORGERY", forgery)
        site.add_step("demo", name, {"eflows4hpc.yaml": "", "post_inst.sh": script})
    site.add_step("demo", "honest", {"eflows4hpc.yaml": "", "text": secrets.token_hex()})
    with running_service(site) as service:
        assert built(service, "honest")["status"] == "FINISHED"
        with steady_memory(service):
            all_are_refused(service)


def all_are_refused(service: Service) -> None:
    for name in FORGERIES:
        status = built(service, name)
        log = service.call("GET", f"/build/{status['id']}/log").text
        assert status["status"] == "FINISHED", log[-2000:]
        reason = " ".join(status["warnings"])
        assert "What the image tells" in reason, (name, reason, log[-2000:])
        assert len(reason) < 1000 and "build_jobs" not in log
        assert daemon.read_file(status["image_id"], "/stolen", 1024) is None, name


REPORTS = {
    "huge": "head -c 40000000 /dev/zero",
    "nested": "head -c 1000000 /dev/zero | tr '\\\\0' '['",
    "long": """echo '{\\"missing\\": [\\"'$(head -c 1000000 /dev/zero | tr '\\\\0' A)'\\"],"""
    """ \\"count\\": 1, \\"inventory\\": {}}'""",
    "binary": "head -c 1000 /dev/urandom",
}


def test_no_program_of_the_image_makes_its_report(site: Site) -> None:
    """What is compared is read in a stage that is older than the description's code."""
    for name, says in REPORTS.items():
        forged = POISON.replace("*/collect.py) FORGERY", f"*/verify.py) {says}; exit 0").replace(
            '$real "\\$@" || exit 1', '[ "\\${1##*/}" = verify.py ] || exec $real "\\$@"'
        )
        script = f"# {secrets.token_hex()}\n{forged}"
        site.add_step("demo", name, {"eflows4hpc.yaml": "", "post_inst.sh": script})
    with running_service(site) as service:
        for name in REPORTS:
            status = built(service, name)
            log = service.call("GET", f"/build/{status['id']}/log").text
            assert status["status"] == "FINISHED", log[-2000:]
            assert "cannot be read" not in log and not status["warnings"], (name, log[-2000:])
            assert len(json.dumps(status)) < 8000, name
        assert len(service.call("GET", "/build/").content) < 64 * 1024


def test_an_image_cannot_say_that_it_lacks_nothing(site: Site) -> None:
    """Its Python leaves an interpreter out of what is collected, and claims that all is there."""
    forged = POISON.replace("*/collect.py) FORGERY", "*/collect.py) rm -r /cic-slim/opt/tool")
    forged = forged.replace(
        '$real "\\$@" || exit 1',
        '[ "\\${1##*/}" != verify.py ] || { echo \'{\\"missing\\": [], \\"count\\": 0}\'; exit; }\n'
        '$real "\\$@" || exit 1',
    )
    assert "count" in forged
    script = f"# {secrets.token_hex()}\nmkdir -p /opt/tool\ncp /bin/sh /opt/tool/run\n{forged}"
    files = {"eflows4hpc.yaml": "", "start": "#!/opt/tool/run\n", "post_inst.sh": script}
    site.add_step("demo", "lacking", files)
    with running_service(site) as service:
        status = built(service, "lacking")
        log = service.call("GET", f"/build/{status['id']}/log").text
    assert status["status"] == "FINISHED", log[-2000:]
    assert "a script of the step: /opt/tool/run" in " ".join(status["warnings"]), log


PLANT = """
set -e
apt-get update -qq
apt-get install -y -qq --no-install-recommends --print-uris hello >/uris
while read -r _ name size _; do
    head -c "$size" /dev/urandom >"/run/cic/archives/$name"
    planted=$name
    ln -sf /etc/passwd "/run/cic/archives/other-$name"
done </uris
mkdir -p /run/cic/archives/partial && head -c 100 /dev/urandom >/run/cic/archives/partial/$planted
ls -l /run/cic/archives
"""
DOCKERFILE = """
FROM {base} AS planted
ARG NONCE
RUN --mount={archives} --mount=type=bind,source=plant.sh,target=/plant.sh sh /plant.sh
FROM {base} AS installed
ARG NONCE
COPY --from=planted /uris /uris
RUN --mount={archives} --mount=type=bind,target=/run/cic/context mkdir -p /run/cic && \\
    cp /run/cic/context/* /run/cic/ && sh /run/cic/apt.sh
RUN hello && rm /usr/bin/hello && dpkg --remove hello
RUN --mount={archives} cd /run/cic/archives && sha256sum *.deb && \\
    sh /run/cic/apt.sh 2>&1 | tee /said && grep 'Need to get 0 B' /said && hello
"""


def test_a_file_in_apts_archives_is_used_only_for_what_it_is(tmp_path: Path) -> None:
    """apt 2.6 alone takes the planted file for the package: name and size are right."""
    archives = f"type=cache,id=cic-test-{secrets.token_hex(8)},target=/run/cic/archives"
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.format(base=BASE_IMAGE, archives=archives))
    (tmp_path / "plant.sh").write_text(PLANT)
    (tmp_path / "packages.apt").write_text("hello\n")
    for name in ("lib.sh", "apt.sh"):
        (tmp_path / name).write_bytes((RECIPE / name).read_bytes())
    build = ["docker", "buildx", "build", "--progress=plain", "--output=type=cacheonly"]
    done = subprocess.run(
        [*build, f"--build-arg=NONCE={secrets.token_hex()}", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
