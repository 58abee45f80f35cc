"""Reads what a vulnerability scanner found, from SARIF 2.1.0, and writes the document of it. Pure.

A finding's severity is its rule's `security-severity`, a CVSS score, and else its level. What the
scanner says is passed or suppressed is none. Texts are others' and are cut.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.proof.texts import plain

FILE = "scan.json"
"""The name of the document, in the store."""
SEVERITIES = ("none", "low", "medium", "high", "critical")
"""From the least on."""
MAX_FINDINGS = 20_000
_SCORES = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.1, "low"))
_LEVELS = {"error": "high", "warning": "medium", "note": "low", "none": "none"}


class UnreadableReport(ValueError):
    """The text is no report in SARIF."""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """Describes one thing that was found; `where` is a file or package as the scanner names it."""

    id: str
    severity: str
    message: str
    where: str
    help: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanReport:
    """Holds who looked at an image, and what was found, the worst first."""

    scanner: str
    version: str
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each severity, the worst first."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in reversed(SEVERITIES)}

    def at_least(self, severity: str) -> list[Finding]:
        """Return the findings of a severity, and worse ones."""
        least = SEVERITIES.index(severity)
        return [one for one in self.findings if SEVERITIES.index(one.severity) >= least]

    def summary(self, fail_on: str | None) -> dict[str, Any]:
        """Return what an image's record says of the scan."""
        return {
            "scanner": f"{self.scanner} {self.version}".strip(),
            "fail_on": fail_on,
            "counts": self.counts,
        }

    def document(self, fail_on: str | None) -> str:
        """Return all of it as JSON."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return json.dumps({**self.summary(fail_on), "findings": findings}, indent=1) + "\n"


def read(text: bytes) -> ScanReport:
    """Return what a report in SARIF says. Raises `UnreadableReport`."""
    try:
        content = json.loads(text)
        runs = content["runs"]
        if not str(content["version"]).startswith("2.1") or not isinstance(runs, list) or not runs:
            raise UnreadableReport("it is not of SARIF 2.1")
        driver = runs[0]["tool"]["driver"]
        findings = {finding for run in runs for finding in _findings(run)}
        scanner = plain(str(driver["name"]))
        version = plain(str(driver.get("semanticVersion") or driver.get("version") or ""))
    except UnreadableReport:
        raise
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UnreadableReport("it is no SARIF") from None
    if len(findings) > MAX_FINDINGS:
        raise UnreadableReport(f"it has more than {MAX_FINDINGS} findings")
    worst_first = sorted(findings, key=lambda one: (-SEVERITIES.index(one.severity), one))
    return ScanReport(scanner=scanner, version=version, findings=tuple(worst_first))


def _findings(run: Mapping[str, Any]) -> Iterator[Finding]:
    rules = run["tool"]["driver"].get("rules") or []
    by_id = {rule["id"]: rule for rule in rules}
    results = run.get("results")
    if not isinstance(results, list):
        raise UnreadableReport("a run in it did not come to its end")
    for result in results:
        if result.get("kind", "fail") != "fail" or result.get("suppressions"):
            continue
        index = result.get("ruleIndex", -1)
        name = str(result.get("ruleId") or (rules[index]["id"] if index >= 0 else ""))
        rule = by_id.get(name) or (rules[index] if 0 <= index < len(rules) else {})
        yield Finding(
            id=plain(name) or "unnamed",
            severity=_severity(result, rule),
            message=plain(str((result.get("message") or {}).get("text", ""))),
            where=_where(result),
            help=plain(str(rule.get("helpUri") or "")),
        )


def _severity(result: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
    for said in (result, rule):
        score = (said.get("properties") or {}).get("security-severity")
        if score is not None:
            return next((name for least, name in _SCORES if float(score) >= least), "none")
    level = result.get("level") or (rule.get("defaultConfiguration") or {}).get("level", "warning")
    return _LEVELS.get(str(level), "medium")


def _where(result: Mapping[str, Any]) -> str:
    for location in result.get("locations") or ():
        physical = location.get("physicalLocation") or {}
        uri = (physical.get("artifactLocation") or {}).get("uri")
        logical = [one.get("fullyQualifiedName") for one in location.get("logicalLocations") or ()]
        if said := next(filter(None, (*logical, uri)), ""):
            return plain(str(said))
    return ""
