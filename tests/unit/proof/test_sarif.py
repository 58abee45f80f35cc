"""What a scanner found, as SARIF says it; ruff writes one of the reports."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_builder.proof import sarif
from image_builder.proof.sarif import UnreadableReport, read


def report(*results: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    driver = {"name": "scanner", "semanticVersion": "1.2", "rules": rules or []}
    return {"version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": list(results)}]}


def severity_of(result: dict[str, Any], rule: dict[str, Any] | None = None) -> str:
    rules = [{"id": "CVE-1", **(rule or {})}]
    (found,) = read(
        json.dumps(report({"ruleId": "CVE-1", **result}, rules=rules)).encode()
    ).findings
    return found.severity


def test_a_report_that_another_tool_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os\nx = eval(input())\n")
    command = [
        "ruff",
        "check",
        "--isolated",
        "--select=F,S",
        "--output-format=sarif",
        "--exit-zero",
    ]
    written = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:], "program.py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    found = read(written.stdout)
    assert found.scanner == "ruff" and found.version
    assert [(one.id, one.severity) for one in found.findings] == [
        ("F401", "high"),
        ("S307", "high"),
    ]
    assert found.findings[0].where.endswith("program.py") and found.findings[0].help
    assert found.counts == {"critical": 0, "high": 2, "medium": 0, "low": 0, "none": 0}
    assert json.loads(found.document("low"))["findings"][1]["id"] == "S307"


@pytest.mark.parametrize(
    ("result", "rule", "severity"),
    [
        ({}, {"properties": {"security-severity": "9.8"}}, "critical"),
        ({"level": "note"}, {"properties": {"security-severity": "7.0"}}, "high"),
        ({}, {"properties": {"security-severity": 4.1}}, "medium"),
        ({}, {"properties": {"security-severity": "0.5"}}, "low"),
        ({}, {"properties": {"security-severity": "0.0"}}, "none"),
        (
            {"properties": {"security-severity": "2"}},
            {"properties": {"security-severity": "9"}},
            "low",
        ),
        ({"level": "error"}, {}, "high"),
        ({}, {"defaultConfiguration": {"level": "note"}}, "low"),
        ({}, {}, "medium"),
        ({"level": "of its own"}, {}, "medium"),
    ],
)
def test_severity_is_the_score_and_else_the_level(
    result: dict[str, Any], rule: dict[str, Any], severity: str
) -> None:
    assert severity_of(result, rule) == severity


def test_the_worst_is_first_and_what_is_none_is_left_out() -> None:
    rules = [{"id": "low", "properties": {"security-severity": "1"}}, {"id": "worst"}]
    said = report(
        {"ruleIndex": 0, "locations": [{"logicalLocations": [{"fullyQualifiedName": "zlib@1"}]}]},
        {"ruleId": "worst", "level": "error", "message": {"text": "b\x1b[2Jad\n"}},
        {"ruleId": "worst", "level": "error", "message": {"text": "b\x1b[2Jad\n"}},
        {"ruleId": "worst", "kind": "pass"},
        {"ruleId": "worst", "suppressions": [{"kind": "external"}]},
        rules=rules,
    )
    found = read(json.dumps(said).encode())
    assert [(one.id, one.where, one.message) for one in found.findings] == [
        ("worst", "", "b [2Jad"),
        ("low", "zlib@1", ""),
    ]
    assert [one.id for one in found.at_least("low")] == ["worst", "low"]
    assert [one.id for one in found.at_least("medium")] == ["worst"]
    assert found.at_least("critical") == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no vulnerabilities",
        b"[]",
        b'{"version": "2.1.0", "runs": []}',
        b'{"version": "2.0.0", "runs": [{}]}',
        b'{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}}]}',
        b'{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}, "results": null}]}',
        b'{"version": "2.1.0", "runs": [{"tool": {"driver": {}}, "results": []}]}',
        b'{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}, "results": [7]}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_whole_report_is_refused(text: bytes) -> None:
    """A scanner that broke off has found nothing because it looked at nothing."""
    with pytest.raises(UnreadableReport):
        read(text)


def test_a_report_has_a_bounded_number_of_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sarif, "MAX_FINDINGS", 2)
    with pytest.raises(UnreadableReport, match="more than 2"):
        read(json.dumps(report(*({"ruleId": f"CVE-{number}"} for number in range(3)))).encode())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything, anything)
def test_nothing_but_its_own_error_comes_of_any_report(result: Any, rule: Any) -> None:
    said = report(rules=[rule])
    said["runs"][0]["results"] = result if isinstance(result, list) else [result]
    with contextlib.suppress(UnreadableReport):
        read(json.dumps(said).encode())
