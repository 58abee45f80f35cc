"""Descriptions: what is read from them, and what every kind of bad one gets."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.errors import BadDescription, ErrorCode
from image_builder.sources.description import parse_description
from tests.support.planning import CORPUS, FILE, corpus, described


def refusal(text: str) -> BadDescription:
    with pytest.raises(BadDescription) as caught:
        described(text)
    assert caught.value.code is ErrorCode.BAD_DESCRIPTION
    assert caught.value.file == FILE
    return caught.value


@pytest.mark.parametrize("step", corpus())
def test_the_corpus_is_read(step: str) -> None:
    description = described(corpus()[step])
    assert description.spack is not None and description.spack["specs"]


def test_there_is_a_corpus() -> None:
    assert len(corpus()) == 10, CORPUS


def test_parts_of_a_description() -> None:
    description = described("""
apt:
  - g++-8
  - libssl-dev:arm64
  - grace=1:5.1.25-7
pip:
  - rocrate   # a comment
  - obspy==1.2.2
  - dask[array] >= 2023.1, <2025; python_version > "3.8"
spack:
  specs:
    - proj@7.2.0 curl=False tiff=False
    - gromacs@2022.3~mpi^fftw~mpi
    - kratos@9.4 apps=A,B,C
smoke: [python3, -c, import obspy]
slim: true
""")
    assert description.apt == ("g++-8", "libssl-dev:arm64", "grace=1:5.1.25-7")
    assert description.pip == (
        "rocrate",
        "obspy==1.2.2",
        'dask[array] >= 2023.1, <2025; python_version > "3.8"',
    )
    assert description.spack == {
        "specs": [
            "proj@7.2.0 curl=False tiff=False",
            "gromacs@2022.3~mpi^fftw~mpi",
            "kratos@9.4 apps=A,B,C",
        ]
    }
    assert description.smoke == ("python3", "-c", "import obspy")
    assert description.slim is True


@pytest.mark.parametrize("text", ["", "# nothing\n", "apt:\npip:\nspack:\n", "apt: []\n"])
def test_an_empty_description_needs_nothing(text: str) -> None:
    description = described(text)
    assert (description.apt, description.pip, description.spack) == ((), None, None)


def test_an_empty_pip_list_is_not_the_same_as_none() -> None:
    """A list, even an empty one, says that the requirements.txt beside it does not count."""
    assert described("pip: []").pip == ()
    assert described("apt: []").pip is None


def test_a_key_that_nobody_knows_is_told_and_left() -> None:
    description = described("maintainer: somebody\napt: [jq]\n")
    assert description.apt == ("jq",)
    assert any(
        "line 1" in warning and "'maintainer'" in warning for warning in description.warnings
    )


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("apt:\n\t- jq\n", 2, "tab"),
        ("spack:\n  specs: [a, b\n", 3, "YAML"),
        ("apt: jq\n", 1, "list"),
        ("spack: [a]\n", 1, "mapping"),
        ("- jq\n", 1, "mapping"),
        ("apt:\n  - jq\n  - 12\n", 3, "number"),
        ("apt:\n  - jq\n  -\n", 3, "nothing"),
        ("apt:\n  - {a: b}\n", 2, "mapping"),
        ("slim: maybe\n", 1, "true or false"),
        ("Spack:\n  specs: [a]\n", 1, "spack"),
        ("apt: [jq]\npip: [six]\napt: [bc]\n", 3, "twice"),
        ("apt: [jq]\n---\napt: [bc]\n", 2, "second document"),
        ("apt: !!python/object/apply:os.system [id]\n", 1, "tag"),
        ("apt:\n- !!python/name:os.system x\n", 2, "tag"),
        ("apt: !secret jq\n", 1, "tag"),
        ("apt: !!set {a}\n", 1, "tag"),
        ("apt: &a [*a]\n", 1, "alias"),
        ("x: &x {a: b}\ny:\n  <<: *x\n", 3, "merge"),
        ("? [a, b]\n: c\n", 1, "key"),
        ("apt: [jq\0]\n", 1, "control character"),
        ("apt:\n- 'jq\x1b'\n", 2, "control character"),
        ("\n\napt: " + "[" * 200 + "]" * 200, 3, "nested"),
    ],
)
def test_malformed_texts_are_refused_with_their_line(text: str, line: int, word: str) -> None:
    error = refusal(text)
    assert error.line == line
    assert word in str(error)
    assert error.hint


def test_aliases_that_multiply_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "values" in refusal("\n".join(rows)).message


def test_a_plain_alias_is_fine() -> None:
    assert described("x-common: &names [jq, bc]\napt: *names\n").apt == ("jq", "bc")


def test_a_giant_text_is_refused() -> None:
    assert "KiB" in refusal("apt:\n" + "- jq\n" * 100_000).message
    assert "entries" in refusal("apt:\n" + "- jq\n" * 1_001).message


@pytest.mark.parametrize(
    "entry",
    [
        "-oDPkg::Pre-Invoke::=id",
        "jq;id",
        "$(id)",
        "jq bc",
        "../x.deb",
        "/tmp/x.deb",
        "jq-",
        "JQ",
        "jq=`id`",
        "jq\\n",
        "a" * 500 + "!",
        "jq/testing",
    ],
)
def test_apt_entries_that_are_no_packages(entry: str) -> None:
    assert "apt[0]" in refusal(f"apt:\n- {entry!r}\n").message


@pytest.mark.parametrize(
    "entry",
    [
        "-r other.txt",
        "--index-url=x",
        "git+https://host.test/x",
        "./wheel.whl",
        "six @ file:///x",
        "https://host.test/x.whl",
        "six; $(id)",
        "six==",
        "six = 1",
        "a b",
        "six==1 --hash=x",
        "/tmp/x",
    ],
)
def test_pip_entries_that_are_no_requirements(entry: str) -> None:
    assert "pip[0]" in refusal(f"pip:\n- {entry!r}\n").message


@pytest.mark.parametrize(
    "spec",
    [
        "a;b",
        "$(id)",
        "a`id`",
        "a b'c'",
        "a | b",
        "a > b",
        "a\\nb",
        "./spack.yaml",
        "/abcdefg",
        "hdf5 /abcdefg",
        "x.json",
        "compss==3.1",
        "a dev_path=/x",
        "a cflags=-wrapper",
        "a cflags=-fplugin=/x",
        "a ldflags=-B/x",
        "",
        "+mpi",
        "@1.2",
        "%gcc",
    ],
)
def test_specs_that_are_none(spec: str) -> None:
    assert "spack.specs[0]" in refusal(f'spack:\n  specs:\n  - "{spec}"\n').message


def test_a_version_written_as_for_pip_tells_the_right_one() -> None:
    assert "compss@3.1" in str(refusal("spack:\n  specs: [compss==3.1]\n"))


@pytest.mark.parametrize(
    "key",
    [
        "repos",
        "mirrors",
        "include",
        "develop",
        "config",
        "bootstrap",
        "compilers",
        "modules",
        "upstreams",
        "env_vars",
        "ci",
        "toolchains",
        "include_concrete",
    ],
)
def test_keys_that_would_run_code_or_change_sources(key: str) -> None:
    error = refusal(f"spack:\n  specs: [zlib]\n  {key}: {{}}\n")
    assert f"spack.{key}" in error.message
    assert error.line == 3
    assert error.hint


@pytest.mark.parametrize(
    "fields",
    [
        "package_attributes: {git: 'https://host.test/x'}",
        "permissions: {read: world}",
        "foo: 1",
        "require: ['a;b']",
        "require: [{one_of: ['$(id)']}]",
        "require: [{when: 'a;b', spec: '@1'}]",
        "require: {a: b}",
        "buildable: perhaps",
        "externals: [{spec: x, prefix: ../x}]",
        "externals: [{spec: x, prefix: relative}]",
        "externals: [{spec: x}]",
        "externals: [{spec: x, prefix: /usr, modules: [x]}]",
        "externals: [{spec: x, prefix: /usr, buildable: false}]",
        "externals: [{spec: x, prefix: /usr, id: 'a b'}]",
        "externals: [{spec: x, prefix: /usr, dependencies: [{spec: 'y z'}]}]",
        "externals: [{spec: x, prefix: /usr, dependencies: [{spec: y, deptypes: ['--x']}]}]",
        "externals: [{spec: x, prefix: /usr, dependencies: [{spec: y, other: 1}]}]",
        "externals: [{spec: x, prefix: /usr, dependencies: y}]",
        "paths: {x@1: /usr}",
        "version: ['1;2']",
        "target: zen2",
        "variants: '+x;y'",
        "externals: [{spec: x, prefix: /usr, extra_attributes: {environment: {set: {LD_PRELOAD: /x}}}}]",
        "externals: [{spec: x, prefix: /usr, extra_attributes: {compilers: {c: 'gcc;id'}}}]",
        "providers: {mpi: mpich}",
    ],
)
def test_package_settings_that_are_refused(fields: str) -> None:
    text = f"spack:\n  specs: [zlib]\n  packages:\n    hdf5:\n      {fields}\n"
    assert "spack.packages.hdf5" in refusal(text).message


def test_package_settings_that_are_kept() -> None:
    body = described("""
