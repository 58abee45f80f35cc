"""Every machine of the catalogue and every input on a real Spack: what the plan says, and what
Spack then does.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.agreement import base_of, concretized, shares, table
from benchmarks.agreement_cases import inputs, machines, on_machines
from tests.support.site import PROJECT
from tests.support.spack_site import SPACK_BASE, SPACK_ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(
        SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK"
    ),
]


def test_plan_and_spack_agree(tmp_path: Path) -> None:
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    base, knows = base_of(SPACK_BASE, tmp_path)
    assert knows is not None, "the base image's Spack did not say what it knows"
    planned = [*on_machines(machines(base.platform), base, knows), *inputs(base, knows)]
    rows = concretized(SPACK_BASE, planned)
    print(table(rows))
    assert len(rows) == len(planned)
    assert [row for row in rows if not row.agrees] == [], shares(rows)
    assert any(row.case.name == "seed--zlib" and row.concretizes for row in rows)
