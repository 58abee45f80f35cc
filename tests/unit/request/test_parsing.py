"""Requests: what is taken, what is refused, and that nothing else happens."""

from __future__ import annotations

import copy
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.errors import InvalidRequest
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from tests.conftest import DATA

MACHINE = {
    "platform": "linux/amd64",
    "architecture": "rome",
    "container_engine": "singularity",
    "mpi": "openmpi@4",
    "gpu": "cuda@10",
    "gpu_arch": "sm_80",
}
VALID = {
    "machine": MACHINE,
    "workflow": "minimal_workflow",
    "step_id": "wordcount",
    "version": "v1",
    "force": False,
    "push": True,
    "slim": False,
}
TEXT_FIELDS = [*(f"machine.{name}" for name in MACHINE), "workflow", "step_id", "version"]
FLAGS = ["force", "push", "slim"]


def changed(field: str, value: Any) -> dict[str, Any]:
    """The valid request with one field replaced; `field` may be dotted."""
    request = copy.deepcopy(VALID)
    folder: dict[str, Any] = request
    *path, name = field.split(".")
    for part in path:
        folder = folder[part]
    folder[name] = value
    return request


def problems_of(raw: Any, **options: Any) -> dict[str, str]:
    """The refused fields of a request, with problem and hint; fails when the request is taken."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request(raw, **options)
    return {problem.field: f"{problem.problem} {problem.hint}" for problem in caught.value.problems}


class TestWhatIsTaken:
    def test_the_first_documentations_request(self) -> None:
        request = parse_request((DATA / "seed/service_request.json").read_bytes())
        machine = request.machine
        assert (machine.platform, machine.architecture, machine.target.name) == (
            "linux/amd64",
            "rome",
            "zen2",
        )
        assert (machine.mpi, machine.gpu) == ("openmpi@4", "cuda@10")
        assert (request.workflow, request.step_id, request.version) == (
            "minimal_workflow",
            "wordcount",
            "latest",
        )
        assert (request.force, request.push) == (False, None)

    def test_the_first_documentations_library_request(self) -> None:
        raw = (DATA / "seed/library_request.json").read_bytes()
        request = parse_request(raw, allow_path=True)
        assert (request.path, request.force, request.push) == (
            "/path/to/description/",
            False,
            False,
        )
        assert set(problems_of(raw)) == {"path"}

    @pytest.mark.parametrize(
        "file", sorted((DATA / "corpus/requests").glob("*.json")), ids=lambda file: file.stem
    )
    def test_requests_of_the_field(self, file: Path) -> None:
        request = parse_request(file.read_bytes())
        written = json.loads(file.read_text())
        assert (request.workflow, request.step_id) == (written["workflow"], written["step_id"])
        assert request.machine.architecture == written["machine"]["architecture"]
        assert request.machine.target.family == "x86_64"
        if file.stem == "test_request":
            assert (request.version, request.force, request.push) == ("v2", True, False)

    @pytest.mark.parametrize("absent", [None, "", " ", "none", "None"])
    @pytest.mark.parametrize("field", ["mpi", "gpu", "gpu_arch", "architecture"])
    def test_nothing_can_be_written_in_many_ways(self, field: str, absent: str | None) -> None:
        assert getattr(parse_request(changed(f"machine.{field}", absent)).machine, field) is None

    @pytest.mark.parametrize(
        ("written", "meant"), [(True, True), ("true", True), ("False", False), ("FALSE", False)]
    )
    @pytest.mark.parametrize("field", FLAGS)
    def test_flags_may_be_texts(self, field: str, written: Any, meant: bool) -> None:
        assert getattr(parse_request(changed(field, written)), field) is meant

    @pytest.mark.parametrize(
        ("field", "written", "meant"),
        [
            ("platform", "linux/amd64/v1", "linux/amd64"),
            ("platform", " Linux/AMD64", "linux/amd64"),
            ("architecture", "Sapphire Rapids", "sapphire-rapids"),
            ("container_engine", "apptainer", "singularity"),
            ("container_engine", "Docker", "docker"),
            ("architecture", "Zen2 ", "zen2"),
            ("mpi", "openmpi@4  +cuda", "openmpi@4 +cuda"),
        ],
    )
    def test_spellings_of_one_value(self, field: str, written: str, meant: str) -> None:
        assert getattr(parse_request(changed(f"machine.{field}", written)).machine, field) == meant

    def test_python_constants_count_outside_of_strings_only(self) -> None:
        raw = (
            json.dumps(changed("workflow", "None"), indent=1)
            .replace("false", "False")
            .replace("true", "True")
        )
        request = parse_request(raw.replace('"version": "v1"', '"version": None'))
        assert (request.workflow, request.version, request.push) == ("None", "latest", True)

    def test_a_byte_order_mark_is_not_in_the_way(self) -> None:
        assert parse_request(b"\xef\xbb\xbf" + json.dumps(VALID).encode()) == parse_request(VALID)

    def test_base_is_the_base_image(self) -> None:
        assert parse_request({**VALID, "workflow": "BASE", "step_id": "BASE"}).is_base
        assert not parse_request({**VALID, "workflow": "BASE"}).is_base


class TestWhatIsRefused:
    def test_every_field_is_named_at_once(self) -> None:
        problems = problems_of(
            {
                "machine": {
                    "platform": "linux/amd65",
                    "architecture": "zen99",
                    "container_engine": "podman",
                    "mpi": "-x",
                    "gpu": 3,
                    "gpu_arch": "a;b",
                    "cpu": "x",
                },
                "workflow": "../etc",
                "version": "a b",
                "force": "perhaps",
                "pusch": True,
            }
        )
        assert set(problems) == {
            "machine.platform",
            "machine.architecture",
            "machine.container_engine",
            "machine.mpi",
            "machine.gpu",
            "machine.gpu_arch",
            "machine.cpu",
            "workflow",
            "step_id",
            "version",
            "force",
            "pusch",
        }

    @pytest.mark.parametrize(
        ("field", "value", "word"),
        [
            ("machine.platform", "linux/amd46", "linux/amd64"),
            ("machine.architecture", "zenn2", "zen2"),
            ("machine.architecture", "roma", "rome"),
            ("machine.container_engine", "podman", "docker or singularity"),
            ("machine.architecture", "grace", '"platform": "linux/arm64"'),
            ("pusch", True, "did you mean push?"),
            ("step", "wordcount", "did you mean step_id?"),
            ("machine.plattform", "linux/amd64", "did you mean platform?"),
            ("machine.gpu", False, "write null"),
            ("machine.arch", "zen2", "did you mean architecture?"),
            ("machine.cpu", "zen2", "did you mean architecture?"),
            ("machine.cuda", "12", "did you mean gpu?"),
            ("branch", "main", "did you mean version?"),
            ("machine.architecture", "gfx90a", '"gpu_arch": "gfx90a"'),
            ("machine.architecture", "sm_80", '"gpu_arch": "sm_80"'),
            ("machine.architecture", "Neoverse N1", "write neoverse_n1"),
            ("machine.xyz", 1, "known fields: platform"),
            ("force", "yes", "write true or false"),
            ("workflow", 7, "text in double quotes"),
            ("machine", [], "object in braces"),
        ],
    )
    def test_the_hint_says_what_to_write(self, field: str, value: Any, word: str) -> None:
        assert word in problems_of(changed(field, value))[field]

    def test_the_other_familys_platform_is_named(self) -> None:
        request = changed("machine.platform", "linux/arm64")
        request["machine"]["architecture"] = "zen2"
        problem = problems_of(request)["machine.architecture"]
        assert "x86_64" in problem and '"platform": "linux/amd64"' in problem

    @pytest.mark.parametrize("step_id", ["etc", "usr", "opt", "software-catalog", "proc"])
    def test_a_step_never_lies_over_a_folder_of_the_system(self, step_id: str) -> None:
        problem = problems_of(changed("step_id", step_id))["step_id"]
        assert f"/{step_id} is taken in the image" in problem and "another name" in problem

    def test_missing_fields_come_with_an_example(self) -> None:
        problems = problems_of({"machine": {}})
        assert set(problems) == {
            "machine.platform",
            "machine.container_engine",
            "workflow",
            "step_id",
        }
        assert '"linux/amd64"' in problems["machine.platform"]

    @pytest.mark.parametrize(
        ("raw", "word"),
        [
            (b"", "empty"),
            (b" \n", "empty"),
            (b"[]", "not a JSON object"),
            (b"null", "not a JSON object"),
            (b"{", "line 1, column 2"),
            (b'{"machine": }', "line 1, column 13"),
            (b"\xff\xfe{}", "not UTF-8"),
            (b'{"force": NaN}', "NaN"),
            (b'{"force": -Infinity}', "-Infinity"),
            (b"[" * 100_000, "deeply"),
            (b'{"a":' * 100_000, "deeply"),
            (b'{"force": ' + b"9" * 5000 + b"}", "not valid JSON"),
            (b'{"workflow": "' + b"a", "not valid JSON"),
        ],
        ids=lambda value: value[:12].decode("latin1") if isinstance(value, bytes) else None,
    )
    def test_what_is_not_json(self, raw: bytes, word: str) -> None:
        assert word in problems_of(raw)["body"]

    @pytest.mark.parametrize(
        ("raw", "fields"),
        [
            ('{"workflow": "a", "workflow": "b"}', {"workflow": "stands 2 times in one object"}),
            ('{"force": False, "force": True}', {"force": "stands 2 times in one object"}),
            (
                '{"workflow": "w", "machine": {"mpi": "a", "gpu": "b", "mpi": "c", "gpu": 1, "mpi": 2}}',
                {"mpi": "stands 3 times in one object", "gpu": "stands 2 times in one object"},
            ),
            ('{"x": [{"a b": 1, "a b": 1}]}', {"'a b'": "stands 2 times in one object"}),
        ],
    )
    def test_a_key_that_stands_twice(self, raw: str, fields: dict[str, str]) -> None:
        """JSON's readers take the last one, and nothing says so."""
        problems = problems_of(raw)
        assert set(problems) == set(fields)
        for field, problem in fields.items():
            assert problem in problems[field] and "write it once" in problems[field]

    def test_a_megabyte_of_equal_keys_is_answered_briefly(self) -> None:
        assert (
            len(problems_of("{" + ",".join(f'"{n % 9999}":1' for n in range(90_000)) + "}")) <= 20
        )

    @pytest.mark.parametrize(
        "raw", ['"' + '\\"' * 500_000, '{"a": "' + "True " * 200_000, '"\\' * 300_000]
    )
    def test_a_megabyte_of_unclosed_strings_is_read_once(self, raw: str) -> None:
        """An expression that goes back for every quote would take hours here."""
        assert set(problems_of(raw)) == {"body"}

    @pytest.mark.parametrize("depth", [50, 500, 900, 950, 980, 990, 1000, 1500])
    @pytest.mark.parametrize(
        "field",
        [
            "force",
            "workflow",
            "machine",
            "machine.mpi",
            "machine.gpu_arch",
            "machine.name",
            "unknown",
        ],
    )
    def test_deep_values(self, field: str, depth: int) -> None:
        text = json.dumps(changed(field, "HERE")).replace('"HERE"', "[" * depth + "]" * depth)
        assert problems_of(text, machines={})

    @pytest.mark.parametrize("value", [10**4000, -1, 0, 1, 1e308, 0.1, [], {}, [None], {"a": 1}])
    @pytest.mark.parametrize("field", TEXT_FIELDS + FLAGS)
    def test_wrong_types(self, field: str, value: Any) -> None:
        assert list(problems_of(changed(field, value))) == [field]

    def test_an_unknown_fields_name_is_shown_harmlessly(self) -> None:
        for name in ("x" * 10_000, "a\nb", "\x1b[31m", "\ud800", ""):
            raw = json.dumps({**VALID, name: 1})
            for shown in problems_of(raw):
                assert len(shown) < 500 and shown.isascii() and shown.isprintable()