spack:
  definitions:
  - compilers: ['%gcc@12']
  - libs: [zlib, {matrix: [[hdf5, netcdf-c], [$compilers]], exclude: [hdf5%gcc@12]}]
  specs: [$libs]
  packages:
    all: {compiler: [gcc@12], variants: [+shared], providers: {blas: [openblas]}}
    hdf5: {version: [1.10, 1.14.3], require: '+fortran', buildable: true}
    zlib: {require: [{any_of: ['@1.3', '%gcc'], when: '+shared', message: because}], prefer: ['@1.3'], conflict: [~pic]}
    cmake: {externals: [{spec: cmake@3.25.1, prefix: /usr}], buildable: false}
    fftw:
      externals:
      - {spec: fftw@3, prefix: /usr, id: own, dependencies: [{id: mpi, deptypes: [link], virtuals: mpi}]}
    gcc: {externals: [{spec: gcc@12 languages=c, prefix: /usr, extra_attributes: {compilers: {c: /usr/bin/gcc}}}]}
  concretizer: {unify: when_possible}
  view: true
""").spack
    assert body is not None
    assert body["packages"]["hdf5"]["version"] == ["1.10", "1.14.3"], "1.10 is not 1.1"
    assert set(body) == {"definitions", "specs", "packages", "concretizer", "view"}


def test_conditions_that_spack_would_evaluate_are_refused() -> None:
    error = refusal(
        "spack:\n  definitions:\n  - a: [zlib]\n    when: __import__('os').system('id')\n  specs: [$a]\n"
    )
    assert error.line == 4


def test_all_wrong_entries_are_told_at_once() -> None:
    error = refusal("apt: [JQ]\npip: ['-r x']\nspack:\n  specs: ['a;b']\n  repos: []\n")
    for place in ("apt[0]", "line 2: pip[0]", "line 4: spack.specs[0]", "line 5: spack.repos"):
        assert place in error.message
    assert error.line == 1


YAML_PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "apt",
                    "pip",
                    "spack",
                    "smoke",
                    "slim",
                    "specs",
                    "packages",
                    "all",
                    "require",
                    "externals",
                    "definitions",
                    "matrix",
                    "concretizer",
                    "view",
                ]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.printable + "\t\0\x85\ud800é", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_description(text, FILE)
    except BadDescription as error:
        assert error.message.startswith(FILE)


@settings(max_examples=300, deadline=None)
@given(YAML_PARTS)
@pytest.mark.slow
def test_any_structure_is_read_or_refused(value: object) -> None:
    import yaml

    try:
        description = parse_description(yaml.safe_dump(value), FILE)
    except BadDescription as error:
        assert error.line is None or error.line >= 1
    else:
        assert all(isinstance(entry, str) for entry in description.apt + (description.pip or ()))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.printable, min_size=1, max_size=60))
def test_a_spec_that_is_accepted_holds_nothing_for_a_shell(spec: str) -> None:
    import yaml

    try:
        body = described(yaml.safe_dump({"spack": {"specs": [spec]}})).spack
    except BadDescription:
        return
    assert body is not None
    assert not set(str(body["specs"][0]).strip()) & set(";&|<>`\\\n\r(){}!?#")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("spack:\n  specs: [a]\n  concretization: together\n", 3, ["concretizer: unify: true"]),
        ("spack:\n  specs: [a]\n  concretization: separately\n", 3, ["concretizer: unify: false"]),
        ("specs:\n- hdf5\nview: true\n", 1, ["specs", "below spack:"]),
        ("spack:\n  specs:\n  - hdf5@1.10: +mpi\n", 3, ["quotes", "'hdf5@1.10: +mpi'"]),
        ("spack:\n  specs:\n  - matrix:\n    - [%gcc]\n", 4, ["%", "quotes"]),
        ("spack:\n  packages:\n    hdf5: {require: @1.14}\n", 3, ["@", "quotes"]),
        ("spack:\n  specs:\n  - zlib %gcc@11:\n", 3, ["quotes: 'zlib %gcc@11:'"]),
        ("spack:\n  specs:\n  - hdf5:\n", 3, ["not a spec", "hdf5@1.14+mpi"]),
        ("spack:\n  specs:\n  - hdf5: {version: 1.14}\n", 3, ["not a spec", "hdf5@1.14+mpi"]),
        ("spack:\n  specs:\n  - {name: hdf5, version: 1}\n", 3, ["not a spec", "hdf5@1.14+mpi"]),
        ("spack:\n  concretizer: {concretization: separately}\n", 2, ["Write unify: false"]),
        ("spack:\n  packages: {hdf5: {variants+: [+x]}}\n", 2, ["one plain colon: variants:"]),
        ("spack:\n  packages: {HDF5: {variants: +x}}\n", 2, ["capital letters", "Write hdf5"]),
        ("spack:\n  env: {specs: [a]}\n", 2, ["directly below spack:"]),
        ("env:\n  specs: [a]\n", 1, ["Write spack: in its place"]),
        ("spack:\n\xa0\xa0specs: [a]\n", 2, ["a key holds", "no-break space", "plain blank."]),
        ("spack:\xa0\n  specs: [a]\n", 1, ["no-break space", "plain blank."]),
        ("apt: [jq bc]\n", 1, ["entry of its own: jq, bc"]),
        ("apt: ['jq,bc']\n", 1, ["entry of its own: jq, bc"]),
        ("apt: [jq==1.6]\n", 1, ["Write jq=1.6"]),
        ("apt: [jq@1.6]\n", 1, ["Write jq=1.6"]),
        ("apt: [jq/testing]\n", 1, ["Write jq: packages are those"]),
        ("apt: [JQ]\n", 1, ["Write jq."]),
        ("apt: [libgsl\u2013dev]\n", 1, ["U+2013 (en dash)", "'-'"]),
        ("pip: ['numpy@1.26']\n", 1, ["Write numpy==1.26"]),
        ("pip: ['numpy@./x']\n", 1, ["Write name==version"]),
        ("smoke: [sleep, 1]\n", 1, ["smoke[1]", "quotes"]),
        ("spack:\n  specs: [HDF5@1.14]\n", 2, ["capital letters", "hdf5"]),
        ("spack:\n  specs: [$libs]\n", 2, ["$libs", "not defined"]),
        (
            "spack:\n  definitions:\n  - a: [$b]\n  - b: [zlib]\n  specs: [$a]\n",
            3,
            ["$b", "not defined"],
        ),
        ("spack:\n  specs: [{matrix: [[a, b], []]}]\n", 2, ["matrix[1]", "empty"]),
        (
            "spack:\n  specs:\n  - matrix:\n" + "    - [a, b, c, d, e, f, g, h, i, j]\n" * 4,
            2,
            ["more than 1000 specs"],
        ),
    ],
)
def test_misunderstandings_are_told_with_what_to_write(
    text: str, line: int, words: list[str]
) -> None:
    error = refusal(text)
    assert error.line == line
    assert all(word in str(error) for word in words), str(error)
    assert " ".join(str(error).split()).count(". ") >= 1, "a full stop before the hint"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ("prefer: +shared", "must be a list"),
        ("conflict: +shared", "must be a list"),
        ("prefer: [{one_of: [+a, +b]}]", "Groups stand below require"),
        ("require: {one_of: [+mpi, ~mpi]}", "a text or a list"),
        ("require: [{when: +x}]", "spec, one_of, any_of"),
        ("require: [{spec: +x, one_of: [+y]}]", "spec, one_of, any_of"),
        ("require: [{one_of: []}]", "empty"),
        ("require: [{one_of: +x}]", "must be a list"),
        ("prefer: [{message: x}]", "must name"),
        ("variants: {a: b}", "must be a spec"),
    ],
)
def test_forms_that_spacks_schema_refuses(fields: str, word: str) -> None:
    text = f"spack:\n  specs: [zlib]\n  packages:\n    hdf5:\n      {fields}\n"
    assert word in str(refusal(text))


@pytest.mark.parametrize("key", ["version: [1.2]", "externals: [{spec: a, prefix: /usr}]"])
def test_what_cannot_be_said_of_all_packages(key: str) -> None:
    assert "below the package" in str(
        refusal(f"spack:\n  specs: [a]\n  packages:\n    all:\n      {key}\n")
    )


@pytest.mark.parametrize(
    ("view", "word"),
    [
        ("{default: {selects: [a]}}", "select"),
        ("{default: {link: some}}", "all, run or roots"),
        ("{default: {link_type: magic}}", "symlink"),
        ("{default: {projections: {all: '../../x'}}}", "folder below the view"),
        ("{tools: {root: /opt/t, projections: {all: /x}}}", "folder below the view"),
        ("{tools: {root: /opt/t, select: a}}", "must be a list"),
        ("{tools: {root: /usr}}", "below /opt"),
        ("{tools: {root: /run/cic/packages/locks/builds}}", "below /opt"),
        ("{tools: {root: /opt/../usr}}", "below /opt"),
        ("{tools: {root: relative/x}}", "below /opt"),
        ("{tools: {root: /opt}}", "below /opt"),
        ("{tools: {root: /opt/view}}", "taken"),
        ("{tools: {root: /opt/view/bin}}", "taken"),
        ("{tools: {root: /opt/cic/x}}", "taken"),
        ("{tools: {root: /opt/spack/opt}}", "taken"),
        ("{a: {root: /opt/t}, b: {root: /opt/t/}}", "taken"),
        ("{a: {root: /opt/t}, b: {root: /opt/t/x}}", "taken"),
        ("{tools: {link: run}}", "root"),
        ("[a]", "not known"),
    ],
)
def test_views_that_are_refused(view: str, word: str) -> None:
    assert word in str(refusal(f"spack:\n  specs: [zlib]\n  view: {view}\n"))


def test_two_colons_are_read_as_one() -> None:
    description = described(
        "spack::\n  specs: [hdf5]\n  view:: {default: {root: /x}}\n  packages::\n"
        "    hdf5::\n      variants:: +fortran\n    all:\n      compiler:: [gcc@12]\n"
        "      providers:: {blas:: [openblas]}\n".replace("spack::", "spack:")
    )
    assert description.spack == {
        "specs": ["hdf5"],
        "view": {"default": {"root": "/x"}},
        "packages": {
            "hdf5": {"variants": "+fortran"},
            "all": {"compiler": ["gcc@12"], "providers": {"blas": ["openblas"]}},
        },
    }
    assert description.line("spack", "packages", "hdf5", "variants") == 6
    twice = "spack:\n  packages:\n    hdf5: {variants: +a}\n    hdf5:: {variants: +b}\n"
    assert "twice" in refusal(twice).message


@pytest.mark.parametrize("name", ["my-libs", "my.libs", "2d-libs", "_x"])
def test_definitions_may_have_hyphens(name: str) -> None:
    body = described(f"spack:\n  definitions:\n  - {name}: [zlib]\n  specs: [${name}]\n").spack
    assert body is not None and body["specs"] == [f"${name}"]


def test_what_spack_writes_of_an_external_may_be_empty() -> None:
    external = (
        "spack:\n  specs: [zlib]\n  packages:\n    gcc:\n      externals:\n"
        "      - {spec: gcc@12, prefix: /usr, modules: [], extra_attributes: {flags: {},\n"
        "         environment: {}, extra_rpaths: [], compilers: {c: /usr/bin/gcc}}}\n"
    )
    assert described(external).spack is not None
    assert "flags" in str(refusal(external.replace("flags: {}", "flags: {cflags: -O2}")))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("torch=1.8.1", ["torch==1.8.1"]),
        ("numpy scipy", ["numpy, scipy"]),
        ("import numpy", ["import"]),
        ("a" * 400, ["300 characters"]),
        ("six==", ["name==1.2"]),
    ],
)
def test_pip_entries_get_what_to_write(entry: str, words: list[str]) -> None:
    assert all(word in str(refusal(f"pip:\n- {entry!r}\n")) for word in words)


GROUPS = """
spack:
  specs:
    - lz4
    - group: compilers
      specs: [gcc@14]
      explicit: false
    - group: apps
      needs: [compilers]
      matrix:
        - [hdf5, fftw]
        - ["%gcc@14"]
  concretizer: {static_analysis: true, compiler_mixing: false}
