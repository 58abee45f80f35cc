"""Compare what is planned with what real Spack concretizes of it.

    python -m benchmarks.agreement IMAGE [MACHINE]...

IMAGE is a base image of this machine. Prints a row for each machine of the catalogue (or those
named) and step, and the shares that agree. Takes about a minute of a processor for each row.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from image_builder.docker.base_image import BaseFacts, facts_or_guess
from image_builder.docker.daemon import daemon
from image_builder.docker.spack_knowledge import spack_knowledge
from image_builder.errors import UserError
from image_builder.recipe.environment import compose
from image_builder.request.build_request import Machine
from image_builder.request.machines import load_machines
from image_builder.sources.description import parse_description
from image_builder.spack.knowledge import SpackKnowledge

SCRIPT = Path(__file__).resolve().parents[1] / "tests/support/real_spack/concretize_cases.py"
SEED = {
    "platform": "linux/amd64",
    "architecture": "rome",
    "container_engine": "singularity",
    "mpi": "openmpi@4",
    "gpu": "cuda@10",
}
"""The machine of the first request in the README."""
STEPS = {"zlib": "[zlib]", "hdf5": "[hdf5+mpi]", "kokkos": "[kokkos]"}
TIMEOUT_S = 4 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A machine and a step: the `spack.yaml` that is planned, or why the plan refuses."""

    name: str
    spack_yaml: str | None
    refusal: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A case and what Spack made of it; None: it was not asked."""

    case: Case
    concretizes: bool | None
    said: str = ""

    @property
    def agrees(self) -> bool:
        """Return whether a plan that accepts is one that Spack can satisfy."""
        return self.case.spack_yaml is None or self.concretizes is True


def base_of(image: str, cache: Path) -> tuple[BaseFacts, SpackKnowledge | None]:
    """Return what is known of a base image of this machine, and of its Spack."""
    with daemon() as client:
        found = client.images.get(image)
        platform = f"{found.attrs['Os']}/{found.attrs['Architecture']}"
    facts, _ = facts_or_guess(image, found.id, platform, cache)
    return facts, spack_knowledge(facts, cache)[0]


def machines(platform: str, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the machines of the catalogue that are of a platform, and the README's first one."""
    known = {name: entry.request_fields() for name, entry in load_machines().items()}
    known = {"seed": SEED, **known}
    return {
        name: fields
        for name, fields in known.items()
        if fields["platform"] == platform and (not names or name in names)
    }


def cases(
    wanted: Mapping[str, Mapping[str, Any]], base: BaseFacts, knows: SpackKnowledge | None
) -> Iterator[Case]:
    """Yield what is planned for each machine and step; kokkos for those with a GPU."""
    for name, fields in wanted.items():
        for step, specs in STEPS.items():
            if step == "kokkos" and "gpu" not in fields:
                continue
            description = parse_description(f"spack:\n  specs: {specs}\n", "eflows4hpc.yaml")
            try:
                machine = Machine.model_validate(dict(fields))
                planned = compose(description, machine, base=base, knows=knows).spack_yaml
            except UserError as error:
                yield Case(name=f"{name}--{step}", spack_yaml=None, refusal=str(error))
            else:
                yield Case(name=f"{name}--{step}", spack_yaml=planned)


def concretized(image: str, planned: Iterable[Case]) -> list[Row]:
    """Let the image's Spack concretize what is planned; equal environments once."""
    planned = list(planned)
    first: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in planned:
            if case.spack_yaml is not None and case.spack_yaml not in first:
                first[case.spack_yaml] = case.name
                (Path(folder) / case.name).mkdir()
                (Path(folder) / case.name / "spack.yaml").write_text(case.spack_yaml)
        program = (
            "spack compiler find --scope site && spack external find --scope site; "
            "exec spack python /script.py /cases"
        )
        subprocess.run(
            ["docker", "run", "--rm", "--network=none", f"--volume={folder}:/cases",
             f"--volume={SCRIPT}:/script.py:ro", "--entrypoint=/bin/sh", image, "-c", program],
            check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)  # fmt: skip
        results = {
            name: json.loads((Path(folder) / name / "result.json").read_text("utf-8"))
            for name in first.values()
        }
    return [_row(case, results, first) for case in planned]


def _row(case: Case, results: Mapping[str, Any], first: Mapping[str, str]) -> Row:
    if case.spack_yaml is None:
        return Row(case=case, concretizes=None)
    result = results[first[case.spack_yaml]]
    return Row(case=case, concretizes=result["concretizes"], said=result["said"])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, and below them the share of plans that hold."""
    lines = ["| machine and step | the plan says | Spack |", "| --- | --- | --- |"]
    for row in rows:
        plan = "yes" if row.case.spack_yaml is not None else f"no: {row.case.refusal}"
        spack = {True: "concretizes", False: "does not", None: ""}[row.concretizes]
        lines.append(f"| {row.case.name.replace('--', ', ')} | {plan} | {spack} |")
    yes = [row for row in rows if row.case.spack_yaml is not None]
    held = sum(row.agrees for row in yes)
    lines += ["", f"Of {len(yes)} plans that say yes, {held} concretize."]
    return "\n".join(lines)


def main(image: str, *names: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        base, knows = base_of(image, Path(cache))
    planned = cases(machines(base.platform, names), base, knows)
    print(table(concretized(image, planned)))


if __name__ == "__main__":
    main(*sys.argv[1:])
