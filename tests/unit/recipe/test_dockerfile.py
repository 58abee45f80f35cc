"""Recipes: whole Dockerfiles against golden files, and what must never get into one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.docker import buildx
from image_builder.errors import BadDescription, Misconfigured
from image_builder.recipe.base_image import render_base
from image_builder.recipe.dockerfile import (
    Recipe,
    RecipeOptions,
    render,
    site_secrets,
    step_commands,
    without_unused_secrets,
)
from image_builder.recipe.environment import compose
from image_builder.recipe.pins import Deb, PythonPackage
from image_builder.recipe.slim import FIRST_LINES_FILE
from image_builder.recipe.stages import FACTS_FOLDER, LATEST_RECIPE, LOCK_FILE, WANTED_FILE
from image_builder.request.parsing import parse_request
from tests.conftest import PROJECT
from tests.support.golden_files import assert_golden
from tests.support.planning import base, corpus, described, request
from tests.support.planning import build_settings as site

RECIPES = PROJECT / "image_builder" / "recipes"


def rendered(
    text: str,
    *,
    step_id: str = "solver",
    options: RecipeOptions | None = None,
    requirements: str | None = None,
    reference: str = "registry.test/spack_base@sha256:" + "a" * 64,
    runtime: str | None = None,
    facts: dict[str, Any] | None = None,
    **machine: str,
) -> Recipe:
    asked, description = request(step_id, **machine), described(text)
    of_base = base(reference=reference, **facts or {})
    options = options or RecipeOptions()
    environment = compose(
        description,
        asked.machine,
        base=of_base,
        requirements=requirements,
        has_post_install=options.has_post_install,
    )
    return render(
        environment,
        request=asked,
        description=description,
        base=of_base,
        options=options,
        runtime=base(reference=runtime) if runtime is not None else None,
    )


FULL = "apt: [grace, graphviz]\npip: [pillow, rocrate]\nspack:\n  specs: [compss@3.3, gromacs@2022.3~mpi^fftw~mpi]\n"


OLDER_SPACK = RecipeOptions(
    package_cache="cic-spack-0", packages_folder=True, parallel=True, autopush=True
)
NEWEST_SPACK = RecipeOptions(package_cache="cic-spack-0", solver_cache="cic-solver-0", fewer=True)


RELOCKED = RecipeOptions(
    relocked=True,
    debs=(
        Deb(name="grace", architecture="amd64", version="1:5.1.25-13"),
        Deb(name="graphviz", architecture="amd64", version="2.42"),
        Deb(name="tzdata", architecture="all", version="2024a-0"),
    ),
    later_debs=(Deb(name="python3-pip", architecture="all", version="23.0"),),
    python=(
        PythonPackage(name="Pillow", version="10.0", file="x.whl", sha256="a" * 64),
        PythonPackage(name="direct", version="1", url="https://host/d.zip", sha256="b" * 64),
        PythonPackage(name="cloned", version="1", url="https://host/c", commit="c" * 40),
        PythonPackage(name="own", version="1"),
    ),
)


@pytest.mark.parametrize(
    ("name", "text", "options", "machine"),
    [
        (
            "full",
            FULL,
            RecipeOptions(has_catalogue=True, has_spack_config=True),
            {"mpi": "openmpi@4"},
        ),
        ("post-install", FULL, RecipeOptions(has_catalogue=True, has_post_install=True), {}),
        (
            "apt-and-pip",
            "apt: [jq]\npip: [six]\n",
            RecipeOptions(has_catalogue=True, has_spack_config=True),
            {},
        ),
        ("sources-only", "", RecipeOptions(), {}),
        ("older-spack", "spack:\n  specs: [lz4]\n", OLDER_SPACK, {}),
        ("newest-spack", "spack:\n  specs: [lz4]\n", NEWEST_SPACK, {}),
        ("mpi-only", "", RecipeOptions(sources_folder=True), {"mpi": "openmpi@4"}),
        ("from-a-bundle", FULL, RecipeOptions(sources_folder=True, bundle=True), {}),
        ("relocked", FULL, RELOCKED, {}),
    ],
)
def test_golden_dockerfiles(
    name: str, text: str, options: RecipeOptions, machine: dict[str, str]
) -> None:
    assert_golden(f"Dockerfile-{name}", rendered(text, options=options, **machine).dockerfile)


def test_what_is_built_again_names_every_version() -> None:
    files = rendered(FULL, options=RELOCKED).files
    assert files["cic/pins.apt"] == (
        "Package: grace:amd64\nPin: version 1:5.1.25-13\nPin-Priority: 1001\n\n"
        "Package: graphviz:amd64\nPin: version 2.42\nPin-Priority: 1001\n\n"
        "Package: tzdata\nPin: version 2024a-0\nPin-Priority: 1001\n\n"
        "Package: python3-pip\nPin: version 23.0\nPin-Priority: 1001\n"
    )
    assert files["cic/versions.apt"] == "grace 1:5.1.25-13\ngraphviz 2.42\ntzdata 2024a-0\n"
    assert files["cic/pins.pip"] == (
        f"pillow==10.0 --hash=sha256:{'a' * 64}\n"
        f"direct @ https://host/d.zip --hash=sha256:{'b' * 64}\n"
    )


def test_golden_dockerfile_of_a_slim_image() -> None:
    recipe = rendered(
        FULL,
        runtime="registry.test/runtime:1",
        mpi="openmpi@4",
        facts={
            "variables": {
                "PATH": "/opt/spack/bin:/usr/bin",
                "LANG": "C.UTF-8",
                "SPACK_ROOT": "/opt/spack",
            },
            "folder": "/data",
            "labels": {"site.name": "here", "site.owner": "us"},
        },
    )
    assert_golden("Dockerfile-slim", recipe.dockerfile)


def test_golden_dockerfile_that_gathers() -> None:
    recipe = rendered(FULL, runtime="registry.test/runtime:1", options=RecipeOptions(gathers=True))
    without = rendered(FULL, runtime="registry.test/runtime:1")
    assert recipe.dockerfile.startswith(without.dockerfile), "so it has the layers of the build"
    assert_golden("Dockerfile-gathering", recipe.dockerfile[len(without.dockerfile) :])


@pytest.mark.parametrize(
    ("text", "options", "stage"),
    [
        ("pip: [six]\nspack:\n  specs: [lz4]\n", {}, "system"),
        ("pip: [six]\nspack:\n  specs: [lz4]\n", {"python_is_installed": True}, "installed"),
        ("pip: [six]\nspack:\n  specs: [lz4]\n", {"has_post_install": True}, "installed"),
        ("pip: [six]\n", {"has_post_install": True}, "system"),
    ],
)
def test_wheels_are_fetched_for_the_python_that_installs_them(
    text: str, options: dict[str, bool], stage: str
) -> None:
    """Spack builds for hours: a bundle waits for that only where its Python decides."""
    recipe = rendered(text, options=RecipeOptions(gathers=True, **options))  # type: ignore[arg-type]
    assert f"FROM {stage} AS gathered-wheels\n" in recipe.dockerfile


def test_what_a_build_without_anything_to_fetch_gathers() -> None:
    assert rendered("", options=RecipeOptions(gathers=True)).gathered == ()
    assert rendered("apt: [jq]\n").gathered == ()
    both = rendered("apt: [jq]\npip: [six]\n", options=RecipeOptions(gathers=True))
    assert both.gathered == ("system", "wheels")


def instructions(recipe: Recipe) -> list[str]:
    joined = recipe.dockerfile.replace("\\\n", " ")
    return [
        " ".join(line.split()) for line in joined.splitlines() if line and not line.startswith("#")
    ]


def test_the_step_comes_last() -> None:
    """What changes most often is copied last: a changed source runs neither Spack nor apt nor pip."""
    lines = instructions(rendered(FULL))
    assert not any(line.startswith("RUN") for line in lines[lines.index("COPY step/ /solver/") :])


def test_with_a_post_install_script_pip_comes_after_it() -> None:
    lines = instructions(rendered(FULL, options=RecipeOptions(has_post_install=True)))
    at = [
        next(index for index, line in enumerate(lines) if word in line)
        for word in (
            'install.sh", "keep-stages"]',
            "COPY step/",
            'post_install.sh", "/solver"]',
            'pip.sh"]',
        )
    ]
    assert at == sorted(at)


def test_requirements_that_name_files_of_the_step_come_after_its_sources() -> None:
    lines = instructions(rendered("", requirements="-e .\n"))
    assert lines.index("COPY step/ /solver/") < next(
        at for at, line in enumerate(lines) if line.endswith('["sh", "/run/cic/pip.sh", "/solver"]')
    )


def test_without_a_need_for_spack_there_is_no_spack() -> None:
    recipe = rendered(
        "apt: [jq]\npip: [six]\n", options=RecipeOptions(has_catalogue=True, has_spack_config=True)
    )
    assert not recipe.has_spack
    assert "spack" not in "\n".join(instructions(recipe)).replace("/spack_base@", "")
    assert not any("spack" in name for name in recipe.files)


def test_no_frontend_is_fetched() -> None:
    """`# syntax=` would fetch an image from a registry that a site may not reach."""
    assert "syntax" not in rendered(FULL).dockerfile


@pytest.mark.parametrize("name", [*corpus(), None])
@pytest.mark.parametrize("runtime", [None, "registry.test/runtime:1"])
def test_steps_ask_for_no_rights_and_no_other_network(
    name: str | None, runtime: str | None
) -> None:
    """Whatever a description says, a step has what is listed here: no `--network`, `--security` or
    device.
    """
    recipe = rendered(
        FULL if name is None else corpus()[name],
        runtime=runtime,
        options=RecipeOptions(has_catalogue=True, has_spack_config=True, has_post_install=True),
    )
    assert recipe.dockerfile.lstrip().startswith(f"# Recipe {LATEST_RECIPE}."), (
        "no directive comes before"
    )
    for line in instructions(recipe):
        word, _, rest = line.partition(" ")
        assert word in {
            "FROM",
            "USER",
            "ARG",
            "ENV",
            "COPY",
            "RUN",
            "ENTRYPOINT",
            "LABEL",
            "WORKDIR",
        }, line
        flags = [part for part in rest.split() if part.startswith("--")]
        if word == "RUN":
            assert all(
                re.match(r"--mount=type=(bind|secret|tmpfs|cache),", flag) for flag in flags
            ), line
        else:
            assert all(re.match(r"--(from=[a-z-]+|chmod=[0-7]+)\Z", flag) for flag in flags), line


def test_every_file_that_the_dockerfile_takes_is_there() -> None:
    for recipe in (
        rendered(FULL, options=RecipeOptions(has_catalogue=True, has_post_install=True)),
        rendered(""),
        rendered(FULL, options=OLDER_SPACK),
        rendered(FULL, runtime="r:1"),
        rendered("", runtime="r:1"),
    ):
        taken = re.findall(
            r"source=(cic/[\w./-]+)|COPY (?:--chmod=\d+ )?(cic/[\w./]+)", recipe.dockerfile
        )
        for name in filter(None, sum(taken, ())):
            if name in (
                FIRST_LINES_FILE,
                LOCK_FILE,
                WANTED_FILE,
                FACTS_FOLDER,
            ):  # made of the step, by Spack, in the exchange, and of the full image
                continue
            assert any(
                path == name or (path.startswith(name) and name.endswith("/"))
                for path in recipe.files
            ), name


def test_the_image_says_what_it_was_made_of() -> None:
    recipe = rendered(FULL)
    assert recipe.version == LATEST_RECIPE
    assert recipe.files["cic/record/description.yaml"] == FULL
    told = json.loads(recipe.files["cic/record/request.json"])
    assert told["workflow"] == "demo" and told["machine"]["architecture"] == "haswell"


def test_the_request_in_the_image_does_not_tell_the_operators_paths() -> None:
    asked = parse_request(
        {
            "machine": {"platform": "linux/amd64", "container_engine": "docker"},
            "workflow": "demo",
            "step_id": "solver",
            "path": "/home/somebody",
            "force": True,
            "push": False,
        },
        allow_path=True,
    )
    description = described("")
    recipe = render(
        compose(description, asked.machine, base=base()),
        request=asked,
        description=description,
        base=base(),
        options=RecipeOptions(),
    )
    assert not {"path", "force", "push"} & set(json.loads(recipe.files["cic/record/request.json"]))


@pytest.mark.parametrize("reference", ["x\nRUN id", "x AS y", "-x", "", "x;y", "x$y"])
def test_a_base_that_is_no_reference(reference: str) -> None:
    with pytest.raises(Misconfigured):
        rendered("", reference=reference)
    with pytest.raises(Misconfigured):
        rendered("", runtime=reference)


CANARY = "canary7f3a"


@pytest.mark.parametrize(
    "text",
    [
        f"apt: [{CANARY}]",
        f"pip: [{CANARY}==1]",
        f"spack:\n  specs: [{CANARY}@1]",
        f"spack:\n  specs: [a]\n  packages: {{{CANARY}: {{version: ['1']}}}}",
        f"smoke: [{CANARY}]",
    ],
)
def test_no_value_of_a_description_gets_into_the_dockerfile(text: str) -> None:
    recipe = rendered(text)
    assert CANARY not in recipe.dockerfile
    assert any(CANARY in content for content in recipe.files.values())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=30), max_size=3),
    st.lists(st.text(max_size=30), max_size=3),
    st.text(max_size=60),
)
def test_whatever_is_written_the_dockerfile_has_the_same_lines(
    apt: list[str], pip: list[str], spec: str
) -> None:
    import yaml

    text = yaml.safe_dump(
        {"apt": ["jq", *apt], "pip": ["six", *pip], "spack": {"specs": ["zlib", spec]}}
    )
    try:
        recipe = rendered(text)
    except BadDescription:
        return
    assert (
        recipe.dockerfile == rendered("apt: [jq]\npip: [six]\nspack:\n  specs: [zlib]\n").dockerfile
    )


def test_rendering_is_a_function() -> None:
    for text in corpus().values():
        assert rendered(text) == rendered(text)


def test_each_step_gets_what_it_needs_of_the_site_and_no_more() -> None:
    assert site_secrets(site()) == {}
    lent = site_secrets(
        site(
            pip_index_url="https://index.test/simple",
            spack_mirror="https://u:p@mirror.test",
            apt_mirror="http://apt:pw@mirror.test/debian",
        )
    )
    assert lent == {
        "site_apt": "apt_mirror=http://apt:pw@mirror.test/debian\n",
        "site_spack": "spack_mirror=https://u:p@mirror.test\n",
        "site_pip": "pip_index_url=https://index.test/simple\n",
        "site_base": "pip_index_url=https://index.test/simple\n",
    }
    with pytest.raises(Misconfigured):
        site_secrets(site(spack_mirror="https://x\npip_index_url=y"))


def test_a_proxy_with_a_password_reaches_no_step_of_a_stranger() -> None:
    settings = site(http_proxy="http://svc:pw@proxy.test:3128", no_proxy="localhost")
    assert buildx.proxy_arguments(settings) == {}
    lent = site_secrets(settings)
    told = "http_proxy=http://svc:pw@proxy.test:3128\nno_proxy=localhost\n"
    assert lent == {"site_apt": told, "site_spack": told, "site_base": told}
    plain = site(http_proxy="http://proxy.test:3128")
    assert site_secrets(plain) == {} and buildx.proxy_arguments(plain)


def test_a_base_image_of_no_debian_packages_has_no_list_of_them() -> None:
    listed = "COPY --from=base /var/lib/dpkg/status /base/"
    assert listed in rendered("").dockerfile
    other = rendered("", facts={"has_dpkg": False}).dockerfile
    assert listed not in other and "COPY --from=base /var/lib/dpkg/statu[s] /base/" in other


def test_a_build_mounts_the_secrets_that_the_site_lends_and_no_others() -> None:
    """BuildKit 0.13 reads the whole file system of a step that mounts a secret: buildx #2361."""
    recipe = rendered("apt: [bc]\npip: [six]\nspack:\n  specs: [zlib]\n").dockerfile
    assert "type=secret" not in without_unused_secrets(recipe, {})
    mirrored = without_unused_secrets(recipe, site_secrets(site(apt_mirror="http://mirror.test")))
    assert set(re.findall(r"type=secret,id=(\w+)", mirrored)) == {"site_apt"}
    assert without_unused_secrets(recipe, {"site_apt", "site_spack", "site_pip"}) == recipe
    assert step_commands(without_unused_secrets(recipe, {})) == step_commands(recipe)


