"""Detects the CPU of another machine from its /proc/cpuinfo. Pure.

archspec detects the CPU of the machine that it runs on. Its checks of one target against a CPU's
features are used here, and its choice among the targets that fit is made here again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archspec.cpu import TARGETS, Microarchitecture
from archspec.cpu.detect import COMPATIBILITY_CHECKS, partial_uarch
from archspec.cpu.schema import TARGETS_JSON

Fits = Callable[[Microarchitecture, Microarchitecture], bool]


def detected_target(family: str, cpu: Mapping[str, str]) -> str:
    """Return archspec's name of a CPU of a `family` such as `x86_64`.

    `cpu` has the fields `vendor_id`, `flags`, `implementer`, `part`, `features`, `uarch` and
    `model`, as far as its kind has them.
    """
    info = _partial(family, cpu)
    fits = _power_fits(family) if family.startswith("ppc64") else COMPATIBILITY_CHECKS[family]
    candidates = [target for target in TARGETS.values() if fits(info, target)]
    generic = max((one for one in candidates if one.vendor == "generic"), key=_rank)
    same_part = [one for one in candidates if info.cpu_part and one.cpu_part == info.cpu_part]
    # A lack of one rare feature, which firmware may switch off, must not lose a whole generation.
    specific = [one for one in same_part or candidates if one > generic]
    return str(max(specific, key=_rank).name if specific else generic.name)


def _rank(target: Microarchitecture) -> tuple[int, int]:
    return len(target.ancestors), len(target.features)


def _partial(family: str, cpu: Mapping[str, str]) -> Microarchitecture:
    if family == "x86_64":
        features = set(cpu.get("flags", "").split())
        return partial_uarch(vendor=cpu.get("vendor_id", "generic"), features=features)
    if family == "aarch64":
        vendors: Mapping[str, str] = TARGETS_JSON["conversions"]["arm_vendors"]
        code = cpu.get("implementer", "")
        return partial_uarch(
            vendor=vendors.get(code, code or "generic"),
            features=set(cpu.get("features", "").split()),
            cpu_part=cpu.get("part", ""),
        )
    if family == "riscv64":
        return partial_uarch(name=cpu.get("uarch", "").partition(",")[2].replace("-", ""))
    digits = "".join(filter(str.isdigit, cpu.get("model", "").partition(",")[0]))
    return partial_uarch(generation=int(digits or 0))


def _power_fits(family: str) -> Fits:
    """Return the check for Power: archspec 0.2.7's own asks which family it runs on itself."""
    root = TARGETS[family]

    def fits(info: Microarchitecture, target: Microarchitecture) -> bool:
        is_descendant = target == root or root in target.ancestors
        return is_descendant and bool(target.generation <= info.generation)

    return fits
