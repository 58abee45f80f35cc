"""What builds share, with real Spack: see `test_real_spack.py` for how it is named.

The environments are small: `lz4` from a source mirror, and `tiny` of the test's own catalogue.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from image_builder.errors import BuildFailed, Cancelled
from image_builder.host.cancellation import CancelToken
from image_builder.timeline import spans
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import ImageRegistry, Site
from tests.support.spack_site import (
    SPACK_BASE,
    SPACK_ROOT,
    Told,
    anew,
    build,
    environment,
    make_spack_site,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK"
    ),
]

SPACK_LINE = re.compile(r"#\d+ [\d.]+ (?:==> |\[[ +xe]\] )")
TINY_IS_PUSHED = re.compile(r"tiny: Pushed to build cache|\[\+\] [a-z0-9]{7} tiny@")
"""Spack 1.2 says the former in the package's own log alone."""
CACHE_MOUNT = re.compile(r"--mount=type=cache,id=(cic-spack-[0-9a-f]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with caches of its own, in which `lz4` and `tiny@1.0` have been built."""
    made = make_spack_site(tmp_path_factory.mktemp("cache"))
    made.add_step("spack", "first", environment(["lz4@1.9.4", "tiny@1.0"]))
    heard = Heard()
    build(made, "first", heard)
    assert {"lz4", "tiny"} <= set(Told.of(heard.lines).compiled)
    yield made
    remove_images(made)


def in_the_cache(site: Site, heard: Heard, script: str) -> str:
    """What a shell script prints that sees the cache mount of a build at /cache."""
    names = {name for line in heard.lines for name in CACHE_MOUNT.findall(line)}
    assert len(names) == 1
    folder = site.root / "in-the-cache"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(
        f"FROM {SPACK_BASE} AS look\nARG NONCE\nCOPY script /script\n"
        f"RUN --mount=type=cache,id={names.pop()},sharing=shared,target=/cache sh -eu /script >/printed\n"
        "FROM scratch\nCOPY --from=look /printed /printed\n",
        "utf-8",
    )
    (folder / "script").write_text(script, "utf-8")
    subprocess.run(
        [
            "docker",
            "buildx",
            "build",
            "--progress=plain",
            f"--build-arg=NONCE={time.time_ns()}",
            f"--output=type=local,dest={folder / 'out'}",
            str(folder),
        ],
        check=True,
    )
    return (folder / "out" / "printed").read_text("utf-8")


def test_another_environment_takes_what_the_first_built(site: Site) -> None:
    site.add_step("spack", "second", environment(["lz4@1.9.4", "tiny@2.0"]))
    heard = Heard()
    result = build(site, "second", heard)
    told = Told.of(heard.lines)
    assert told.compiled == ("tiny",)
    assert "lz4" in told.taken
    outcomes = {
        span.name: span.outcome
        for span in heard.spans
        if span.kind == spans.PACKAGE and span.ended_s is not None
    }
    assert (outcomes["tiny"], outcomes["lz4"]) == (spans.BUILT, spans.CACHED)
    assert set(outcomes.values()) <= {spans.BUILT, spans.CACHED, spans.PRESENT}
    shown = subprocess.run(
        [
            "docker",
            "run",
            "--rm",
            "--network=none",
            result.image_id,
            "sh",
            "-c",
            "tiny && lz4 --version",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "tiny 2.0" in shown and "1.9.4" in shown


def test_the_catalogue_precedes_spacks_own_packages(site: Site) -> None:
    """Spack has a `tree` of its own, in newer versions."""
    site.add_step("spack", "both", environment(["tree"]))
    result = build(site, "both", Heard())
    command = ["docker", "run", "--rm", "--network=none", result.image_id, "tree"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown == "a tree of the catalogue\n"


def test_what_is_compiled_once_has_no_dependency_tracking(site: Site) -> None:
    """Where stages stay it has: see `test_real_spack.py`."""
    site.add_step("spack", "configured", environment(["configured"]))
    result = build(site, "configured", Heard())
    command = ["docker", "run", "--rm", "--network=none", result.image_id]
    log = "/opt/view/share/config.log"
    shown = subprocess.run([*command, "cat", log], check=True, capture_output=True, text=True)
    assert "am_cv_CC_dependencies_compiler_type=none\n" in shown.stdout


def test_groups_and_static_analysis_become_one_image(site: Site) -> None:
    """Releases that know them take them; before, groups are plain specs, and the setting is left out."""
    text = (
        "spack:\n  concretizer: {static_analysis: true}\n  specs:\n"
        "    - {group: tools, specs: [tiny@1.0]}\n"
        "    - {group: programs, needs: [tools], specs: [lz4@1.9.4]}\n"
    )
    site.add_step("spack", "groups", {"eflows4hpc.yaml": text})
    result = build(site, "groups", Heard())
    command = ["docker", "run", "--rm", "--network=none", result.image_id]
    shown = subprocess.run(
        [*command, "sh", "-c", "tiny && lz4 --version"], check=True, capture_output=True, text=True
    ).stdout
    assert "tiny 1.0" in shown and "1.9.4" in shown


def test_a_changed_source_line_starts_no_spack(site: Site) -> None:
    site.add_step("spack", "first", {"run.sh": "#!/bin/sh\necho changed\n"})
    heard = Heard()
    result = build(site, "first", heard)
    assert not result.reused
    assert [line for line in heard.lines if SPACK_LINE.match(line)] == []
    assert (
        subprocess.run(
            ["docker", "run", "--rm", result.image_id, "/first/run.sh"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        == "changed\n"
    )


def test_force_builds_the_roots_and_decides_anew(site: Site) -> None:
    heard = Heard()
    build(site, "first", heard, force=True)
    told = Told.of(heard.lines)
    assert {"lz4", "tiny"} <= set(told.compiled)
    assert "gcc-runtime" not in told.compiled
    assert not any("was concretized before" in line for line in heard.lines)


def test_a_broken_package_is_built_again(site: Site) -> None:
    site.add_step("spack", "third", environment(["lz4@1.9.4", "tiny@3.0"]))
    heard = Heard()
    build(site, "third", heard)
    harmed = in_the_cache(
        site,
        heard,
        """
        for file in $(find /cache/shared -type f -size +1k -name '*lz4*.spack') \\
                    $(grep -rl '"' /cache/shared/v3/manifests/spec/lz4 2>/dev/null |
                      xargs -r grep -oh '[0-9a-f]\\{64\\}' | sed 's|\\(..\\)|/cache/shared/blobs/sha256/\\1/\\1|'); do
            truncate -s 100 "$file"
            echo "$file"
        done
    """,
    )
    assert harmed
    site.add_step("spack", "fourth", environment(["lz4@1.9.4", "tiny@4.0"]))
    heard = Heard()
    build(site, "fourth", heard)
    assert set(Told.of(heard.lines).compiled) == {"lz4", "tiny"}
    assert any("is put aside and built again" in line for line in heard.lines)
    site.add_step("spack", "fifth", environment(["lz4@1.9.4", "tiny@5.0"]))
    heard = Heard()
    build(site, "fifth", heard)
    assert Told.of(heard.lines).compiled == ("tiny",)


def test_what_an_ended_build_had_finished_is_taken_by_the_next(site: Site) -> None:
    site.add_step("spack", "ended", environment(["tiny@6.0", "bzip2@1.0.8"]))
    cancel, heard = CancelToken(), Heard()

    def end_it() -> None:
        while not any(TINY_IS_PUSHED.search(line) for line in heard.lines):
            time.sleep(0.05)
        cancel.cancel()

    ender = threading.Thread(target=end_it, daemon=True)
    ender.start()
    with pytest.raises(Cancelled):
        build(site, "ended", heard, cancel=cancel)
    heard = Heard()
    build(site, "ended", heard)
    assert "tiny" in Told.of(heard.lines).taken


def test_what_a_failed_build_had_finished_is_taken_by_the_next(site: Site) -> None:
    site.add_step("spack", "failed", environment(["failing@1.0 ^tiny@12.0"]))
    heard = Heard()
    with pytest.raises(BuildFailed, match="failing"):
        build(site, "failed", heard)
    assert "tiny" in Told.of(heard.lines).compiled
    site.add_step("spack", "after-failed", environment(["tiny@12.0"]))
    heard = Heard()
    build(site, "after-failed", heard)
    assert Told.of(heard.lines).compiled == () and "tiny" in Told.of(heard.lines).taken


def test_builds_at_once_compile_nothing_twice(site: Site) -> None:
    empty = anew(site)
    heard = {number: Heard() for number in (7, 8, 9)}
    for number in heard:
        site.add_step("spack", f"at-once-{number}", environment(["lz4@1.9.4", f"tiny@{number}.0"]))
    with ThreadPoolExecutor(len(heard)) as pool:
        list(
            pool.map(
                lambda number: build(
                    empty, f"at-once-{number}", heard[number], workspace=f"at-once-{number}"
                ),
                heard,
            )
        )
    compiled = Counter(name for one in heard.values() for name in Told.of(one.lines).compiled)
    assert compiled.pop("tiny") == 3 and compiled["lz4"] == 1 and set(compiled.values()) == {1}, (
        compiled
    )


@pytest.mark.parametrize(("place", "here", "there"), [("folder", 10, 11), ("registry", 13, 14)])
def test_another_host_takes_packages_from_where_hosts_share_them(
    site: Site, image_registry: ImageRegistry, place: str, here: int, there: int
) -> None:
    """A second builder is stood for by the first one, whose mount is emptied."""
    folder = site.root / "packages of all hosts"
    shared = str(folder) if place == "folder" else f"oras://{image_registry.host}/packages"
    token_file = site.root / "token"
    token_file.write_text(image_registry.password, "utf-8")
    logins = {image_registry.host: {"user": image_registry.user, "token_file": str(token_file)}}
    sharing = site.with_environ(
        CIC_BUILD_SPACK_CACHE=shared,
        CIC_BUILD_SPACK_CACHE_KEYS=secrets.token_hex(32),
        CIC_REGISTRY_LOGINS=json.dumps(logins),
    )
    site.add_step("spack", f"here-{place}", environment(["lz4@1.9.4", f"tiny@{here}.0"]))
    heard = Heard()
    build(sharing, f"here-{place}", heard)
    assert not [line for line in heard.lines if line.startswith("Warning")]
    assert image_registry.tags("packages") if place == "registry" else list(folder.rglob("*lz4*"))
    in_the_cache(site, heard, "rm -rf /cache/*")
    site.add_step("spack", f"there-{place}", environment(["lz4@1.9.4", f"tiny@{there}.0"]))
    heard = Heard()
    build(sharing, f"there-{place}", heard)
    assert Told.of(heard.lines).compiled == ("tiny",)
    in_the_cache(site, heard, "rm -rf /cache/*")
    site.add_step("spack", f"lost-{place}", environment(["lz4@1.9.4", f"tiny@{there}.0"]))
    heard = Heard()
    with_other_layers = sharing.with_environ(CIC_BUILD_SPACK_MIRROR="https://sources.invalid")
    build(with_other_layers, f"lost-{place}", heard)
    assert any("was concretized before" in line for line in heard.lines)
    assert Told.of(heard.lines).compiled == () and {"lz4", "tiny"} <= set(
        Told.of(heard.lines).taken
    )


def test_nothing_of_a_workflows_own_sees_the_cache(site: Site) -> None:
    """A hostile `post_inst.sh` and `setup.py` look for the cache, and write wherever they might
    find it.
    """
    hostile = (
        "import glob, os, setuptools\n"
        "for path in ['/run/cic/packages', '/cache', *glob.glob('/run/cic/*')]:\n"
        "    os.path.isdir(path) and open(path + '/poison', 'w').write('poison')\n"
        "setuptools.setup(name='hostile', version='1')\n"
    )
    script = (
        "#!/bin/sh\nfor folder in /run/cic/packages /run/cic; do\n"
        "    mkdir -p $folder/shared && echo poison >$folder/shared/poison\ndone\n"
    )
    site.add_step(
        "spack",
        "hostile",
        {
            **environment(["tiny@1.0"]),
            "setup.py": hostile,
            "requirements.txt": "./\n",
            "post_inst.sh": script,
        },
    )
    heard = Heard()
    build(site, "hostile", heard)
    assert in_the_cache(site, heard, "find /cache -name 'poison*'") == ""
