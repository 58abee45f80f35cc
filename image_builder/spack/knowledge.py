"""Holds what the Spack of a base image knows: packages, MPIs, GPU runtimes and compilers.

`recipes/probe/spack_knowledge.py` prints it in the image, `read_knowledge` reads that, and
`docker.spack_knowledge` keeps it. What a release can do is in no table of ours.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from image_builder.spack import version_ranges
from image_builder.spack.spec import version_order

FORMAT = 2
"""The form of what the script prints; with another one, the script runs again."""
MARK = "cic-spack-knowledge "
"""The beginning of the script's line; Spack may print warnings before it."""
MAX_BYTES = 16 * 1024**2

_PREFIXES = ("", "py-", "r-", "perl-", "lib", "intel-oneapi-")
"""What packages of languages and of one vendor begin with, and people leave out."""

Name = str
Version = str
Ranges = str
"""Versions as a spec has them after its `@`: `:11.8`, `4.1:4.3,5`."""


class Branches(NamedTuple):
    """Holds a package's versions that are branches -> the git URL and the branch's name there."""

    by_version: Mapping[Version, tuple[str, str]] = {}
    has_others: bool = True
    """Whether there are versions that are no branches: Spack takes these first."""


class KnownPackage(NamedTuple):
    """Describes one package, as this Spack's recipe has it."""

    versions: tuple[Version, ...]
    branches: Mapping[Version, tuple[str, str]] = {}
    """A version that is a branch -> the git URL and the branch's name there."""
    variants: tuple[Name, ...] = ()
    provides: tuple[Name, ...] = ()
    """The virtual packages that it can be."""
    refusals: Mapping[Name, tuple[Version, ...]] = {}
    """A GPU's variant (`cuda`) -> the versions that cannot be built with it."""
    may_be_found: bool = True
    """Whether `spack external find` looks for it in an image."""
    needs_architecture: tuple[Name, ...] = ()
    """The GPU's variants that it takes only together with an architecture."""

    def matching(self, wanted: Ranges) -> tuple[Version, ...]:
        """Return the versions that are in a range."""
        return version_ranges.matching(self.versions, wanted)

    def takes(self, variant: Name, wanted: Ranges) -> bool:
        """Return whether any version in a range can be built with a GPU's variant."""
        refused = set(self.refusals.get(variant, ()))
        return variant in self.variants and not set(self.matching(wanted)) <= refused

    def first_that_takes(self, variant: Name) -> Version | None:
        """Return the oldest numbered version from which on all take a GPU's variant, or None."""
        taking: list[Version] = []
        for version in sorted(filter(_is_numbered, self.versions), key=version_order, reverse=True):
            if version in self.refusals.get(variant, ()):
                break
            taking.append(version)
        return taking[-1] if taking else None


class CompilerConflict(NamedTuple):
    """Names CUDA versions that do not take versions of a compiler, on some targets (`` is all)."""

    compiler: Name
    compiler_versions: Ranges
    cuda_versions: Ranges
    targets: str


