"""A user's finished build is built again by its id: with what was kept of it, and for its user."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config.settings import Settings
from image_builder.proof import materials
from image_builder.proof.materials import BaseImage, Catalogue, Materials, Step
from image_builder.proof.used import Debian
from image_builder.recipe.pins import Deb
from image_builder.store.folder import ImageStore
from tests.conftest import PROJECT
from tests.service.conftest import REQUEST, Api, FakeBuilder
from tests.support.site import MACHINE, Site

LOCK = json.loads((PROJECT / "tests/data/locks/spack-1.1-openmpi-haswell.json").read_text())
BC = Deb(name="bc", architecture="amd64", version="1.0")


def keep(settings: Settings, builder: FakeBuilder, build: dict[str, Any]) -> Materials:
    """Keep what a build would have used, as the real builder does."""
    inputs = builder.inputs[-1]
    kept = Materials(
        image_id=inputs.image_id,
        identity=build["identity"],
        recipe=inputs.recipe_version,
        platform="linux/amd64",
        target="x86_64",
        is_slim=False,
        request={},
        step=Step(
            workflow="demo",
            step_id="hello",
            version="latest",
            tree=inputs.step.tree,
            commit=inputs.step.commit,
        ),
        catalogue=Catalogue(),
        base=BaseImage(
            reference=inputs.base.reference, digest=inputs.base.digest or "sha256:" + "1" * 64
        ),
        debian=Debian(added=(BC,)),
    )
    store = ImageStore(settings.library.build.tmp_folder / "store")
    store.keep_documents(build["identity"], {materials.FILE: kept.text()})
    return kept


def problems(api: Api, **fields: Any) -> list[str]:
    answer = api("POST", "/build/", json=fields)
    assert answer.status_code == 400, answer.text
    return [problem["field"] for problem in answer.get_json()["errors"]]


def test_it_is_pinned_to_what_was_kept(
    ada: Api, builder: FakeBuilder, settings: Settings, site: Site
) -> None:
    first = ada.submit()
    kept = keep(settings, builder, ada.wait(first))
    site.add_step("demo", "hello", {"eflows4hpc.yaml": "apt:\n  - less\n"})

    answer = ada("POST", "/build/", json={"from_lock": first, "force": True})
    assert answer.status_code == 200, answer.text
    again = ada.wait(answer.get_json()["id"])
    inputs, relock = builder.inputs[-1], builder.inputs[-1].relock
    assert relock is not None and relock.debs == (BC,) and relock.pins is not None
    assert (inputs.step.tree, inputs.step.commit) == (kept.step.tree, kept.step.commit)
    assert inputs.base.reference == kept.base.reference
    assert again["request"]["from_lock"] == first and again["filename"] != REQUEST
    assert builder.calls[-1].step_name == "hello"
    planned = ada("POST", "/build/plan", json={"from_lock": first}).get_json()
    assert planned["identity"] == inputs.identity and "apt.sh" in planned["dockerfile"]
    plain = ada("POST", "/build/plan", json=REQUEST).get_json()
    assert plain["filename"] != again["filename"], "the name stays with what is requested by it"


def test_somebody_elses_build_is_as_unknown_as_none(
    ada: Api, bob: Api, builder: FakeBuilder, settings: Settings
) -> None:
    first = ada.submit()
    keep(settings, builder, ada.wait(first))
    unknown = bob("POST", "/build/", json={"from_lock": first.replace(first[0], "0")})
    theirs = bob("POST", "/build/", json={"from_lock": first})
    assert theirs.status_code == unknown.status_code == 400
    assert theirs.get_json()["errors"] == unknown.get_json()["errors"]


def test_a_build_that_failed_or_kept_nothing_is_refused(ada: Api, builder: FakeBuilder) -> None:
    assert problems(ada, from_lock=ada.wait(ada.submit())["request"]["step_id"]) == ["from_lock"]
    first = ada.submit()
    ada.wait(first)
    assert problems(ada, from_lock=first) == ["from_lock"]
    builder.error = RuntimeError("broken")
    failed = ada.submit(step_id="other")
    ada.wait(failed)
    assert problems(ada, from_lock=failed) == ["from_lock"]


def test_another_machine_than_the_builds_is_refused(
    ada: Api, builder: FakeBuilder, settings: Settings
) -> None:
    first = ada.submit()
    keep(settings, builder, ada.wait(first))
    assert problems(ada, from_lock=first, machine={"architecture": "zen2"}) == [
        "machine.architecture"
    ]


def test_a_lock_goes_with_a_request_and_not_into_its_record(ada: Api, builder: FakeBuilder) -> None:
    machine = {**MACHINE, "architecture": "haswell"}
    plain = ada.submit(machine=machine)
    asked = ada.submit(machine=machine, from_lock=LOCK)
    status = ada.wait(asked)
    assert status["request"]["from_lock"].startswith("lock:")
    inputs = builder.inputs[-1]
    assert inputs.relock is not None and json.loads(inputs.relock.lock) == LOCK
    assert status["filename"] != ada.wait(plain)["filename"]
    assert problems(ada, **{**REQUEST, "from_lock": LOCK}) == ["from_lock"], "it is for haswell"
    assert problems(ada, **{**REQUEST, "machine": machine, "from_lock": {"roots": []}}) == [
        "from_lock"
    ]


@pytest.mark.parametrize("name", ["lock:" + "0" * 64, "../../etc/passwd", "sha256:" + "0" * 64])
def test_no_other_name_is_one_of_a_build(ada: Api, name: str) -> None:
    assert problems(ada, from_lock=name) == ["from_lock"]
