"""Says what Spack's releases can do, where it makes a difference here. Pure."""

from __future__ import annotations

Release = tuple[int, ...]

NEWEST_TESTED: Release = (1, 2)
"""The release that an environment is written for if the base image's own is not known."""
FIRST_SHARING: Release = (0, 19)
"""The first release whose built packages are shared."""
FIRST_PUSHING: Release = (0, 22)
"""The first release that pushes each package by itself as it is finished."""
FIRST_PARALLEL: Release = (1, 2)
"""The first release that builds several packages at once within its jobs by itself."""
FIRST_WITH_SOLUTIONS: Release = (1, 2)
"""The first release whose cache of solutions is used."""
CHOOSES_PROVIDERS: Release = (1, 0)
"""The first release that finds a solution with `one_of` providers of a virtual package."""
PROPAGATES_REQUIREMENTS: Release = (1, 2)
"""The first release that finds a solution with `==` under `require`."""
SOLVES_WITH_FEWER: Release = (1, 2)
"""The release whose order of criteria is known, so that a solution with fewer packages is proven."""
FIRST_WITH_GROUPS: Release = (1, 2)
"""The first release whose environments may have groups of specs."""


def pushes_by_itself(release: Release | None) -> bool:
    """Return whether Spack itself pushes packages as they finish, without help of the recipe."""
    return release is not None and release >= FIRST_PUSHING


def installs_in_parallel(release: Release | None) -> bool:
    """Return whether Spack itself builds several packages at once, without help of the recipe."""
    return (release or NEWEST_TESTED) >= FIRST_PARALLEL


def keeps_solutions(release: Release | None) -> bool:
    """Return whether Spack has a cache of what it concretized, by the text of the problem."""
    return release is not None and release >= FIRST_WITH_SOLUTIONS


def solves_with_fewer(release: Release | None) -> bool:
    """Return whether the recipe can prove for this Spack that packages may be left out of a problem.

    What a newer one minimizes, and in which order, has to be looked at first.
    """
    return release is not None and release[:2] == SOLVES_WITH_FEWER
