"""Texts that are kept for the same inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.host.text_cache import TextCache


def cache(folder: Path, suffix: str = ".lock") -> TextCache:
    return TextCache(folder, suffix, most=3)


def test_texts_are_kept_and_forgotten(tmp_path: Path) -> None:
    locks = cache(tmp_path / "locks")
    assert locks.get("a") is None
    locks.keep("a", '{"roots": []}')
    assert cache(tmp_path / "locks").get("a") == '{"roots": []}'
    locks.forget("a")
    assert locks.get("a") is None


@pytest.mark.parametrize("text", ['{"roots": [', "[" * 50_000])
def test_a_text_that_was_cut_is_none(tmp_path: Path, text: str) -> None:
    locks = cache(tmp_path)
    locks.keep("a", text)
    assert locks.get("a") is None


def test_they_do_not_grow_without_end(tmp_path: Path) -> None:
    locks, others = cache(tmp_path), cache(tmp_path, ".json")
    others.keep("0", "{}")
    for number in range(6):
        locks.keep(str(number), "{}")
    assert len(list(tmp_path.glob("*.lock"))) == 3
    assert locks.get("5") == "{}" and others.get("0") == "{}"
