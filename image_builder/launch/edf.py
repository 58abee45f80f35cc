"""Writes the environment definition file of an image, for the Container Engine of CSCS. Pure.

Its form: https://docs.cscs.ch/software/container-engine/edf/
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from image_builder.launch.commands import both_ends, edf_name
from image_builder.launch.start import Start, comments


def edf(start: Start) -> str:
    """Return the file: the image, the host's folders, and what its ranks and the network need."""
    machine = start.machine
    text = comments(
        f"The image {start.reference} for {machine.name}: srun --environment=./{edf_name(start.reference)}",
        *start.remarks,
    )
    text += f"image = {_text(_edf_reference(start.reference))}\n"
    if machine.binds:
        mounts = ", ".join(_text(":".join(both_ends(bind))) for bind in machine.binds)
        text += f"mounts = [{mounts}]\n"
    text += _table("env", start.environment)
    return text + _table("annotations", machine.fabric.annotations if machine.fabric else {})


def _edf_reference(reference: str) -> str:
    """Return a reference with `#` after the registry: `registry.example.org#group/model:1`."""
    registry, slash, path = reference.partition("/")
    is_registry = "." in registry or ":" in registry or registry == "localhost"
    return f"{registry}#{path}" if slash and is_registry else reference


def _table(name: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    return f"\n[{name}]\n" + "".join(f"{key} = {_text(value)}\n" for key, value in values.items())


def _text(value: str) -> str:
    """Return a TOML string. JSON's differs in two ways: TOML has no surrogates and no bare DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