HOSTILE = [
    "../",
    "..",
    "a/../b",
    ";reboot",
    "$(reboot)",
    "`reboot`",
    "a\nb",
    "a\n",
    "\n",
    "a\rb",
    "a\0b",
    "-rf",
    "--help",
    "a'b",
    'a"b',
    "a\\b",
    "a|b",
    "a&b",
    "a>b",
    "a<b",
    "*",
    "?",
    "a{b}",
    "%s%n\x07",
    "\x1b[2J",
    "\xe4",
    "\uff0e\uff0e\uff0f",
    "\u202e",
    "\ud800",
    "A" * 201,
    "x" * 10_000,
    " " * 10_000,
    "a" + " " * 10_000,
    "{{7*7}}",
    "#",
    "!x",
    "http://[",
    "~root",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("field", TEXT_FIELDS + FLAGS)
def test_hostile_texts_are_refused_in_every_field(field: str, hostile: str) -> None:
    assert list(problems_of(changed(field, hostile))) == [field]
    assert list(problems_of(json.dumps(changed(field, hostile)))) == [field]


@pytest.mark.parametrize("path", ["a\nb", "a\0b", "x" * 10_000, 7, ["x"]])
def test_hostile_paths_are_refused_in_library_mode(path: Any) -> None:
    assert set(problems_of({**VALID, "path": path}, allow_path=True)) == {"path"}


def hostile_requests(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of requests with a hostile value in some field, and the field. The same for the same
    seed.
    """
    rng = random.Random(seed)
    pieces = [
        "../",
        "/..",
        ";",
        "$(",
        ")",
        "`",
        "\n",
        "\r",
        "\0",
        "'",
        '"',
        "\\",
        "|",
        "&",
        ">",
        "<",
        "*",
        "?",
        "{",
        "}",
        "\x1b",
        "\xe9",
        "\u2028",
        "!",
        "#",
        "^",
    ]
    harmless = [
        "a",
        "zen2",
        "openmpi@4",
        "linux/amd64",
        "--",
        "v1",
        "_",
        ".",
        "/",
        "rm -rf",
        "id",
        " ",
    ]
    made = []
    for _ in range(count):
        field = rng.choice(TEXT_FIELDS + FLAGS)
        words = [rng.choice(pieces), *rng.choices(pieces + harmless, k=rng.randrange(9))]
        rng.shuffle(words)
        kind = rng.randrange(8)
        value = ("-" + "".join(words)) if kind == 0 else "".join(words) * (2000 if kind == 1 else 1)
        made.append((field, json.dumps(changed(field, value))))
    return made


@pytest.mark.slow
def test_ten_thousand_hostile_requests_start_nothing(started_processes: list[str]) -> None:
    requests = hostile_requests(10_000, seed=20)
    assert len({text for _, text in requests}) > 9_000
    taken = []
    for field, text in requests:
        try:
            taken.append((field, parse_request(text)))
        except InvalidRequest as error:
            assert [problem.field for problem in error.problems] == [field]
    assert taken == []
    assert started_processes == []


def test_the_process_listener_hears(started_processes: list[str]) -> None:
    subprocess.run(["true"], check=True)
    assert len(started_processes) == 1


ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
ALMOST = st.fixed_dictionaries(
    {},
    optional={
        "machine": ANY_JSON
        | st.fixed_dictionaries(
            {},
            optional={
                **{name: ANY_JSON | st.just(value) for name, value in MACHINE.items()},
                "name": ANY_JSON,
            },
        ),
        **{name: ANY_JSON | st.just(value) for name, value in VALID.items() if name != "machine"},
        "path": ANY_JSON,
    },
)


def outcome(raw: Any, allow_path: bool) -> None:
    """Parse; anything but a request or an `InvalidRequest` whose text can be sent fails the test."""
    try:
        assert isinstance(parse_request(raw, allow_path=allow_path, machines={}), BuildRequest)
    except InvalidRequest as error:
        assert error.problems
        str(error).encode("utf-8")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(raw: bytes, allow_path: bool) -> None:
    outcome(raw, allow_path)


@settings(max_examples=300)
@given(ANY_JSON | ALMOST, st.booleans())
@pytest.mark.slow
def test_any_json(value: Any, allow_path: bool) -> None:
    outcome(json.dumps(value), allow_path)
    if isinstance(value, dict):
        outcome(value, allow_path)


@given(ALMOST)
def test_what_is_taken_can_be_written_down_and_read_again(value: dict[str, Any]) -> None:
    try:
        request = parse_request({**VALID, **value}, allow_path=True)
    except InvalidRequest:
        return
    assert parse_request(request.model_dump(mode="json"), allow_path=True) == request
