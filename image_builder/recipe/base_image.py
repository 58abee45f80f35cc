"""Renders `BASE`/`BASE`, the base image that every other image of a platform is built on.

It holds an operating system's image, compilers, and Spack with its packages. Only administrators
build it.
"""

from __future__ import annotations

from importlib import resources

import jinja2

BASE_RECIPE = "base-1"


def render_base(base_reference: str, *, has_packages: bool) -> tuple[str, dict[str, str]]:
    """Return the Dockerfile of the base image, and the files next to it. Pure."""
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    ).from_string(_read(f"{BASE_RECIPE}/Dockerfile.j2"))
    files = {f"cic/{name}": _read(f"{BASE_RECIPE}/{name}") for name in ("tools.sh", "spack.sh")}
    return template.render(base=base_reference, has_packages=has_packages), {
        **files,
        "cic/lib.sh": _read("1/lib.sh"),
    }


def _read(name: str) -> str:
    return resources.files("image_builder").joinpath(f"recipes/{name}").read_text("utf-8")
