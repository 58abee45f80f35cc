"""Reading a package's versions without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.sources.branch_versions import (
    BranchRef,
    branch_refs,
    parse_package,
    specs_of,
)
from image_builder.spack.knowledge import Branches
from tests.support.planning import knowledge

CATALOGUE = {
    "exa": '''
from spack.package import *

class Exa(CMakePackage):
    """A package with "version('no')" in its text."""
    git      = "https://example.org/exa.git"
    # version('comment', branch='comment')
    version('master', branch='Spack-changes', submodules=True)
    version("fork", branch="main", git="https://example.org/fork.git")
    version('default')
    version("1.0", tag="v1.0")
    version("0.9", commit="0123456789012345678901234567890123456789")
    version("0.8", sha256="0" * 64)
    with when("+x"):
        version("inside", branch="inside")
    if True:
        version("under-if", branch="under-if")
    depends_on("lib@develop", when="+x")
    depends_on("mpi")
    depends_on("released")
    depends_on(f"not-{plain}@main")
''',
    "lib": """
class Lib(Package):
    git = "https://example.org/lib"
    version("develop", branch="dev")
    depends_on("exa@default")
""",
    "only-branch": """
class OnlyBranch(Package):
    git = "https://example.org/only"
    version("main", branch="main")
""",
    "released": """
class Released(Package):
    git = "https://example.org/r"
    version("eflows4hpc", sha256="00")
    version("main", branch="main")
""",
    "computed": """
class Computed(Package):
    git = BASE + "/c"
    version("main", branch="main")
    version("b", branch=NAME, git="https://example.org/b")
""",
    "broken": "class Broken(:\n",
}
EXA, FORK, LIB = (
    "https://example.org/exa.git",
    "https://example.org/fork.git",
    "https://example.org/lib",
)
LIB_REF = ("lib", "develop", "dev", LIB)
DEFAULT_REF = ("exa", "default", "HEAD", EXA)


def found(*specs: object) -> list[tuple[str, str, str, str | None]]:
    return [
        (ref.package, ref.version, ref.branch, ref.url) for ref in branch_refs(specs, CATALOGUE.get)
    ]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["lib@develop"], [DEFAULT_REF, LIB_REF]),
        (["exa@master"], [DEFAULT_REF, ("exa", "master", "Spack-changes", EXA), LIB_REF]),
        (
            ["exa@=master+x~y cuda_arch=80 %gcc@12 target=zen2"],
            [DEFAULT_REF, ("exa", "master", "Spack-changes", EXA), LIB_REF],
        ),
        (["eflows4HPC.exa@fork"], [DEFAULT_REF, ("exa", "fork", "main", FORK), LIB_REF]),
        (
            ["exa@inside", "exa@under-if"],
            [
                DEFAULT_REF,
                ("exa", "inside", "inside", EXA),
                ("exa", "under-if", "under-if", EXA),
                LIB_REF,
            ],
        ),
        (["exa@1.0"], [DEFAULT_REF, LIB_REF]),
        (["only-branch"], [("only-branch", "main", "main", "https://example.org/only")]),
        (["hdf5 ^only-branch@main"], [("only-branch", "main", "main", "https://example.org/only")]),
        (
            [{"matrix": [["only-branch@main"], ["%gcc@12", "%clang"]]}],
            [("only-branch", "main", "main", "https://example.org/only")],
        ),
        (["released"], []),
        (["released@eflows4hpc"], []),
        (["released@main,2:"], [("released", "main", "main", "https://example.org/r")]),
        (
            ["released@git.topic=1.0"],
            [("released", "git.topic=1.0", "topic", "https://example.org/r")],
        ),
        (["released@git." + "a" * 40 + "=1.0"], []),
        (["computed@main"], [("computed", "main", "main", None)]),
        (["computed@b"], [("computed", "b", "HEAD", None)]),
        (["broken@main", "unknown@main", "hdf5", "nlopt python=False", "compss==3.1"], []),
        (
            [None, 7, ["only-branch"], ()],
            [("only-branch", "main", "main", "https://example.org/only")],
        ),
    ],
)
def test_which_versions_are_branches(
    specs: list[object], expected: list[tuple[str, str, str, str | None]]
) -> None:
    assert found(*specs) == expected


def test_a_reference_prints_as_its_spec() -> None:
    assert str(BranchRef(package="exa", version="master", branch="b", url=None)) == "exa@master"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "class",
        "(" * 100_000,
        "x = " + "-" * 100_000 + "1",
        "version()",
        "#" * 2_000_000,
        "class A(B):\n    version(*x, **y)\n    version(1, branch='b')\n    git = 7\n",
    ],
)
def test_nonsense_has_no_versions(text: str) -> None:
    assert not parse_package(text).branches


def test_a_package_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    parsed = parse_package(
        f"open({str(mark)!r}, 'w')\nclass A(open({str(mark)!r}, 'w')):\n    version('m', branch='b')\n"
    )
    assert dict(parsed.branches) == {"m": ("b", None)}
    assert not mark.exists()


PREFERRED = """
class Foo(Package):
    git = "https://example.org/foo"
    version("main", branch="main", preferred=True)
    version("2.0", sha256="00")
