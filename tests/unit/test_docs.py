"""The documents are kept honest: their blocks parse, their examples are taken, and what they list
is all there is.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask
from flask.cli import AppGroup
from pydantic import BaseModel

from config import ServiceSettings, load_settings
from config.loading import SECTIONS, SERVICE_SECTIONS
from image_builder.errors import ErrorCode
from image_builder.request.build_request import BuildRequest, Machine
from image_builder.request.parsing import load_json, parse_request
from image_builder.sources import spack_section
from image_builder.sources.description import KEYS, parse_description
from image_builder.state import BuildState
from service.api.routes import api
from service.commands import images, tokens, user_groups, users
from tests.conftest import PROJECT

PAGES = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "examples").glob("*.md")]
)
PROSE = {"text", "nginx"}
"""Blocks in these are looked at by people alone."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block; `line` is where it begins."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match["language"], match["text"])
        for match in re.finditer(
            r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", text, re.DOTALL | re.MULTILINE
        )
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


def page(name: str) -> str:
    return (PROJECT / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """The part of a page below the heading that begins so, up to the next one."""
    _, found, rest = text.partition(f"\n## {heading}")
    assert found, f"no heading {heading}"
    return rest.split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table
        if not line.startswith("|--")
        and not line.startswith(("| key ", "| call ", "| code ", "| modules "))
    ]


def test_there_are_pages_and_every_block_says_its_language() -> None:
    assert {
        "README.md",
        "CHANGELOG.md",
        "architecture.md",
        "configuration.md",
        "operate.md",
        "workflows.md",
        "api.md",
    } <= {page.name for page in PAGES}
    known = {"sh", "json", "yaml", "python", "ini", *PROSE}
    assert [str(block) for block in BLOCKS if block.language not in known] == []
    for name in PAGES:
        assert name.read_text("utf-8").count("\n```") == 2 * len(blocks_of(name)), name


