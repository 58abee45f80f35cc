"""What is installed is locked: one version with its hashes, for everything that a requirements file lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.site import PROJECT

SETS = sorted(path.name for path in PROJECT.glob("requirements*.txt"))
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def listed(path: Path) -> dict[str, Requirement]:
    """What a requirements file lists, with what it includes."""
    requirements: dict[str, Requirement] = {}
    for line in path.read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("-r "):
            requirements |= listed(path.parent / text.removeprefix("-r ").strip())
        elif text:
            requirement = Requirement(text)
            requirements[canonicalize_name(requirement.name)] = requirement
    return requirements


def locked(name: str) -> dict[str, tuple[str, int]]:
    """The versions of a locked file, each with how many hashes it has."""
    entries = (PROJECT / "locked" / name).read_text("utf-8").replace("\\\n", " ").splitlines()
    versions = {}
    for entry in entries:
        requirement = Requirement(entry.split(" --hash")[0])
        (only,) = requirement.specifier
        assert only.operator == "==", entry
        versions[canonicalize_name(requirement.name)] = (only.version, len(_HASH.findall(entry)))
    return versions


@pytest.mark.parametrize("name", SETS)
def test_everything_listed_is_locked_at_a_version_that_is_allowed(name: str) -> None:
    versions = locked(name)
    assert all(hashes > 0 for _, hashes in versions.values())
    wanted = listed(PROJECT / name)
    assert wanted
    for package, requirement in wanted.items():
        assert package in versions, f"run scripts/lock: {package} is not locked"
        assert requirement.specifier.contains(versions[package][0], prereleases=True), package


def test_all_sets_have_the_same_versions() -> None:
    largest = locked("requirements-test.txt") | locked("requirements-oidc.txt")
    for name in SETS:
        assert {package: largest[package] for package in locked(name)} == locked(name), name