"""
RANGES = """
class Foo(Package):
    git = "https://example.org/foo"
    version("main", branch="main")
    version("2.0", sha256="00")
"""


@pytest.mark.parametrize(
    ("text", "spec", "is_branch"),
    [
        (PREFERRED, "foo", True),
        (PREFERRED, "foo@2", False),
        (PREFERRED, "foo@1:", True),
        (RANGES, "foo", False),
        (RANGES, "foo@1:", False),
        (RANGES, "foo@3:", True),
        (RANGES, "foo@main", True),
        (RANGES, "foo@=main", True),
        (RANGES, "foo@2:main", True),
        (RANGES, "foo @main +x", True),
        (RANGES, "foo+x cflags='-O3 -g' @main", True),
        (RANGES, "zlib ^foo @ main", True),
        (RANGES, "foo@git.main=2.0", True),
        (RANGES, "foo@" + "a" * 40, False),
    ],
)
def test_a_branch_is_found_where_spack_would_take_it(text: str, spec: str, is_branch: bool) -> None:
    refs = branch_refs([spec], {"foo": text}.get)
    assert [ref.branch for ref in refs] == (["main"] if is_branch else [])


@pytest.mark.parametrize(
    "body",
    [
        {"specs": ["foo@main"]},
        {"specs": ["foo @main +x"]},
        {"definitions": [{"apps": ["foo@main"]}], "specs": ["$apps"]},
        {"definitions": [{"v": ["@main"]}], "specs": [{"matrix": [["foo"], ["$v"]]}]},
        {"specs": [{"matrix": [["foo %gcc@12"], ["@main"]]}]},
        {"specs": ["foo%gcc@12@main"]},
        {"specs": ["foo"], "packages": {"foo": {"require": "@main"}}},
        {"specs": ["foo"], "packages": {"foo": {"require": [{"one_of": ["@main", "@2"]}]}}},
        {"specs": ["foo"], "packages": {"foo": {"prefer": [{"spec": "@main"}]}}},
        {"specs": ["foo"], "packages": {"foo": {"version": ["main"]}}},
        {"specs": ["zlib"], "packages": {"zlib": {"require": "^foo@main"}}},
        {"specs": ["bar"], "packages": {"all": {"providers": {"blas": ["foo@main"]}}}},
    ],
)
def test_branches_are_found_wherever_a_version_can_stand(body: dict[str, object]) -> None:
    assert [str(ref) for ref in branch_refs([specs_of(body)], {"foo": RANGES}.get)] == ["foo@main"]


def test_definitions_that_are_not_used_pin_nothing() -> None:
    body = {"definitions": [{"apps": ["foo@main"]}], "specs": ["zlib"]}
    assert specs_of(body) == ["zlib"]


def test_branches_of_spacks_own_packages() -> None:
    exaca = {"master": ("https://example.org/exaca", "main")}

    def known(package: str) -> Branches | None:
        return {"exaca": Branches(exaca), "zlib": Branches()}.get(package)

    specs = ["exaca@master", "zlib@main", "other@develop", "third@1.2", "exaca@git.fix=1"]
    refs = branch_refs(specs, {}.get, known)
    assert [(str(ref), ref.branch, ref.url) for ref in refs] == [
        ("exaca@git.fix=1", "fix", "https://example.org/exaca"),
        ("exaca@master", "main", "https://example.org/exaca"),
        ("other@develop", "develop", None),
    ]
    assert not branch_refs(specs[:4], {}.get)


def test_without_a_version_the_branches_of_a_package_that_has_nothing_else() -> None:
    branches = {"main": ("https://example.org/young", "trunk")}
    of = {"young": Branches(branches, has_others=False), "old": Branches(branches)}
    refs = branch_refs(["young+mpi", "old", "unknown", "old ^young"], {}.get, of.get)
    assert [(str(ref), ref.branch) for ref in refs] == [("young@main", "trunk")]


def test_a_spec_with_a_commit_of_its_own_is_pinned() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    body = {"specs": [f"foo@main commit={commit}"], "packages": {"foo": {}}}
    assert branch_refs(specs_of(body), {"foo": RANGES}.get) == ()
    assert branch_refs(specs_of({"specs": ["foo@main commit=main"]}), {"foo": RANGES}.get)


def test_branches_that_the_base_images_spack_tells() -> None:
    knows = knowledge("1.2.0")
    specs = ["exaca@master", "zlib@1.3", "of-a-catalogue@main"]
    refs = branch_refs(specs, {}.get, knows.branches_of)
    assert [(str(ref), ref.url) for ref in refs] == [
        ("exaca@master", "https://github.com/LLNL/ExaCA.git"),
        ("of-a-catalogue@main", None),
    ]
