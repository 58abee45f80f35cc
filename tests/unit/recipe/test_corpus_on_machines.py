"""Every description of the corpus, for every machine of the catalogue: it plans, or it is refused
with the reason.
"""

from __future__ import annotations

from collections import Counter

import pytest

from image_builder.errors import ErrorCode, InvalidRequest, UserError
from image_builder.recipe.environment import Environment, compose
from image_builder.request.machines import load_machines
from image_builder.request.parsing import parse_request
from tests.support.planning import base, corpus, described

MACHINES = load_machines()
RELEASES = {"0.19": (0, 19, 2), "0.23": (0, 23, 1), "1.1": (1, 1, 0)}


def planned(step: str, name: str, release: tuple[int, ...]) -> Environment | UserError:
    machine = parse_request(
        {"machine": name, "workflow": "w", "step_id": "s"}, machines=MACHINES
    ).machine
    try:
        return compose(described(corpus()[step]), machine, base=base(release))
    except UserError as error:
        return error


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("step", corpus())
def test_it_plans_or_says_why_not(step: str, name: str, release: str) -> None:
    outcome = planned(step, name, RELEASES[release])
    if isinstance(outcome, UserError):
        assert outcome.code in (
            ErrorCode.COMPILER_TOO_OLD,
            ErrorCode.CONFLICT,
            ErrorCode.BAD_REQUEST,
        )
        assert outcome.message
        assert outcome.hint or isinstance(outcome, InvalidRequest)
        return
    assert outcome.spack is not None and outcome.spack_yaml is not None
    assert (
        outcome.target == MACHINES[name].facts(name).architecture
        or outcome.target in outcome.spack_yaml
    )
    for wanted in filter(None, (outcome.mpi, outcome.gpu)):
        assert any(wanted in root for root in outcome.roots), (wanted, outcome.roots)


def test_most_of_it_plans() -> None:
    """Refusals are the exception: compilers too old for the newest CPUs, and workflows that name
    their own MPI.
    """
    outcomes = Counter(
        type(planned(step, name, RELEASES["1.1"])) is Environment
        for step in corpus()
        for name in MACHINES
    )
    assert outcomes[True] > 0.8 * outcomes.total()