def test_a_site_can_give_each_secret_that_a_recipe_mounts() -> None:
    given = site_secrets(
        site(
            apt_mirror="http://mirror.test/debian",
            spack_mirror="https://mirror.test",
            pip_index_url="https://index.test/simple",
        )
    )
    whole = rendered(
        "apt: [bc]\npip: [six]\nspack:\n  specs: [zlib]\n",
        options=RecipeOptions(gathers=True),
        runtime="registry.test/runtime:1",
    )
    for dockerfile in (whole.dockerfile, render_base("debian:12", has_packages=True)[0]):
        mounted = set(re.findall(r"type=secret,id=(\w+)", dockerfile))
        assert mounted and mounted <= set(given)
        assert without_unused_secrets(dockerfile, given) == dockerfile
        assert "type=secret" not in without_unused_secrets(dockerfile, {})


def test_no_step_after_a_strangers_code_sees_what_others_share() -> None:
    """Stages are in order; those from `prepared` on hold what a description's code made."""
    recipe = rendered(
        "apt: [bc]\npip: [six]\nspack:\n  specs: [zlib]\n",
        options=RecipeOptions(has_post_install=True, package_cache="cic-spack-x"),
        runtime="registry.test/runtime:1",
    )
    stages = re.split(r"^FROM ", recipe.dockerfile, flags=re.MULTILINE)[1:]
    named = {stage.split("\n")[0].split(" AS ")[1]: stage for stage in stages}
    assert {"prepared", "final", "collected", "verified", "slim", "facts"} <= named.keys()
    for name in ("prepared", "final", "collected", "verified"):
        assert "type=cache" not in named[name], name
        assert not re.findall("id=site_(?!pip)", named[name]), name
    assert named["verified"].startswith("installed AS "), (
        "no program of the image tells what it has"
    )
    before_the_copy = named["slim"].split("COPY --from=collected")[0]
    assert "from=collected" not in before_the_copy and "type=cache" in before_the_copy
    assert "type=cache" not in named["slim"].removeprefix(before_the_copy)


def test_the_commands_of_a_recipes_steps() -> None:
    recipe = rendered(
        "apt: [bc]\npip: [six]\n", options=RecipeOptions(has_post_install=True), runtime=None
    )
    assert step_commands(recipe.dockerfile) == {
        ("sh", "/run/cic/apt.sh"),
        ("sh", "/run/cic/post_install.sh", "/solver"),
        ("sh", "/run/cic/pip.sh"),
    }


@pytest.mark.parametrize(
    "script", sorted((RECIPES / LATEST_RECIPE).glob("*.sh")), ids=lambda path: path.name
)
def test_scripts_are_sh(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    first = next(
        line for line in script.read_text("utf-8").splitlines() if not line.startswith("#")
    )
    assert first == "set -eu" or first == ". /run/cic/lib.sh", (
        "a script stops at the first failing command"
    )


def test_scripts_pass_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(path) for path in sorted((RECIPES / LATEST_RECIPE).glob("*.sh"))]
    # SC1091: lib.sh lies elsewhere here; SC2164: it says set -e
    subprocess.run([checker, "--shell=sh", "--exclude=SC1091,SC2164", *scripts], check=True)
