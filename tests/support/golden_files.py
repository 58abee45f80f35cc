"""Compare whole texts with golden files.

`CIC_WRITE_GOLDEN=1` writes them anew, to be read in a diff.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "unit" / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compare with the golden file, or write it when asked to."""
    path = FOLDER / name
    if os.environ.get("CIC_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text, f"{path} differs; CIC_WRITE_GOLDEN=1 writes it anew"