class SpackKnowledge(BaseModel):
    """Holds what one Spack knows, as the script prints it."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal[2]
    release: str
    system: str
    """The operating system as Spack names it: `debian12`."""
    targets: frozenset[Name]
    """The CPU targets that it can build for."""
    compilers: tuple[str, ...]
    """The compilers of its own configuration, as specs."""
    externals: Mapping[Name, tuple[str, ...]]
    """Packages that its own configuration takes from the system -> their specs."""
    mpis: Mapping[Name, Literal["", "external", "manual", "platform"]]
    """Packages that provide MPI -> why they cannot be built here, or nothing."""
    mpi_interfaces: Mapping[Name, tuple[tuple[Ranges, Ranges], ...]]
    """Those packages -> their versions, and the versions of MPI's interface that these provide."""
    cuda_arch_values: frozenset[str]
    amdgpu_targets: frozenset[str]
    cuda_archs: tuple[tuple[str, Ranges], ...]
    """An architecture (`90`), and the CUDA versions that packages may use for it."""
    cuda_compilers: tuple[CompilerConflict, ...]
    packages: Mapping[Name, KnownPackage | None]
    """None in place of a package says that this Spack could not load it."""
    has_all_packages: bool
    """Whether there was time to load all of them, and not only MPIs and GPU runtimes."""

    @functools.cached_property
    def virtuals(self) -> frozenset[Name]:
        """Return the names of virtual packages, such as `mpi`."""
        known = (package for package in self.packages.values() if package is not None)
        return frozenset(name for package in known for name in package.provides)

    def is_unknown(self, name: Name) -> bool:
        """Return whether all packages are known, and none, real or virtual, has this name."""
        return self.has_all_packages and name not in self.packages and name not in self.virtuals

    def names_like(self, name: Name) -> tuple[Name, ...]:
        """Return the packages that somebody may mean who writes a name that none has.

        `numpy` is py-numpy, `hdf5-parallel` is hdf5, `superludist` is superlu-dist.
        """
        known = self._names_by_letters
        others = (name.removeprefix("lib"), name.replace("intel-", "intel-oneapi-", 1))
        for meant in (*(f"{prefix}{name}" for prefix in _PREFIXES), *others):
            if found := known.get(_letters(meant)):
                return (found,)
        if name[-1:].isdigit():
            stem = _without_number(_letters(name))
            if numbered := [
                own for letters, own in known.items() if _without_number(letters) == stem
            ]:
                return tuple(numbered[:3])
        parts = name.split("-")
        for count in range(len(parts) - 1, 0, -1):
            if found := known.get(_letters("".join(parts[:count]))):
                return (found,)
        close = difflib.get_close_matches(_letters(name[:200]), known, n=3, cutoff=0.8)
        return tuple(known[letters] for letters in close)

    @functools.cached_property
    def _names_by_letters(self) -> Mapping[str, Name]:
        return {_letters(name): name for name in sorted({*self.packages, *self.virtuals})}

    def package(self, name: Name) -> KnownPackage | None:
        """Return what is known of a package, or None where that is nothing."""
        return self.packages.get(name)

    def branches_of(self, name: Name) -> Branches | None:
        """Return a package's versions that are branches, or None where it is not known."""
        package = self.package(name)
        if package is None:
            return None
        has_others = not set(package.versions) <= package.branches.keys()
        return Branches(package.branches, has_others)

    def interfaces_of(self, mpi: Name, wanted: Ranges) -> tuple[Ranges, ...]:
        """Return the versions of MPI's interface that versions of a package provide."""
        return tuple(
            provided
            for versions, provided in self.mpi_interfaces.get(mpi, ())
            if not wanted or version_ranges.overlap(wanted, versions)
        )

    def without(self, names: Iterable[Name]) -> SpackKnowledge:
        """Return the same without what is known of some packages: a catalogue has its own ones."""
        return self.model_copy(update={"packages": {**self.packages, **dict.fromkeys(names)}})

    def architectures(self, arch_variant: Name) -> frozenset[str]:
        """Return the values of a variant for GPU architectures: `cuda_arch`, `amdgpu_target`."""
        return self.cuda_arch_values if arch_variant == "cuda_arch" else self.amdgpu_targets


class UnreadableKnowledge(ValueError):
    """The text is not what the script prints."""


def read_knowledge(output: str) -> SpackKnowledge:
    """Return the knowledge that the script's output holds. Raises `UnreadableKnowledge`."""
    line = next((part for part in output.splitlines() if part.startswith(MARK)), None)
    if line is None or len(line) > MAX_BYTES:
        raise UnreadableKnowledge("it does not say what it knows")
    try:
        return SpackKnowledge.model_validate_json(line.removeprefix(MARK))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise UnreadableKnowledge(f"{place}: {first['msg']}") from None


def newest_of(versions: Iterable[Version]) -> Version | None:
    """Return the newest of the versions that are numbers, or None where all are branches."""
    return max(filter(_is_numbered, versions), key=version_order, default=None)


def _is_numbered(version: Version) -> bool:
    return re.match(r"\d", version) is not None


def _letters(name: Name) -> str:
    """Return a name without what is easily written otherwise."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _without_number(letters: str) -> str:
    return letters.rstrip("0123456789")
