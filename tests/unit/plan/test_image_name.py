"""Names of images and files: always valid, and never one for two different requests."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from image_builder.errors import InvalidRequest
from image_builder.plan.image_name import image_name, is_private_name, request_digest
from image_builder.request import cpu_targets
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from image_builder.sources.own_description import parse_any_request
from image_builder.store.record import is_filename
from tests.support.site import MACHINE

REFERENCE = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
"""One component of a repository's name, and a tag, by the grammar of image references."""
DIGEST = re.compile(r"-[0-9a-f]{8}\Z")


def request(**fields: Any) -> BuildRequest:
    """A request for `w`/`s`; fields of the machine are told by their name."""
    machine = {"platform": "linux/amd64", "architecture": "zen2", "container_engine": "singularity"}
    for name in ("platform", "architecture", "container_engine", "mpi", "gpu", "gpu_arch"):
        if name in fields:
            machine[name] = fields.pop(name)
    return parse_request(
        {"machine": machine, "workflow": "w", "step_id": "s", **fields}, allow_path=True
    )


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "w_s_zen2_nompi_nogpu:latest"),
        ({"architecture": None}, "w_s_x86_64_nompi_nogpu:latest"),
        (
            {"architecture": "Rome", "mpi": "openmpi@4", "gpu": "cuda@10.2"},
            "w_s_rome_openmpi_4_cuda_10.2:latest",
        ),
        (
            {"workflow": "minimal_workflow", "step_id": "wordcount", "version": "v1.2"},
            "minimal_workflow_wordcount_zen2_nompi_nogpu:v1.2",
        ),
        ({"mpi": "intel-oneapi-mpi@2021.10.0"}, "w_s_zen2_intel-oneapi-mpi_2021.10.0_nogpu:latest"),
    ],
)
def test_a_name_that_says_everything_is_plain(fields: dict[str, Any], name: str) -> None:
    made = image_name(request(**fields), prefix="registry.example/Group/")
    assert made.image_id == f"registry.example/group/{name}"
    assert made.filename == name.replace(":", "_v_") + ".sif"


@pytest.mark.parametrize(
    "fields",
    [
        {"workflow": "Pillar_II"},
        {"step_id": "Esm"},
        {"version": "V1"},
        {"version": "feature/x"},
        {"step_id": "a_b"},
        {"workflow": "a+b"},
        {"workflow": "a-.b"},
        {"workflow": "w" * 33},
        {"version": "1" * 65},
        {"mpi": "a@4 +b"},
        {"mpi": "openmpi@4:5"},
        {"mpi": "openmpi-4"},
        {"gpu": "cuda@12", "gpu_arch": "sm_80"},
        {"slim": True},
        {"slim": False},
        {"path": "/some/where"},
        {"gpu": "cuda-deadbeef"},
        {"version": "x_v_1"},
        {"version": "v_1"},
        {"architecture": "mic_knl"},
        {"version": "1+2"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_name_that_loses_something_ends_in_the_requests_digest(fields: dict[str, Any]) -> None:
    asked = request(**fields)
    made = image_name(asked)
    repository, tag = made.image_id.split(":")
    assert repository.endswith("-" + request_digest(asked)[:8])
    assert made.filename == f"{repository}_v_{tag}.sif"
    assert made.image_id == made.image_id.lower()


@pytest.mark.parametrize(
    ("field", "value"), [("force", True), ("push", False), ("container_engine", "docker")]
)
def test_how_a_build_goes_is_not_in_the_name(field: str, value: Any) -> None:
    for plain in ({}, {"workflow": "W"}):
        assert image_name(request(**plain, **{field: value})) == image_name(request(**plain))


WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,60}", fullmatch=True)
SPEC = st.none() | st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}([@ +~%][A-Za-z0-9_@.:=,+~% /-]{0,30})?", fullmatch=True
)
VERSION = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+/@-]{0,120}", fullmatch=True)
ARCHITECTURE = st.sampled_from(
    sorted(
        {row["name"] for row in cpu_targets.known_targets() if row["family"] == "x86_64"}
        | {"rome", "knl", "milan-x", "none"}
    )
)


@settings(max_examples=400)
@given(
    workflow=WORD,
    step_id=WORD,
    architecture=ARCHITECTURE,
    mpi=SPEC,
    gpu=SPEC,
    version=VERSION,
    slim=st.booleans(),
)
def test_a_name_is_always_valid(**fields: Any) -> None:
    try:
        asked = request(**fields)
    except InvalidRequest:
        assume(False)
    made = image_name(asked)
    assert REFERENCE.match(made.image_id)
    assert is_filename(made.filename)
    assert len(made.filename) <= 250


def what_it_asks_for(asked: BuildRequest) -> dict[str, Any]:
    """What decides about the image's content."""
    return {
        **asked.model_dump(exclude={"machine", "force", "push"}),
        "target": asked.machine.target,
        **asked.machine.model_dump(exclude={"container_engine", "architecture"}),
    }


