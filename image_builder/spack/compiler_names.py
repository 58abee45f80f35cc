"""Knows compilers: their names before Spack 1.0 and from 1.0 on, and what distributions have. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.data import facts_of


def _facts() -> Mapping[str, Any]:
    return facts_of("compilers")


def package_of(compiler: str) -> str:
    """Return the package of a compiler, such as `llvm@15` for `clang@15`; it may have a version."""
    name, at, version = compiler.partition("@")
    return str(_facts()["renamed"].get(name, name)) + at + version


def is_compiler(name: str) -> bool:
    """Return whether a package, or a name used before Spack 1.0, is a compiler."""
    return package_of(name) in _facts()["variants"]


def own_variants(name: str) -> frozenset[str]:
    """Return the variants that a compiler's package itself has."""
    return frozenset(_facts()["variants"].get(package_of(name), ()))


def packaged_gcc(system: str) -> Sequence[int] | None:
    """Return the majors of GCC that a system's packages have (`debian12`), or None if unknown."""
    majors: Sequence[int] | None = _facts()["packaged_gcc"].get(system)
    return majors


def gcc_packages(major: int | str) -> str:
    """Return the Debian packages of a whole GCC."""
    return ", ".join(f"{part}-{major}" for part in ("gcc", "g++", "gfortran"))
