"""The root specs that definitions, references and matrices expand to."""

from __future__ import annotations

from typing import Any

import yaml

from image_builder.sources.spec_lists import MAX_ROOTS, Size, count_roots, roots_in
from image_builder.sources.spec_places import spec_places


def texts(body: str) -> list[str]:
    return [root.text for root in roots_in(_body(body), (0, 23, 1))]


def _body(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_references_are_followed_through_definitions() -> None:
    body = "definitions: [{a: [zlib]}, {b: [$a, bzip2]}, {a: [lz4]}]\nspecs: [$b, $a, hdf5]"
    assert texts(body) == ["zlib", "bzip2", "zlib", "lz4", "hdf5"]
    sizes, unknown = count_roots(_body(body))
    assert (sizes[""], unknown) == (Size(5, 5), [])


def test_unused_definitions_are_no_roots() -> None:
    assert texts("definitions: [{a: [zlib]}]\nspecs: [hdf5]") == ["hdf5"]


def test_a_matrix_is_every_combination_but_the_excluded() -> None:
    body = (
        "definitions: [{c: ['%gcc@12', '%clang']}]\n"
        "specs: [{matrix: [[a@1, b], [~cuda, +cuda], [$c]], exclude: ['a+cuda', 'b%clang']}]"
    )
    assert texts(body) == [
        "a@1 ~cuda %gcc@12",
        "a@1 ~cuda %clang",
        "b ~cuda %gcc@12",
        "b +cuda %gcc@12",
    ]
    root = roots_in(_body(body), (0, 23, 1))[0]
    assert (root.name, root.nodes[0].version) == ("a", "1")
    assert root.nodes[0].variants == {"cuda": "false"} and root.nodes[1].name == "gcc"


def test_rows_constrain_the_root_and_not_the_compiler() -> None:
    for release in ((0, 23, 1), (1, 1, 0)):
        (root,) = roots_in(_body("specs: [{matrix: [['hwloc %gcc@12'], [~cuda]]}]"), release)
        assert root.nodes[0].variants == {"cuda": "false"}


def test_a_reference_behind_a_sigil_is_a_dependency() -> None:
    body = "definitions: [{m: [mpich, openmpi]}]\nspecs: [{matrix: [[hdf5], [$^m]]}]"
    assert texts(body) == ["hdf5 ^mpich", "hdf5 ^openmpi"]


def test_what_multiplies_is_counted_and_never_made() -> None:
    body = {"specs": [{"matrix": [["a", "b", "c", "d"]] * 40}]}
    assert count_roots(body)[0][""].is_too_large
    assert len(roots_in(body, (1, 1, 0))) <= MAX_ROOTS


def test_what_grows_without_more_roots_is_counted_too() -> None:
    """Each definition joins the one before it twenty times."""
    definitions: list[dict[str, Any]] = [{"a0": ["+x"]}]
    definitions += [{f"a{n}": [{"matrix": [[f"$a{n - 1}"]] * 20}]} for n in range(1, 12)]
    sizes, _ = count_roots({"definitions": definitions, "specs": ["$a2"]})
    assert sizes["a2"] == sizes[""] == Size(1, 400)
    assert sizes["a11"].is_too_large and not sizes["a3"].is_too_large


def test_a_matrix_counts_what_it_makes() -> None:
    body = _body("specs: [{matrix: [[a, b], [+x, ~x, '@1'], ['%gcc']]}]")
    made = roots_in(body, (1, 1, 0))
    assert count_roots(body)[0][""] == Size(len(made), sum(len(root.parts) for root in made))


def test_every_place_of_a_spec() -> None:
    body = _body("""
definitions: [{a: ['foo@main']}]
specs: [x, $a, {matrix: [['y'], ['+z']], exclude: ['y+q']}]
packages:
  all: {require: ['%gcc'], providers: {mpi: [openmpi]}}
  h: {require: '@1', prefer: [{spec: +p, when: '@2', message: said}], variants: [+v],
      externals: [{spec: h@1, prefix: /usr}]}
view: {t: {root: /opt/t, select: [s], projections: {'p@1': '{name}'}}}
""")
    assert {text for _, text, _ in spec_places(body)} == {
        *("foo@main", "x", "y", "+z", "y+q", "%gcc", "openmpi"),
        *("@1", "+p", "@2", "+v", "h@1", "s", "p@1"),
    }
    assert [text for _, text, is_named in spec_places(body) if is_named] == ["x", "openmpi", "h@1"]
