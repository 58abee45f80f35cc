"""ELF headers: of this machine's own programs, and of others made byte by byte."""

from __future__ import annotations

import platform as platform_module
import struct
import sys
from pathlib import Path

import pytest

from image_builder.audit.elf import HEADER_BYTES, misfits, read_header

X86, ARM, I386, CUDA = 62, 183, 3, 190


def elf(machine: int, *, bits: int = 64, kind: int = 3, little: bool = True) -> bytes:
    ident = b"\x7fELF" + bytes([bits // 32, 1 if little else 2, 1]) + bytes(9)
    return ident + struct.pack("<HH" if little else ">HH", kind, machine) + bytes(44)


def test_the_running_python_is_read() -> None:
    header = read_header(Path(sys.executable).resolve().read_bytes()[:HEADER_BYTES])
    assert header is not None and header.runs and header.bits == 64
    assert header.machine == {"x86_64": "x86_64", "aarch64": "aarch64"}[platform_module.machine()]


@pytest.mark.parametrize(
    ("platform", "fitting"),
    [
        ("linux/amd64", "/bin/x86"),
        ("linux/arm64", "/lib/arm.so"),
        ("linux/ppc64le", "/lib/power.so"),
    ],
)
def test_what_a_platform_cannot_run(platform: str, fitting: str) -> None:
    files = {
        "/bin/x86": elf(X86, kind=2),
        "/lib/arm.so": elf(ARM),
        "/bin/i386": elf(I386, bits=32, kind=2),
        "/lib/power.so": elf(21),
        "/lib/power-big.so": elf(21, little=False),
    }
    others = {
        "/lib/part.o": elf(ARM if platform != "linux/arm64" else X86, kind=1),
        "/lib/kernel.cubin": elf(CUDA),
        "/bin/script": b"#!/bin/sh\nexit 0\n",
        "/etc/empty": b"",
        "/lib/cut": elf(X86)[:10],
    }
    found = list(misfits((files | others).items(), platform))
    assert {misfit.path for misfit in found} == set(files) - {fitting}


def test_a_misfit_says_what_it_is() -> None:
    [misfit] = misfits([("/lib/power-big.so", elf(21, little=False))], "linux/amd64")
    assert str(misfit.header) == "64-bit big-endian ppc64"
    [unknown] = misfits([("/lib/odd.so", elf(9999))], "linux/amd64")
    assert unknown.header.machine == "machine 9999"
