"""Make what the planner's tests need: descriptions, machines and bases."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.plan.inputs import Inputs
from image_builder.recipe.environment import Environment, compose
from image_builder.request.build_request import BuildRequest, Machine
from image_builder.request.parsing import parse_request
from image_builder.settings import BuildSettings
from image_builder.sources.description import Description, parse_description
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.sources.step import StepRef
from image_builder.spack.knowledge import SpackKnowledge, read_knowledge

CORPUS = Path(__file__).resolve().parents[1] / "data" / "corpus"
KNOWLEDGE = CORPUS.parent / "knowledge"
FILE = "eflows4hpc.yaml"


def base(spack: tuple[int, ...] | None = (0, 23, 1), **facts: Any) -> BaseFacts:
    """Return a Debian 12 base with its compiler."""
    return BaseFacts(
        **{
            "reference": "registry.test/spack_base:1",
            "digest": None,
            "platform": "linux/amd64",
            "os_id": "debian",
            "os_version": "12",
            "spack_version": spack,
            "compilers": {"gcc": "12.2.0"},
            "python": "3.11.2",
            "has_dpkg": True,
            **facts,
        }
    )


def build_settings(**keys: Any) -> BuildSettings:
    """Return a site's settings of builds, with nothing but what each has to say."""
    return BuildSettings(
        tmp_folder=Path("/tmp"), builder_home=Path("/opt"), base_image="base", **keys
    )


def machine(**fields: Any) -> Machine:
    return Machine.model_validate(
        {
            "platform": "linux/amd64",
            "architecture": "haswell",
            "container_engine": "singularity",
            **fields,
        }
    )


def request(step_id: str = "solver", **fields: Any) -> BuildRequest:
    return parse_request(
        {
            "machine": {
                "platform": "linux/amd64",
                "architecture": "haswell",
                "container_engine": "singularity",
                **fields,
            },
            "workflow": "demo",
            "step_id": step_id,
        }
    )


def pinned_inputs(**changes: Any) -> Inputs:
    """Return what a request for one step of a registry names."""
    plain = Inputs(
        step=StepRef(workflow="w", step_id="s", version="latest", tree="1" * 40, commit=None),
        catalogue=PinnedCatalogue(packages_tree="2" * 40, config_tree="3" * 40),
        base=base(digest="sha256:" + "4" * 64),
        branch_commits={},
        recipe_version="1",
        image_id="a:1",
        filename=None,
        identity=None,
        push=False,
        warnings=(),
    )
    return plain.model_copy(update=changes)


def described(text: str) -> Description:
    return parse_description(text, FILE)


def composed(
    text: str,
    *,
    spack: tuple[int, ...] | None = (0, 23, 1),
    requirements: str | None = None,
    has_post_install: bool = False,
    site_packages: dict[str, Any] | None = None,
    apt_base: BaseFacts | None = None,
    knows: SpackKnowledge | None = None,
    **fields: Any,
) -> Environment:
    """Return the environment of a description's text on a machine with the given fields."""
    return compose(
        described(text),
        machine(**fields),
        base=apt_base or base(spack),
        requirements=requirements,
        has_post_install=has_post_install,
        site_packages=site_packages,
        knows=knows,
    )


@functools.cache
def knowledge(release: str) -> SpackKnowledge:
    """Return what a real Spack of a release knows, cut to the packages that tests name."""
    return read_knowledge((KNOWLEDGE / f"{release}.txt").read_text("utf-8"))


def corpus() -> dict[str, str]:
    """Return descriptions of real workflows, by `workflow/step`."""
    return {
        str(path.parent.relative_to(CORPUS)): path.read_text("utf-8")
        for path in sorted(CORPUS.rglob(FILE))
    }
