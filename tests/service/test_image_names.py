"""Two requests whose digests begin alike have one name: it stays with the first."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from image_builder.errors import ErrorCode, UserError
from image_builder.plan.digest import json_digest
from image_builder.plan.image_name import image_name, request_digest
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from service.db import builds
from service.db.builds import Limits, NewBuild
from tests.service.conftest import REQUEST

LIMITS = Limits(queued_builds=100)


@pytest.fixture(scope="module")
def alike() -> tuple[BuildRequest, BuildRequest]:
    """Two requests for different branches whose names are the same: some 80,000 have to be tried."""
    request = parse_request({**REQUEST, "version": "feature/1"})
    excluded: Any = {"force": True, "push": True, "machine": {"container_engine"}}
    excluded |= dict.fromkeys(("description", "packages", "name"), True)  # the request has none
    fields = request.model_dump(mode="json", exclude=excluded)
    assert json_digest(fields) == request_digest(request)
    seen: dict[str, str] = {}
    for number in range(10**6):
        version = f"feature/{'x' * 64}{number}"
        digits = json_digest(fields | {"version": version})[:8]
        if (other := seen.setdefault(digits, version)) != version:
            return (
                request.model_copy(update={"version": other}),
                request.model_copy(update={"version": version}),
            )
    raise AssertionError("no two digests began alike")


def new(request: BuildRequest, user: int) -> NewBuild:
    name = image_name(request)
    return NewBuild(
        user_id=user,
        request=request.model_dump(mode="json"),
        inputs={},
        join_key=request.version,
        identity=None,
        platform=request.machine.platform,
        target=request.machine.target.name,
        force=False,
        image_id=name.image_id,
        filename=name.filename,
        engine="singularity",
        push=False,
        warnings=(),
    )


def test_a_name_stays_with_the_request_that_had_it_first(
    app: Flask, alike: tuple[BuildRequest, BuildRequest]
) -> None:
    engine = app.extensions["cic"].engine
    first, second = alike
    assert image_name(first) == image_name(second)
    builds.create_or_join(engine, new(first, 1), LIMITS)
    with pytest.raises(UserError, match="is that of another request") as caught:
        builds.create_or_join(engine, new(second, 2), LIMITS)
    assert caught.value.code is ErrorCode.CONFLICT and caught.value.hint
    builds.create_or_join(engine, new(first, 2), LIMITS)
    builds.create_or_join(engine, new(first.model_copy(update={"force": True}), 2), LIMITS)
