"""What is built again from what was kept: the same file, or a refusal that says what is gone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from image_builder.errors import BuildFailed, CicError, InvalidRequest
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import BuildResult, build_image, kept_request
from image_builder.proof import materials
from image_builder.sources.own_description import parse_any_request
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import RUN, Site, make_site
from tests.system.test_spack_standin import TARGET, build, described, standin_base

pytestmark = pytest.mark.system

STEP = {**described("needy", "openmpi@4", more="apt: [bc]\npip: [six]\n")}
MACHINE = {
    "platform": "linux/amd64",
    "architecture": TARGET,
    "container_engine": "singularity",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("again")
    with standin_base(root) as name:
        made = make_site(root).with_environ(CIC_BUILD_BASE_IMAGE=name)
        yield made
        remove_images(made)


@pytest.fixture(scope="module")
def first(site: Site) -> BuildResult:
    """An image whose step, registry and names have moved on since."""
    made = build(site, "again", STEP, container_engine="singularity")
    site.add_step("spack", "again", {"run-of-tests.txt": RUN, **described("heat")})
    return made


def again(site: Site, heard: Heard | None = None, **fields: Any) -> BuildResult:
    library = site.settings.library
    request = parse_any_request(fields, kept=lambda name: kept_request(name, library))
    return build_image(
        request,
        settings=library,
        workspace=site.root / "workspace",
        observer=heard or Heard(),
        cancel=CancelToken(),
    )


def store(site: Site) -> ImageStore:
    return ImageStore(site.tmp_folder / "store")


def test_the_same_is_built_again_from_what_was_kept(site: Site, first: BuildResult) -> None:
    heard = Heard()
    made = again(site, heard, from_lock=first.filename, force=True)
    assert not made.reused and "Spack decides nothing" in "\n".join(heard.lines)
    assert made.identity == first.identity and made.filename != first.filename
    assert again(site, from_lock=first.filename).reused


def test_an_image_that_is_there_is_not_built_again(site: Site, first: BuildResult) -> None:
    assert again(site, from_lock=first.identity).reused


def test_a_lock_takes_the_place_of_what_spack_would_decide(site: Site, first: BuildResult) -> None:
    lock = json.loads(store(site).document(first.identity, "spack.lock") or "")
    site.add_step("spack", "brought", {"run-of-tests.txt": secrets.token_hex(4), **STEP})
    heard = Heard()
    made = again(site, heard, machine=MACHINE, workflow="spack", step_id="brought", from_lock=lock)
    said = materials.read_materials(store(site).document(made.identity, materials.FILE) or "")
    assert said.spack_lock == lock and said.is_lock_foreign and said.lock_digest is not None
    assert "spack_cache" not in "\n".join(heard.lines)
    plain = again(site, machine=MACHINE, workflow="spack", step_id="brought")
    assert plain.identity != made.identity and plain.filename != made.filename
    assert again(site, from_lock=made.identity, force=True).identity == made.identity


def test_a_lock_that_was_edited_is_refused_before_anything_is_installed(
    site: Site, first: BuildResult
) -> None:
    lock = json.loads(store(site).document(first.identity, "spack.lock") or "")
    next(iter(lock["concrete_specs"].values()))["version"] = "6.6.6"
    site.add_step("spack", "edited", {"run-of-tests.txt": RUN, **STEP})
    heard = Heard()
    with pytest.raises(BuildFailed) as caught:
        again(site, heard, machine=MACHINE, workflow="spack", step_id="edited", from_lock=lock)
    assert "not what their hashes say" in str(caught.value)
    assert "install.sh" not in "\n".join(heard.lines)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"debian": {"added": [{"version": "0.0.1"}]}}, "bc 0.0.1"),
        ({"python": [{"version": "0.0.1"}]}, "six"),
        ({"step": {"commit": "0" * 40}}, "0" * 12),
        ({"base": {"reference": "cic-gone:1", "digest": f"sha256:{'0' * 64}"}}, "cic-gone:1"),
    ],
    ids=["deb", "wheel", "commit", "base"],
)
def test_what_is_gone_is_named(
    site: Site, first: BuildResult, change: dict[str, Any], named: str
) -> None:
    """As if the archive, the index, the registry or the daemon did not have it any more."""
    kept = json.loads(store(site).document(first.identity, materials.FILE) or "")
    identity = f"sha256:{secrets.token_hex(32)}"
    store(site).keep_documents(
        identity, {materials.FILE: json.dumps(changed(kept, change) | {"identity": identity})}
    )
    with pytest.raises(CicError) as caught:
        again(site, from_lock=identity)
    assert named in " ".join((str(caught.value), *getattr(caught.value, "details", ())))


def changed(value: Any, change: Any) -> Any:
    """Return a document with parts replaced; of a list, the change is of the first."""
    if isinstance(change, dict):
        return {**value, **{key: changed(value[key], one) for key, one in change.items()}}
    if isinstance(change, list):
        return [changed(value[0], change[0]), *value[1:]]
    return change


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"from_lock": "no_such.sif"}, "from_lock"),
        ({"from_lock": f"sha256:{'9' * 64}"}, "from_lock"),
        ({"machine": {"architecture": "zen2"}}, "machine.architecture"),
        ({"machine": {"mpi": "mpich@4"}}, "machine.mpi"),
        ({"step_id": "other"}, "step_id"),
    ],
)
def test_what_does_not_agree_is_refused(
    site: Site, first: BuildResult, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        again(site, **{"from_lock": first.filename, **fields})
    assert [problem.field for problem in caught.value.problems] == [field]
