"""The syntax of specs: what each release of Spack reads, and what every other text gets.

What is expected was seen of Spack 0.19.2, 0.23.1, 1.1.0 and 1.2.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_builder.spack import spec
from image_builder.spack.spec_syntax import Node

OLD, NEW = (0, 23, 1), (1, 1, 0)


def shape(node: Node) -> tuple[str, str, str, dict[str, str]]:
    return node.sigil, node.name, node.version, node.variants


@pytest.mark.parametrize(
    "text",
    [
        'hdf5 cflags="-O3 -g"',
        "hdf5 build_type==Release",
        "gcc@12.2.0 languages='c,c++,fortran'",
        "hdf5 @1.14 +mpi",
        "hdf5 @ 1.14",
        "hdf5@1.14, 1.12",
        "hdf5@1.10:1.12,1.14",
        "hdf5@1.14:cflags=-O3",
        "hdf5 + mpi",
        "hdf5 -mpi --shared ++cxx ~~hl",
        "hdf5@git.feature/x=1.2",
        "hdf5@abcdefabcdefabcdefabcdefabcdefabcdefabcd=1.2",
        "hdf5 ^zlib^bzip2",
        "hdf5 % gcc @ 12",
        "hdf5 cflags=-O3 cflags=-g",
        "a x=*",
    ],
)
@pytest.mark.parametrize("release", [OLD, NEW])
def test_what_every_release_reads(text: str, release: tuple[int, ...]) -> None:
    assert spec.problem(text, release=release) is None


@pytest.mark.parametrize(
    "text",
    [
        "gcc@12 languages:='c,c++'",
        "a %[when='%c'] gcc",
        "a %[virtuals=c] gcc",
        "a%%gcc",
        "a %c,cxx=gcc@12",
        "a ^mpi=mpich",
        "a %gcc %llvm",
    ],
)
def test_what_only_releases_from_1_0_on_read(text: str) -> None:
    assert spec.problem(text) is None and spec.problem(text, release=NEW) is None
    assert text == "a ^mpi=mpich" or spec.problem(text, release=OLD) is not None


def test_what_releases_before_did_not_read() -> None:
    assert spec.problem("a ^[virtuals=mpi] b", release=(0, 19, 2)) is not None
    assert spec.problem("a@=1", release=(0, 19, 2)) is not None
    assert spec.problem("hdf5%gcc@12@1.14", release=NEW) is not None
    assert spec.problem("a x=y^zlib", release=NEW) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hdf5 zlib", ["two specs", "entry of its own", "+zlib"]),
        ("hdf5 ^zlib zlib-ng", ["zlib-ng"]),
        ("hdf5 1.14", ["hdf5@1.14"]),
        ("hdf5, zlib", ["entry of its own"]),
        ("hdf5@", ["version", "hdf5@1.14"]),
        ("hdf5@+mpi", ["version"]),
        ("hdf5@1.14@1.12", ["two versions"]),
        ("hdf5@1.14,", ["version"]),
        ("hdf5@1:2:3", [":"]),
        ("hdf5 +", ["variant", "+"]),
        ("hdf5 ^", ["behind ^"]),
        ("hdf5 %", ["behind %"]),
        ("hdf5 x=", ["x=value"]),
        ("hdf5 x='y", ["quote"]),
        ("hdf5 x='y;z'", [";"]),
        ("hdf5 x='$(id)'", ["$"]),
        ("hdf5 x='a \\' b'", ["\\"]),
        ("hdf5 +mpi ~mpi", ["twice"]),
        ("hdf5 x=1 x=2", ["twice"]),
        ("hdf5 +mpi=1", ["value"]),
        ("hdf5=1.14", ["conda", "hdf5@1.14"]),
        ("hdf5 = 1.14", ["conda", "hdf5@1.14"]),
        ("hdf5=1.14.*", ["hdf5@1.14."]),
        ("hdf5==1.14", ["pip", "hdf5@1.14"]),
        ("hdf5>=1.14", ["range"]),
        ("hdf5@>=1.14", ["range"]),
        ("hdf5[mpi]", ["hdf5+variant"]),
        ("netcdf–c", ["U+2013", "en dash", "'-'"]),
        ("hdf5−1.14", ["U+2212", "Write hdf5@1.14"]),
        ("hdf5\xa01.14", ["U+00A0", "Write hdf5@1.14"]),
        ("hdf5\u00a0+mpi", ["U+00A0", "no-break space", "blank"]),
        ("hdf5 cflags=“-O3”", ["U+201C", "'\"'"]),
        ("hdf5＠1.14", ["U+FF20", "'@'"]),
        ("hdf5 ^[foo=mpi] mpich", ["virtuals"]),
        ("hdf5 ^[virtuals=mpi mpich", ["[]"]),
        ("./hdf5.yaml", ["file"]),
        ("hdf5/abcdef", ["installed package"]),
        ("hdf5 $libs", ["$libs"]),
        ("hdf5 cflags='-O3 -fplugin=/x.so'", ["-fplugin"]),
        ("hdf5 cflags=-fplugin=/s/evil.so cflags=-O3", ["-fplugin"]),
        ("hdf5 cflags==-fpass-plugin=x", ["plugin"]),
        ("hdf5 ldflags='-Wl,-rpath,/x'", ["-Wl"]),
        ("hdf5 cflags=-Wa", ["-Wa"]),
        ("hdf5~=1.14", ["'~='", "range"]),
        ("hdf5!=1.14", ["'!'", "hdf5@1.10:1.12"]),
        ("hdf5-1.14.3+mpi", ["without @", "hdf5@1.14.3"]),
        ("hdf5 ^zlib-v1.2", ["zlib@1.2"]),
        ("hdf5:1.14", ["':'", "hdf5@1.14"]),
        ("hdf5 v1.14", ["hdf5@1.14"]),
        ("hdf5@1.14.*", ["hdf5@1.14, which"]),
        ("hdf5 cuda_arch = 80", ["cuda_arch=value"]),
        ('hdf5 "cflags=-O3 -g"', ["around a value"]),
        ("hdf5\u200b", ["U+200B", "Remove it"]),
        ("$libs +mpi", ["matrix: [[$libs], ['+mpi']]"]),
        ("${my-libs}", ["Write $my-libs"]),
    ],
)
def test_what_is_no_spec_gets_what_to_write(text: str, words: list[str]) -> None:
    for release in (None, OLD, NEW):
        found = spec.problem(text, release=release)
        assert found is not None
        assert all(word in " ".join(found) for word in words), found


@pytest.mark.parametrize("flag", ["-Werror", "-Wall", "-Wpedantic", "-Wno-error=x", "-Werror=y"])
def test_warnings_are_plain_flags(flag: str) -> None:
    assert spec.problem(f"hdf5 cflags='-O2 {flag}'") is None


def test_what_is_read_from_1_0_on_is_shown_as_it_stands() -> None:
    found = spec.problem("hdf5 %[virtuals=c] gcc", release=OLD)
    assert found is not None and "holds %[, which" in found[0]


def test_before_1_0_words_behind_a_compiler_are_the_packages() -> None:
    root, compiler, zlib = spec.parse("hwloc@2 %gcc@12 ~cuda ^zlib %gcc +pic", OLD)[:3]
    assert shape(root) == ("", "hwloc", "2", {"cuda": "false"})
    assert shape(compiler) == ("%", "gcc", "12", {})
    assert shape(zlib) == ("^", "zlib", "", {"pic": "true"})


def test_from_1_0_on_words_behind_a_compiler_are_the_compilers() -> None:
    root, compiler = spec.parse("hwloc@2 %gcc@12 ~cuda", NEW)
    assert shape(root) == ("", "hwloc", "2", {})
    assert shape(compiler) == ("%", "gcc", "12", {"cuda": "false"})


def test_parts_of_an_edge() -> None:
    _, gcc, mpich, llvm = spec.parse(
        "a %c,cxx=gcc@12 ^[virtuals=mpi deptypes=link] mpich %[when='+x'] llvm", NEW
    )
    assert (gcc.virtuals, gcc.name, gcc.version) == (("c", "cxx"), "gcc", "12")
    assert (mpich.virtuals, mpich.is_conditional) == (("mpi",), False)
    assert llvm.is_conditional


def test_values_lose_their_quotes_and_repeated_flags_stay() -> None:
    (node,) = spec.parse("""a cflags="-O3 -g" cflags==-Wall x='b c' curl=False""")
    assert node.values_of("cflags") == ("-O3 -g", "-Wall")
    assert [flag for _, flag in spec.flags_of(node)] == ["-O3", "-g", "-Wall"]
    assert node.variants["x"] == "b c" and node.variants["curl"] == "false"
    assert [setting.propagates for setting in node.settings] == [False, True, False, False]


def test_a_spec_that_others_constrain() -> None:
    root, gcc, mpich = spec.constrained(
        [spec.nodes("hwloc %gcc@12"), spec.nodes("~cuda"), spec.nodes("@2 ^mpich")]
    )
    assert shape(root) == ("", "hwloc", "2", {"cuda": "false"})
    assert (gcc.name, mpich.name) == ("gcc", "mpich")


@given(st.text(alphabet="hd5@1.=:,+~-^%[]'\"$/* \\xé–", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for release in (None, OLD, NEW):
        found = spec.problem(text, named=False, release=release)
        assert found is None or all(found)
        assert spec.nodes(text, release)
