"""Keeps build steps from this host's services and within limits.

`sudo python3 isolate_builds.py apply` puts the control group and the firewall's rules in force that
the configuration asks for, and may be run again and again; it holds until the machine restarts.
`show` prints what is in force, `remove` takes both away. It ends with 0 when that is done, 2 when it
is not possible.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config.loading import load_library_settings
from image_builder.docker import daemon
from image_builder.docker.isolation import cgroup, firewall
from image_builder.errors import CicError
from image_builder.settings import BuildSettings

EXIT_OK, EXIT_FAILED = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Keep build steps from this host's services and within limits."
    )
    parser.add_argument("what", choices=("apply", "show", "remove"))
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file instead of config/configuration.py",
    )
    options = parser.parse_args(arguments)
    try:
        return {"apply": _apply, "show": _show, "remove": _remove}[options.what](
            load_library_settings(options.config).build
        )
    except (CicError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


def _apply(settings: BuildSettings) -> int:
    for warning in firewall.apply(firewall.Policy.of(settings, daemon.default_bridge().interface)):
        print(f"Warning: {warning}", file=sys.stderr)
    cgroup.prepare(settings)
    if settings.steps_cgroup is not None and (problem := cgroup.problem(settings)) is not None:
        print(problem.message, file=sys.stderr)
        return EXIT_FAILED
    return _show(settings)


def _show(settings: BuildSettings) -> int:
    found = cgroup.in_force(settings)
    print(f"All build steps together may use: {found}" if found else "Build steps have no limits.")
    print("\n".join(firewall.show() or ["No rules keep build steps from this host's services."]))
    return EXIT_OK


def _remove(settings: BuildSettings) -> int:
    firewall.remove()
    cgroup.remove(settings)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
