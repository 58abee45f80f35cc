"""Write the benchmarks' results into the documentation."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- written by benchmarks/ -->\n", "<!-- until here -->\n"


def replace_table(page: Path, text: str) -> None:
    """Put `text` between the two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n" + text + "\n" + END + after, "utf-8")
