"""What the planner has to know of a site's own Spack configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from image_builder.errors import Misconfigured


def packages_of(text: str | None) -> Mapping[str, Any]:
    """The `packages` of a `packages.yaml`; empty when there is none. Raises `Misconfigured`."""
    if text is None:
        return {}
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misconfigured(
            f"The site's packages.yaml is not valid YAML: {error}",
            hint="Correct it in the folder that spack_cfg in build_cfg names.",
        ) from None
    packages = loaded.get("packages") if isinstance(loaded, dict) else None
    if not isinstance(packages, dict):
        return {}
    # `name::` is Spack's way to say that an entry replaces those of other scopes.
    return {
        str(name).rstrip(":"): fields
        for name, fields in packages.items()
        if isinstance(fields, dict)
    }
