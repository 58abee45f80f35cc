"""Reads facts about machines, compilers and packages, one YAML file a subject."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import yaml


def text_of(name: str) -> str:
    """Return the text of a data file, named without its ending."""
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")


@functools.cache
def facts_of(name: str) -> dict[str, Any]:
    """Return what a data file holds; each file is read once."""
    loaded: dict[str, Any] = yaml.safe_load(text_of(name))
    return loaded
