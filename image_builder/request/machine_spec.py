"""Checks the spec of a machine's MPI or GPU runtime: one package, its version and variants. Pure.

People write here what they know from elsewhere (`OpenMPI 4`, `CUDA 12.2`): each problem says what
to write instead.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from image_builder.request.facts import mpi_facts, mpi_names, runtime_names

Problem = tuple[str, str]
"""What is wrong, and what to write instead."""

ARCHITECTURE_VARIANTS = frozenset({"cuda_arch", "amdgpu_target"})
SYSTEM_KEYS = frozenset({"target", "arch", "os", "platform", "operating_system"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NUMBER = re.compile(r"[vV]?(\d[\w.]*)\Z")
_VERSION = re.compile(r"(?:=?\w[\w.-]*|(?:\w[\w.-]*)?:(?:\w[\w.-]*)?)\Z")
_TOKEN = re.compile(
    r"\s*(?:@(?P<version>[^\s@+~%^]*)"
    r"|(?:[+~]|(?<=\s)-)(?P<flag>[A-Za-z0-9_-]*)"
    r"|(?P<dependency>[\^%][^\s+~]*)"
    r"|(?P<key>[A-Za-z_][\w-]*)(?:==|:=|=)(?P<value>[^\s=]*)"
    r"|(?P<word>[^\s@+~%^]+))"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """Holds a spec to check: its name, and what follows that."""

    name: str
    rest: str

    @property
    def example(self) -> str:
        """Return a valid spec of this kind."""
        return "cuda@12" if self.name.lower() in runtime_names() else "openmpi@4"

    def tokens(self) -> Iterator[re.Match[str]]:
        """Yield the parts behind the name."""
        return _TOKEN.finditer(self.rest)


def problem(text: str) -> Problem | None:
    """Return what is wrong with the spec of an MPI or a GPU runtime, or None."""
    name = _NAME.match(text)
    if name is None:
        return "does not begin with a name", "write a Spack spec such as openmpi@4 or cuda@12"
    if phrase := _phrase(text):
        return phrase
    asked = _Asked(name=name.group(), rest=text[name.end() :])
    looks = (_several, _version, _variants, _elsewhere)
    return next((found for look in looks if (found := look(asked))), None)


def glued(text: str) -> str | None:
    """Return what to write for `openmpi4` or `cuda-12.2`: a name and its version without an `@`."""
    found = re.fullmatch(r"([a-z_-]*[a-z])[_-]?v?(\d[\d.]*)", text.lower())
    return _buildable(f"{found[1]}@{found[2]}") if found and found[1] in _names() else None


def _phrase(text: str) -> Problem | None:
    """Return the problem of words like `OpenMPI 4` or `CUDA Toolkit 12.2`, or None."""
    words = text.split()
    if len(words) < 2 or not all(re.fullmatch(r"[\w.-]+", word) for word in words):
        return None
    number = _NUMBER.match(words[-1])
    name = _named(words[:-1] if number else words)
    if name is None:
        return None
    return "is written in words", f"write {_buildable(f'{name}@{number[1]}' if number else name)}"


def _buildable(spec: str) -> str:
    """Return a spec to write; of an MPI that no Spack builds, what can be built comes first."""
    facts = mpi_facts()["implementations"].get(spec.partition("@")[0], {})
    if facts.get("vendor"):
        return f"{facts['instead']}, or {spec} where the site has it as an external"
    return spec


def _named(words: list[str]) -> str | None:
    """Return the name that the most of the first words make together."""
    by_letters = {
        _letters(name): name
        for name in sorted(_names(), key=lambda name: (len(name), name), reverse=True)
    }
    tries = (_letters("".join(words[:count])) for count in range(len(words), 0, -1))
    named = next((by_letters[letters] for letters in tries if letters in by_letters), None)
    return str(mpi_facts()["aliases"].get(named, named)) if named is not None else None


def _names() -> frozenset[str]:
    return mpi_names() | runtime_names()


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _several(asked: _Asked) -> Problem | None:
    """Return the problem of two specs in place of one, however they are separated, or None."""
    if blank := re.match(r"\s*@\s+([\w.]+)\Z", asked.rest):
        return "has a blank behind @", f"write {asked.name.lower()}@{blank[1]}"
    versions = [token["version"] for token in asked.tokens() if token["version"] is not None]
    listed = [part for version in versions for part in version.split(",")[1:]]
    words = [token["word"] for token in asked.tokens() if token["word"]]
    named = [word for word in (*listed, *words) if word.strip(",;").lower() in _names()]
    if named or any(_NAME.fullmatch(word) for word in words):
        return "names more than one", f"write one, such as {asked.example}"
    if len(versions) > 1:
        return "has two versions", f"write one, such as {asked.example}"
    return None


def _version(asked: _Asked) -> Problem | None:
    for token in asked.tokens():
        if token["version"] is None:
            continue
        parts = token["version"].split(",")
        if not all(parts):
            behind = "@" if parts == [""] else "a comma"
            return (
                f"has no version behind {behind}",
                f"write a version as in {asked.example}, or {asked.name.lower()} alone",
            )
        if not all(map(_VERSION.match, parts)):
            return f"{token['version']!r} is not a version", f"write one as in {asked.example}"
    return None


def _variants(asked: _Asked) -> Problem | None:
    for token in asked.tokens():
        name = token["key"] or token["flag"]
        if name in ARCHITECTURE_VARIANTS:
            value = asked.rest.partition(name)[2].lstrip("=:").split(" ")[0]
            return (
                f"names {name}",
                f"write the architecture into gpu_arch: {value or 'sm_90'}",
            )
        if token["flag"] == "":
            return "has a variant without a name", "write +name or ~name"
        if token["key"] and not token["value"]:
            return f"gives {token['key']} no value", f"write {token['key']}=value"
        if meant := token["word"] and glued(asked.name + asked.rest):
            return "has no @ before its version", f"write {meant}"
        if token["word"]:
            return f"{token['word'][:40]!r} is neither a version nor a variant", (
                f"write @ before a version, as in {asked.example}, and + or ~ before a variant"
            )
    return None


def _elsewhere(asked: _Asked) -> Problem | None:
    """Return the problem of what other fields say, or what no build can promise, or None."""
    for token in asked.tokens():
        if token["dependency"] and token["dependency"].startswith("^"):
            return "names dependencies", f"write {asked.example}"
        if token["key"] in SYSTEM_KEYS:
            return f"names {token['key']}", "leave it out: platform and architecture say it"
        if token["dependency"] == "%":
            return "has no compiler behind %", "write one such as %gcc, or leave it out"
    return None
