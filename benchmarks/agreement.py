"""Compare what is planned with what real Spack concretizes of it.

    python -m benchmarks.agreement [--write] [--only WORD]... IMAGE

IMAGE is a base image of this machine. Prints a row for each machine of the catalogue and step and for
each input of `tests/data/inputs.yaml` (with `--only`, for those whose names hold a word), and the
shares that agree. What is refused is asked as well, as it would be without the refusal. `--write` puts
the table into docs/agreement.md, where each row is of its latest run. Takes about half a minute of a
processor for each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.agreement_cases import CATALOGUE, Case, inputs, machines, on_machines
from benchmarks.docs import DOCS, replace_table
from image_builder.docker.base_image import BaseFacts, facts_or_guess
from image_builder.docker.daemon import daemon
from image_builder.docker.spack_knowledge import spack_knowledge
from image_builder.spack.knowledge import SpackKnowledge

SCRIPT = Path(__file__).resolve().parents[1] / "tests/support/real_spack/concretize_cases.py"
COMPARED = Path(__file__).with_name("agreement.json")
TIMEOUT_S = 4 * 3600
MAX_SHOWN = 300
"""How much of a refusal or of what Spack said the table shows, in characters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A case and what Spack made of it; `concretizes` None: it was not asked."""

    case: Case
    concretizes: bool | None
    said: str = ""

    @property
    def agrees(self) -> bool:
        """Return whether Spack can satisfy what is accepted, and nothing that is refused."""
        if self.case.is_accepted:
            return self.concretizes is True
        return self.concretizes is not True or bool(self.case.why_refused)


def base_of(image: str, cache: Path) -> tuple[BaseFacts, SpackKnowledge | None]:
    """Return what is known of a base image of this machine, and of its Spack."""
    with daemon() as client:
        found = client.images.get(image)
        platform = f"{found.attrs['Os']}/{found.attrs['Architecture']}"
    facts, _ = facts_or_guess(image, found.id, platform, cache)
    return facts, spack_knowledge(facts, cache)[0]


def concretized(image: str, planned: Iterable[Case]) -> list[Row]:
    """Let the image's Spack concretize what is planned, in this order; equal environments once.

    Where its container is ended, what it had not come to is left out.
    """
    planned = list(planned)
    folders: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as root:
        for case in planned:
            if case.spack_yaml is not None and case.spack_yaml not in folders:
                folder = Path(root) / f"{len(folders):03}-{case.name}"
                folders[case.spack_yaml] = folder.name
                folder.mkdir()
                (folder / "spack.yaml").write_text(case.spack_yaml, "utf-8")
        program = (
            "spack compiler find --scope site && spack external find --scope site && "
            "spack repo add --scope site /catalogue; exec spack python /script.py /cases"
        )
        subprocess.run(
            ["docker", "run", "--rm", "--network=none", f"--volume={root}:/cases",
             f"--volume={SCRIPT}:/script.py:ro", f"--volume={CATALOGUE}:/catalogue:ro",
             "--entrypoint=/bin/sh", image, "-c", program],
            timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)  # fmt: skip
        results = {
            path.parent.name: json.loads(path.read_text("utf-8"))
            for path in Path(root).glob("*/result.json")
        }
    return [row for case in planned if (row := _row(case, results, folders)) is not None]


def _row(case: Case, results: Mapping[str, Any], folders: Mapping[str, str]) -> Row | None:
    if case.spack_yaml is None:
        return Row(case=case, concretizes=None)
    result = results.get(folders[case.spack_yaml])
    if result is None:
        return None
    return Row(case=case, concretizes=result["concretizes"], said=result["said"])


def keep(release: str, rows: Sequence[Row]) -> None:
    """Remember the rows of one release, each in place of its earlier one."""
    kept = json.loads(COMPARED.read_text("utf-8")) if COMPARED.exists() else {}
    kept.setdefault(release, {}).update(
        {
            row.case.name: {
                "accepted": row.case.is_accepted,
                "refusal": _cell(row.case.refusal),
                "why_refused": row.case.why_refused,
                "concretizes": row.concretizes,
                "said": "" if row.agrees else _cell(row.said),
            }
            for row in rows
        }
    )
    COMPARED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def kept() -> dict[str, list[Row]]:
    """Return the rows that are remembered, by release."""
    releases = json.loads(COMPARED.read_text("utf-8"))
    return {
        release: [
            Row(
                case=Case(
                    name=name,
                    spack_yaml="",
                    is_accepted=row["accepted"],
                    refusal=row["refusal"],
                    why_refused=row["why_refused"],
                ),
                concretizes=row["concretizes"],
                said=row["said"],
            )
            for name, row in rows.items()
        ]
        for release, rows in sorted(releases.items(), key=lambda one: _order(one[0]))
    }


def _order(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def shares(rows: Sequence[Row]) -> str:
    """Return in words how many answers hold."""
    accepted = [row for row in rows if row.case.is_accepted]
    refused = [row for row in rows if not row.case.is_accepted and row.concretizes is not None]
    held = sum(row.agrees for row in accepted)
    rightly = sum(row.agrees for row in refused)
    return (
        f"Of {len(accepted)} plans that say yes, {held} concretize; of {len(refused)} refusals, "
        f"{rightly} are of what Spack cannot build or must not."
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, and below them the shares that hold."""
    lines = ["| machine and step, or input | the plan says | Spack |", "| --- | --- | --- |"]
    for row in rows:
        plan = "yes" if row.case.is_accepted else f"no: {_cell(row.case.refusal)}"
        said = "" if row.agrees else f": {_cell(row.said)}"
        spack = {True: "concretizes", False: "does not", None: ""}[row.concretizes]
        lines.append(f"| {_shown(row.case.name)} | {plan} | {spack}{said} |")
    return "\n".join([*lines, "", shares(rows)])


