"""Of what no bundle is made; whole ones are the system tests' part."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.bundle.make import make_bundle
from image_builder.errors import UserError
from image_builder.host.cancellation import CancelToken
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from tests.support.planning import request
from tests.support.recording import Heard


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            request().model_copy(update={"workflow": "BASE", "step_id": "BASE"}),
            "holds a base image",
        ),
        (request().model_copy(update={"from_lock": "0" * 36}), "a lockfile of its own"),
    ],
)
def test_what_no_bundle_is_made_of(
    asked: BuildRequest, said: str, tmp_path: Path, library_settings: LibrarySettings
) -> None:
    heard = Heard()
    with pytest.raises(UserError, match=said) as caught:
        make_bundle(
            asked,
            settings=library_settings,
            output=tmp_path / "bundle.tar",
            workspace=tmp_path / "work",
            observer=heard,
            cancel=CancelToken(),
        )
    assert caught.value.hint
    assert (heard.states, list(tmp_path.iterdir())) == ([], [])
