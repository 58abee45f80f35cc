"""A name of today and of earlier images: the same parts, however versions are written."""

from __future__ import annotations

import re

import pytest

from image_builder.store import spellings
from tests.unit.plan.test_image_name import image_name, request


def earlier(name: str) -> str:
    """A name as images between the first service and this spelling had it."""
    return re.sub(r"_([0-9][0-9.]*)(?=_(?:nogpu|cuda|v_)|-[0-9a-f]{8}|:)", r"-\1", name)


@pytest.mark.parametrize(
    "fields",
    [
        {"mpi": "openmpi@4"},
        {"mpi": "openmpi@4.1.5", "gpu": "cuda@12.4"},
        {"gpu": "cuda@12"},
        {"mpi": "intel-oneapi-mpi@2021.10.0"},
        {"workflow": "Pillar_I", "mpi": "openmpi@4"},
        {"workflow": "a_v_b", "mpi": "openmpi@4"},
        {"version": "x_v_1", "mpi": "openmpi@4"},
        {"architecture": None, "mpi": "openmpi@4"},
    ],
    ids=str,
)
def test_either_spelling_leads_to_both(fields: dict[str, str]) -> None:
    made = image_name(request(**fields))
    assert earlier(made.filename) != made.filename
    for name in (made.filename, earlier(made.filename)):
        assert spellings.of_filename(name) == (made.filename, earlier(made.filename))


@pytest.mark.parametrize(
    "name",
    [
        "w_s_zen2_nompi_nogpu_v_latest.sif",
        "w_s_zen2_openmpi_nogpu_v_1.sif",
        "w_s_x86_64_v4_nompi_nogpu_v_latest.sif",
        "more.sif",
        ".sif",
        "",
        "a_v_" * 5000 + "_1_",
    ],
    ids=lambda name: name[:40],
)
def test_a_name_without_versions_has_one_spelling(name: str) -> None:
    assert spellings.of_filename(name) == (name,)