@blocks("sh")
def test_commands_parse(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


@blocks("json")
def test_json_parses_and_requests_are_taken(block: Block) -> None:
    fields = load_json(block.text)
    if "workflow" in fields:
        parse_request(block.text, allow_path=True)


@blocks("yaml")
def test_yaml_parses_and_descriptions_are_taken(block: Block) -> None:
    assert yaml.safe_load(block.text)
    if block.page.name == "workflows.md":
        assert parse_description(block.text, "eflows4hpc.yaml").warnings == ()


@blocks("python")
def test_python_parses(block: Block) -> None:
    assert ast.parse(block.text).body


@pytest.mark.parametrize("name", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(name: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", name.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        file, _, heading = target.partition("#")
        linked = (name.parent / file) if file else name
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            }, target


@pytest.mark.parametrize("name", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(name: Path) -> None:
    """A path in backticks that begins with a folder of the project is one in it."""
    folders = "|".join(
        re.escape(path.name) for path in PROJECT.iterdir() if path.is_dir() and path.name[0] != "."
    )
    for named in re.findall(rf"`((?:{folders})/[\w./-]*)`", name.read_text("utf-8")):
        assert (PROJECT / named).exists(), named


class TestConfiguration:
    TABLES = (
        *(
            (f"`{name}`", prefix, model)
            for name, (prefix, model) in {**SECTIONS, **SERVICE_SECTIONS}.items()
        ),
        ("The service's own keys", "", ServiceSettings),
    )

    @pytest.mark.parametrize(
        ("heading", "prefix", "model"), TABLES, ids=[table[0] for table in TABLES]
    )
    def test_every_key_is_described_with_its_default(
        self, heading: str, prefix: str, model: type[BaseModel]
    ) -> None:
        text = section(page("docs/configuration.md"), heading)
        assert f"CIC_{prefix}_…`" in text or not prefix
        described = {row[0].strip("`"): row for row in rows(text)}
        assert sorted(described) == sorted(model.model_fields)
        for key, field in model.model_fields.items():
            _, default, meaning = described[key]
            assert len(meaning) > 10, key
            if not field.is_required():
                assert ast.literal_eval(default.strip("`")) == field.get_default(), key

    def test_the_example_is_enough(self, tmp_path: Path) -> None:
        example = next(
            block
            for block in blocks_of(PROJECT / "docs/configuration.md")
            if block.language == "python"
        )
        file = tmp_path / "configuration.py"
        file.write_text(example.text)
        (tmp_path / "token").write_text("canary")
        settings = load_settings(file, {"CIC_REGISTRY_TOKEN_FILE": str(tmp_path / "token")})
        assert settings.library.registry.token is not None

    def test_the_environments_examples_name_settings(self) -> None:
        named = set(
            re.findall(
                r"\bCIC_[A-Z_]+\b",
                "".join(
                    block.text
                    for block in BLOCKS
                    if block.page.name in ("configuration.md", "operate.md")
                ),
            )
        )
        known = {
            "_".join(filter(None, ("CIC", prefix, key.upper())))
            for _, prefix, model in self.TABLES
            for key in model.model_fields
        } | {"CIC_CONFIG"}
        assert {name.removesuffix("_FILE") for name in named} <= known


class TestApi:
    TEXT = page("docs/api.md")

    def test_every_call_is_listed_and_every_listed_call_is_there(self) -> None:
        app = Flask("documents")
        app.register_blueprint(api)
        there = {
            (method, re.sub(r"<[^>]*>", "<>", rule.rule).rstrip("/"))
            for rule in app.url_map.iter_rules()
            if rule.endpoint.startswith("api.")
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
        listed = {
            (method, re.sub(r"<[^>]*>", "<>", path.partition("?")[0]).rstrip("/"))
            for row in rows(section(self.TEXT, "Calls"))
            for method, path in re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", row[0])
        }
        assert listed == there

    def test_every_error_code_is_explained(self) -> None:
        explained = {
            code
            for row in rows(section(self.TEXT, "Errors"))
            for code in re.findall(r"`([A-Z_]+)`", row[0])
        }
        assert explained == {code.value for code in ErrorCode}

    def test_every_status_is_named(self) -> None:
        assert {state.value for state in BuildState} <= set(
            re.findall(r"`([A-Z]+)`", section(self.TEXT, "A build's"))
        )

    def test_every_field_of_a_request_is_described(self) -> None:
        described = {
            name
            for row in rows(section(self.TEXT, "Requests"))
            for name in re.findall(r"`([\w.]+)`", row[0])
        }
        wanted = set(BuildRequest.model_fields) | {
            f"machine.{name}" for name in Machine.model_fields
        }
        assert wanted <= described | {"field"}


@pytest.mark.parametrize(
    ("group", "heading"),
    [(users, "Users"), (tokens, "Users"), (user_groups, "Users"), (images, "Clean-up")],
)
def test_every_command_is_shown(group: AppGroup, heading: str) -> None:
    shown = set(
        re.findall(
            rf"builder_service {group.name} (\w+)", section(page("docs/operate.md"), heading)
        )
    )
    assert shown == set(group.commands)


def test_every_verb_of_the_client_is_shown_and_there() -> None:
    shown = {
        match
        for block in BLOCKS
        if block.page.name == "README.md"
        for match in re.findall(
            r"^\./cic_cli (?:user pass \S+ )?([a-z-]+)", block.text, re.MULTILINE
        )
    }
    there = {
        name.removeprefix("verb_")
        for name in re.findall(r"^(verb_[\w-]+)\(\)", page("cic_cli"), re.MULTILINE)
    }
    assert shown == there


def test_the_glossary_is_short_enough_to_be_read() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text("utf-8")
    section = text.partition("### Words")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[2:]
    assert 20 < len(words) <= 30 and len(set(words)) == len(words), words


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = {
        match
        for name in PAGES
        for match in re.findall(r"(?:^|`)make ([a-z-]+)", name.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_keys_that_the_workflow_page_lists_are_those_that_are_known() -> None:
    text = section(page("docs/workflows.md"), "`eflows4hpc.yaml`")
    listed: dict[str, Any] = {row[0].strip("`"): row[1] for row in rows(text)}
    assert set(listed) == set(KEYS)
    assert set(re.findall(r"`(\w+)`", listed["spack"])) == set(spack_section.KEYS)


def test_the_first_documentations_lines_are_there() -> None:
    text = page("docs/operate.md")
    for line in (
        "from builder_service import db",
        "db.drop_all()",
        "db.create_all()",
        "mod_wsgi-express start-server --port 5000 --processes=4 --enable-sendfile "
        "--url-alias /image_creation/images/download",
    ):
        assert line in text
