"""Writes requirements so that the base image's Spack can meet them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from image_builder.recipe.demands import ALL
from image_builder.spack import spec as spack_spec
from image_builder.spack.releases import CHOOSES_PROVIDERS, PROPAGATES_REQUIREMENTS, Release

Rules = list[Any]
Told = list[tuple[int, str]]
"""The place of a rule, and what became of it."""


def meetable(
    name: str, rules: Sequence[Any], release: Release, is_ours: Callable[[str], bool]
) -> tuple[Rules, Told]:
    """Return a package's requirements as `release` can meet them, and what had to be left out.

    Before Spack 1.0 no solution has a choice between providers of a virtual package (0.23.1: an
    internal error, or two versions at once), and before 1.2 none has a requirement that propagates
    (`build_type==Release`). `is_ours` says whether an alternative can be the machine's provider.
    """
    found: Rules = []
    told: Told = []
    for at, rule in enumerate(rules):
        if release < CHOOSES_PROVIDERS and (choice := _choice(name, rule)):
            ours = list(filter(is_ours, choice))
            rule = (ours or choice)[0]
            if not ours:
                told.append((at, f"cannot choose between providers: {rule} counts"))
        if release < PROPAGATES_REQUIREMENTS:
            plain = _changed(rule, _without_propagation)
            if plain != rule:
                rule = plain
                if name != ALL:
                    what = f"requires it of {name} alone: what {name} needs may have another"
                    told.append((at, what))
        found.append(rule)
    return found, told


def virtual_if_named(name: str, texts: Sequence[str]) -> bool:
    """Return whether requirements are on a virtual package: such ones name its providers."""
    return all(spack_spec.nodes(text)[0].name not in ("", name) for text in texts)


def _choice(name: str, rule: Any) -> list[str]:
    """Return the alternatives of a rule on a virtual package."""
    if not isinstance(rule, dict) or "when" in rule:
        return []
    texts = [*(rule.get("one_of") or rule.get("any_of") or ())]
    return texts if texts and virtual_if_named(name, texts) else []


def _changed(rule: Any, change: Callable[[str], str]) -> Any:
    """Return a rule with all its specs changed, but not its condition."""
    if isinstance(rule, str):
        return change(rule)
    texts = {
        key: change(value) if isinstance(value, str) else [change(text) for text in value]
        for key, value in rule.items()
        if key in ("spec", "one_of", "any_of")
    }
    return {**rule, **texts}


def _without_propagation(text: str) -> str:
    """Return a spec whose words hold for its own nodes alone."""
    for node in spack_spec.nodes(text):
        for setting in node.settings:
            if setting.propagates:
                text = text.replace(setting.text, _plain(setting.text))
    return text


def _plain(word: str) -> str:
    return word[1:] if word[:2] in ("++", "~~", "--") else re.sub(r"(?<==)=", "", word, count=1)
