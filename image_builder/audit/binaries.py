"""Checks the programs and libraries that were built against platform and target. Pure.

`exported_files` makes the inventory; here it is judged. A wrong machine is a problem. An
instruction that the target does not have is only reported: libraries such as OpenBLAS hold code for
several CPUs and choose when they run.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import archspec.cpu

from image_builder.audit import elf
from image_builder.audit.lock_audit import Check, Problem, Verdict
from image_builder.data import facts_of

SAMPLES_FOLDER = "/cic-samples"


def inventory_program(recipe_version: str) -> tuple[str, ...]:
    """Return what lists the programs and instructions below `SAMPLES_FOLDER` in a container."""
    script = (
        resources.files("image_builder")
        .joinpath(f"recipes/{recipe_version}/inventory.py")
        .read_text("utf-8")
    )
    return ("python3", "-c", script, SAMPLES_FOLDER)


class UnreadableInventory(ValueError):
    """The text is not what the recipe's `inventory.py` prints."""


def audit_files(verdict: Verdict, inventory: str, *, platform: str, target: str) -> Verdict:
    """Return `verdict` with what the files that were built add to it.

    Raises `UnreadableInventory`.
    """
    try:
        content: dict[str, Any] = json.loads(inventory)
        files = [(str(path), bytes.fromhex(start)) for path, start in content["files"]]
        sampled = {
            str(path): frozenset(map(str, kinds)) for path, kinds in content["instructions"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableInventory(f"the inventory cannot be read: {error}") from error
    problems = [
        Problem(
            check="files",
            node=misfit.path,
            message=f"{misfit.path} is for {misfit.header}, not {platform}",
        )
        for misfit in elf.misfits(files, platform)
    ]
    checks = [
        Check(
            name="files",
            expected=platform,
            ok=not problems,
            found=f"{len(files) - len(problems)} of {len(files)} programs and libraries",
        )
    ]
    if sampled:
        checks.append(_instructions(sampled, target))
    return Verdict(checks=(*verdict.checks, *checks), problems=(*verdict.problems, *problems))


def features_of(instructions: Iterable[str], family: str) -> frozenset[str]:
    """Return the CPU features, as archspec calls them, that instructions and registers need."""
    table = _table().get(family, {})
    patterns = [(pattern, feature) for pattern, feature in table.items() if pattern.endswith("*")]
    return frozenset(
        feature
        for kind in instructions
        for feature in [
            table.get(kind),
            *(feature for pattern, feature in patterns if fnmatch.fnmatchcase(kind, pattern)),
        ]
        if feature
    )


def _instructions(sampled: Mapping[str, frozenset[str]], target: str) -> Check:
    cpu = archspec.cpu.TARGETS[target]
    used = {path: features_of(kinds, cpu.family.name) for path, kinds in sampled.items()}
    beyond = {
        path: features - cpu.features for path, features in used.items() if features - cpu.features
    }
    summary = f"{len(sampled)} files sampled, using {_words(frozenset().union(*used.values()) & cpu.features)}"
    if beyond:
        path = min(beyond)
        summary += (
            f"; {len(beyond)} hold more than {target} has, to be chosen at run time: "
            f"{path} ({_words(beyond[path])})"
        )
    return Check(name="instructions", expected=f"for {target}", found=summary, ok=True)


def _words(features: Iterable[str]) -> str:
    return " ".join(sorted(features)) or "none beyond the family's"


def _table() -> Mapping[str, Mapping[str, str]]:
    return facts_of("instructions")