"""


def test_groups_of_specs_are_read() -> None:
    spack = described(GROUPS).spack
    assert spack is not None
    assert [entry["group"] for entry in spack["specs"][1:]] == ["compilers", "apps"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("view: {a: {root: /opt/a, group: b}}", "names 'b', which is no group here"),
        ("view: {a: {root: /opt/a, group: [default, [b]]}}", "which is no group here"),
        ("view: {a: {root: /opt/a, link_dirs: 3}}", "must be true or false"),
        ("concretizer: {externals: {completion: all}}", "Write architecture_only or default_"),
        ("concretizer: {externals: {other: 1}}", "externals.other is not allowed here"),
    ],
)
def test_what_views_and_externals_cannot_say(line: str, says: str) -> None:
    assert says in str(refusal(f"spack:\n  specs: [zlib]\n  {line}\n"))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{group: a, needs: [b], specs: [lz4]}", "names 'b', which is no group here"),
        ("{group: a, override: {config: {}}, specs: [lz4]}", "override is not allowed here"),
        ("{group: a, specs: [lz4], include: x}", "include is not allowed here"),
        ("{group: [a], specs: [lz4]}", "is not a group's name"),
        ('{group: "a/../b", specs: [lz4]}', "is not a group's name"),
        ("{group: a, explicit: maybe, specs: [lz4]}", "must be true or false"),
        ('{group: a, specs: ["lz4 dev_path=/"]}', "specs[0].specs[0]"),
        ("{group: a, specs: [[lz4]]}", "must be a spec"),
        ("{group: a, specs: [{group: b, specs: [lz4]}]}", "group is not allowed here"),
        ("{matrix: [[lz4]], needs: [a]}", "needs is not allowed here"),
    ],
)
def test_what_a_group_cannot_say(entry: str, says: str) -> None:
    assert says in str(refusal(f"spack:\n  specs: [{entry}]"))
