"""Whether ranges of versions have something in common."""

from __future__ import annotations

import pytest

from image_builder.spack.version_ranges import highest, lowest, matching, overlap


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("11.2", "11.8:", False),
        ("11", "11.8:", True),
        ("10", "11.0:", False),
        ("12", ":11.8", False),
        ("11.8.0", ":11.8", True),
        ("12.6.2", ":12", True),
        ("13", "9.0:12.9", False),
        ("", "5:", True),
        ("=11.7.0", ":11.6", False),
        ("4,12", "11.8:", True),
        ("12:12.3", "12.2", True),
        (":11", "11.8:", True),
        ("11:11.2", "11.8:", False),
        ("master", "5.7:", True),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


def test_ends_and_what_lies_between() -> None:
    assert (lowest("9.0:12.9"), highest("9.0:12.9")) == ("9.0", "12.9")
    assert (lowest(":12.9"), highest("9.0:"), lowest("1:2,4:")) == ("", "", "")
    assert matching(("4.1.6", "4.0", "3.4.3", "main"), "4") == ("4.1.6", "4.0")
    assert matching(("4.0", "main"), "") == ("4.0", "main")