def must_differ(asked: list[BuildRequest]) -> None:
    """Fails when two requests for different things have the same image or file, unless their
    digests begin alike.
    """
    by_name: dict[str, BuildRequest] = {}
    for one in asked:
        made = image_name(one)
        for name in (made.image_id, made.filename):
            other = by_name.setdefault(name, one)
            assert (
                what_it_asks_for(other) == what_it_asks_for(one)
                or request_digest(other)[:8] == request_digest(one)[:8]
            ), (name, one, other)


def test_requests_that_could_meet_do_not() -> None:
    """All combinations of values that were chosen because their parts can be taken for one
    another's.
    """
    words = [
        "a",
        "A",
        "a_b",
        "b",
        "a-b",
        "a.b",
        "a-.b",
        "mic",
        "a_mic",
        "s_mic",
        "zen2",
        "a_zen2",
        "x86",
        "nompi",
    ]
    must_differ(
        [
            request(workflow=workflow, step_id=step_id, architecture=architecture, mpi=mpi, gpu=gpu)
            for workflow, step_id in itertools.product(words, words)
            for architecture in ("zen2", "mic_knl", "knl", "x86_64", None)
            for mpi, gpu in [
                (None, None),
                ("openmpi@4", None),
                (None, "openmpi@4"),
                ("openmpi-4", None),
                ("zen2", None),
            ]
        ]
    )


def test_no_architecture_ends_in_anothers_name_unnoticed() -> None:
    names = {row["name"] for row in cpu_targets.known_targets()} | set(
        cpu_targets.facts()["products"]
    )
    asked = []
    for name in names:
        platform = cpu_targets.platform_of_family(_family(name))
        for cut in (position for position, letter in enumerate(name) if letter == "_"):
            begin, end = name[:cut], name[cut + 1 :]
            if end in names and cpu_targets.platform_of_family(_family(end)) == platform:
                asked += [
                    request(platform=platform, architecture=name, workflow="w", step_id="s"),
                    request(platform=platform, architecture=end, workflow="w_s", step_id=begin),
                ]
    assert len(asked) >= 2
    must_differ(asked)


def _family(name: str) -> str:
    return next(
        row["family"]
        for row in cpu_targets.known_targets()
        if name in (row["name"], *row["aliases"])
    )


def test_file_names_do_not_meet_where_name_and_version_are_joined() -> None:
    first = request(workflow="w_s_zen2_nompi_nogpu_v_1", step_id="s", version="2")
    second = request(workflow="w", step_id="s", version="1_s_zen2_nompi_nogpu_v_2")
    must_differ([first, second])


@settings(max_examples=400)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "workflow": st.sampled_from(["a", "a_b", "A", "a_b_c", "a-b"]),
                "step_id": st.sampled_from(["b", "c", "b_c", "B"]),
                "architecture": st.sampled_from(
                    ["zen2", "Zen2", "rome", "knl", "mic_knl", "none", "x86_64"]
                ),
                "mpi": st.sampled_from(
                    [None, "openmpi", "openmpi@4", "openmpi-4", "openmpi@4.0", "OpenMPI@4"]
                ),
                "gpu": st.sampled_from([None, "cuda@12", "cuda-12", "cuda@12 +dev"]),
                "gpu_arch": st.sampled_from([None, "sm_80"]),
                "version": st.sampled_from(["latest", "v1", "V1", "v/1", "v-1", "v_1"]),
                "slim": st.sampled_from([None, False, True]),
            }
        ),
        min_size=2,
        max_size=12,
    )
)
@pytest.mark.slow
def test_different_requests_have_different_names(asked: list[dict[str, Any]]) -> None:
    must_differ([request(**fields) for fields in asked])


NAMES_OF_USERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True)


@given(NAMES_OF_USERS, NAMES_OF_USERS)
def test_private_images_of_two_users_never_meet(one: str, other: str) -> None:
    request = private_request()
    names = [image_name(request, owner=owner) for owner in (one, other)]
    assert (names[0] == names[1]) == (one.lower() == other.lower())
    for name in names:
        assert is_private_name(name.filename) and is_filename(name.filename)
        assert REFERENCE.match(name.image_id)


@pytest.mark.parametrize("part", ["ada---x", "a--b", "x---", "---", "ada__b"])
def test_no_name_of_the_registry_is_a_private_one(part: str) -> None:
    request = private_request(packages=None, workflow=f"w{part}y", step_id=f"s{part}z")
    assert not is_private_name(image_name(request).filename)


def test_the_longest_private_name_is_a_file_name() -> None:
    request = private_request(
        packages=None, workflow="w" * 200, step_id="s" * 200, version="v" * 200
    )
    name = image_name(request, owner="o" * 64)
    assert is_filename(name.filename)


def test_who_may_see_an_image_is_no_part_of_the_request_that_names_it() -> None:
    hidden, shown = private_request(), private_request(visibility="site")
    assert request_digest(hidden) == request_digest(shown)
    assert (hidden.is_private, shown.is_private) == (True, False)
    assert parse_any_request({**STEP, "visibility": "private"}).is_private
    assert not parse_any_request(STEP).is_private


STEP = {"machine": MACHINE, "workflow": "demo", "step_id": "hello"}


def private_request(**fields: Any) -> BuildRequest:
    return parse_any_request({"machine": MACHINE, "packages": ["fftw"], **fields})
