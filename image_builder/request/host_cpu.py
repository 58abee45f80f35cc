"""What the CPU of this host can execute."""

from __future__ import annotations

import archspec.cpu

from image_builder.request.cpu_targets import Target


def host_warning(target: Target, host: str | None = None) -> str | None:
    """A warning when programs for `target` cannot run on the building `host` (an archspec name;
    None: this machine).

    Build tools are made for the target too, and run during the build.
    """
    cpu = archspec.cpu.TARGETS[host] if host else archspec.cpu.host()
    wanted = archspec.cpu.TARGETS[target.name]
    if is_emulated(target, cpu.name):
        return (
            f"This host's CPU ({cpu.name}) is not {wanted.family.name}: the build is emulated, which is slow, "
            "and the emulator may lack instructions of the target."
        )
    if wanted.name in executable_targets(host):
        return None
    return (
        f"This host's CPU ({cpu.name}) cannot execute code for {target.name}: a build tool made for it may stop "
        "with an illegal instruction."
    )


def executable_targets(host: str | None = None) -> list[str]:
    """The targets whose programs the `host` (an archspec name; None: this machine) can execute."""
    cpu = archspec.cpu.TARGETS[host] if host else archspec.cpu.host()
    return sorted(
        name
        for name, wanted in archspec.cpu.TARGETS.items()
        if wanted.family == cpu.family
        and (wanted == cpu or wanted in cpu.ancestors or set(wanted.features) <= set(cpu.features))
    )


def is_emulated(target: Target, host: str | None = None) -> bool:
    """Whether programs for `target` need an emulator on the building `host`, as that is of another
    family.
    """
    cpu = archspec.cpu.TARGETS[host] if host else archspec.cpu.host()
    return bool(cpu.family != archspec.cpu.TARGETS[target.name].family)
