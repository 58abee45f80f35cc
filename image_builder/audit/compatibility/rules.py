"""Reads the rules that findings come from, each with the document or issue that it is from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from image_builder.data import facts_of
from image_builder.errors import with_hint

Answer = Literal["runs", "runs_but", "does_not_run"]
Level = Literal["error", "warning"]

ERROR: Level = "error"
WARNING: Level = "warning"


class Rule(BaseModel):
    """Holds one rule of `data/rules.yaml`; `message` and `hint` have {words} to fill in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    answer: Literal["runs_but", "does_not_run"]
    message: str
    hint: str = ""
    source: tuple[str, ...] = Field(min_length=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Says what to know before the image is used, by the `rule` of that name.

    `level` is `error` (the image does not run) or `warning` (it runs, but …).
    """

    level: Level
    subject: str
    message: str
    hint: str = ""
    rule: str
    source: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.level}: {with_hint(self.message, self.hint)}"


def rule_facts() -> Mapping[str, Any]:
    """Return the data file: `rules`, `openmpi`, `mpich`, `standard_abi`."""
    return facts_of("rules")


@functools.cache
def rules() -> Mapping[str, Rule]:
    """Return every rule by its name."""
    return {name: Rule.model_validate(fields) for name, fields in rule_facts()["rules"].items()}


def finding(name: str, **words: str) -> Finding:
    """Return what the rule `name` says of this image and this machine."""
    rule = rules()[name]
    return Finding(
        level=ERROR if rule.answer == "does_not_run" else WARNING,
        subject=rule.subject,
        message=rule.message.format_map(words),
        hint=rule.hint.format_map(words),
        rule=name,
        source=rule.source,
    )