def summary(releases: Mapping[str, Sequence[Row]]) -> str:
    """Return a table with a column for each release, and what was refused or disagrees below it."""
    every = {row.case.name for rows in releases.values() for row in rows}
    names = sorted(every, key=lambda name: (name.startswith("input--"), name))
    by_name = {release: {row.case.name: row for row in rows} for release, rows in releases.items()}
    lines = [
        f"| machine and step, or input | {' | '.join(releases)} |",
        f"| --- |{' --- |' * len(releases)}",
    ]
    for name in names:
        cells = [_answer(rows.get(name)) for rows in by_name.values()]
        lines.append(f"| {_shown(name)} | {' | '.join(cells)} |")
    lines += ["", *(f"- {release}: {shares(rows)}" for release, rows in releases.items()), ""]
    return "\n".join([*lines, *_refusals(releases)])


def _refusals(releases: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return each machine's refusals, and what disagrees."""
    lines = ["| refused | where | the plan says |", "| --- | --- | --- |"]
    found: dict[tuple[str, str], list[str]] = {}
    for release, rows in releases.items():
        for row in rows:
            if not row.case.is_accepted:
                found.setdefault((row.case.name, row.case.refusal), []).append(release)
    lines += [
        f"| {_shown(name)} | {', '.join(where)} | {refusal} |"
        for (name, refusal), where in found.items()
    ]
    differing = [
        f"- {release}, {_shown(row.case.name)}: {row.said or 'Spack concretizes it'}"
        for release, rows in releases.items()
        for row in rows
        if not row.agrees
    ]
    return [*lines, *(["", "What disagrees:", "", *differing] if differing else [])]


def _answer(row: Row | None) -> str:
    if row is None:
        return ""
    answer = "yes" if row.case.is_accepted else "refused"
    if not row.agrees:
        return f"**{answer}, wrongly**"
    return f"{answer} ({row.case.why_refused})" if row.case.why_refused else answer


def _shown(name: str) -> str:
    return name.replace("--", ", ")


def _cell(text: str) -> str:
    """Return a text for one cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")[:MAX_SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", metavar="IMAGE", help="a base image of this machine")
    parser.add_argument("--only", metavar="WORD", action="append", help="cases of such names")
    parser.add_argument("--write", action="store_true", help="write docs/agreement.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        base, knows = base_of(options.image, Path(cache))
    on_each = list(on_machines(machines(base.platform), base, knows))
    # Each machine once comes first, with the step that asks most of it.
    last = {case.name.partition("--")[0]: case for case in on_each}
    others = [case for case in on_each if case not in last.values()]
    planned = [*last.values(), *inputs(base, knows), *others]
    rows = concretized(
        options.image,
        [
            case
            for case in planned
            if not options.only or any(word in case.name for word in options.only)
        ],
    )
    print(table(rows))
    if options.write:
        keep(".".join(map(str, base.spack_version or ())), rows)
        replace_table(DOCS / "agreement.md", summary(kept()))


if __name__ == "__main__":
    main()
