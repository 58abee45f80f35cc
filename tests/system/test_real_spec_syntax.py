"""Our reading of specs beside that of a real Spack, from a checkout named by CIC_SPACK_ROOT."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from image_builder.spack import spec

SPACK_ROOT = os.environ.get("CIC_SPACK_ROOT")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        SPACK_ROOT is None,
        reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS COMPARED WITH A REAL SPACK",
    ),
]
PARSE = """
import json, sys
import spack, spack.spec
try:
    from spack.spec_parser import parse
except ImportError:
    try:
        from spack.parser import parse
    except ImportError:
        def parse(text):
            spack.spec._lexer = spack.spec.SpecLexer()  # it remembers what it failed at
            return spack.spec.SpecParser().parse(text)
def read(text):
    try:
        specs = parse(text)
    except Exception:
        return None
    if len(specs) != 1:
        return None
    return [specs[0].name or "", {name: str(value) for name, value in specs[0].variants.items()}]
texts = json.load(open(sys.argv[-1]))
print("PARSED " + json.dumps([read(text) for text in texts]))
"""
TEXTS = """
hdf5|hdf5@1.14+mpi|hdf5 zlib|hdf5 1.14|hdf5, zlib|hdf5@|hdf5@1.14@1.12|hdf5 +|hdf5 cflags="-O3 -g"|hdf5 +mpi ~mpi
hdf5 build_type==Release|gcc@12.2.0 languages='c,c++,fortran'|gcc@12.2.0 languages:='c,c++'|hdf5 %[when='%c'] gcc
hdf5 ^[virtuals=mpi] mpich|hdf5 %%gcc|hdf5 %c,cxx=gcc@12|* %gcc|hdf5 %gcc@12 ~cuda|hdf5%gcc@12@1.14|hdf5 %gcc %clang
hdf5@1.14:cflags=-O3|hdf5@1.14: +mpi|hdf5@1.14, 1.12|hdf5@1.10:1.12,1.14|hdf5 -mpi|hdf5+mpi-shared|hdf5 ~~mpi ++shared
hdf5 + mpi|hdf5@main|hdf5@=main|builtin.hdf5|hdf5 x=|hdf5 ^zlib ~cuda %gcc +x|hdf5 ^ zlib
hdf5 % gcc|@1.14|+mpi|%gcc@12|^fftw~mpi|hdf5 ^zlib zlib-ng|a cflags==-O3|a x=*|a x=a,b,c|hdf5 ^[foo=mpi] mpich
hdf5 cflags=-O3 cflags=-g|hdf5 x=1 x=2|hdf5@1.2:1.4:1.5|hdf5 ^zlib^bzip2|hdf5 –mpi|hdf5[mpi]|hdf5 >=1.14|hdf5@>=1.14
"""


def test_texts_are_read_as_spack_reads_them(tmp_path: Path) -> None:
    texts = [text for line in TEXTS.strip().splitlines() for text in line.split("|")]
    parsed = _parsed(texts, tmp_path)
    release = _release(tmp_path)
    ours = [_ours(text, release) for text in texts]
    assert dict(zip(texts, ours, strict=True)) == dict(zip(texts, parsed, strict=True))


def _ours(text: str, release: tuple[int, ...]) -> list[Any] | None:
    if spec.problem(text, named=False, release=release):
        return None
    root = spec.nodes(text, release)[0]
    switches = {one.key: one.is_switch for one in root.settings if one.key not in spec.FLAGS}
    return [root.name, sorted(set(switches) - {"target", "arch"})]


def _parsed(texts: list[str], folder: Path) -> list[list[Any] | None]:
    (folder / "texts.json").write_text(json.dumps(texts), "utf-8")
    (folder / "parse.py").write_text(PARSE, "utf-8")
    output = _spack(folder, "python", str(folder / "parse.py"), str(folder / "texts.json"))
    line = next(line for line in output.splitlines() if line.startswith("PARSED "))
    loaded: list[Any] = json.loads(line.removeprefix("PARSED "))
    return [None if one is None else [one[0], sorted(one[1])] for one in loaded]


def _release(folder: Path) -> tuple[int, ...]:
    words = _spack(folder, "--version").split(" ")[0].split(".")
    return tuple(int(word) for word in words[:2])


def _spack(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "SPACK_USER_CONFIG_PATH": str(folder / "config"),
        "SPACK_USER_CACHE_PATH": str(folder / "cache"),
    }
    done = subprocess.run(
        [f"{SPACK_ROOT}/bin/spack", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout
