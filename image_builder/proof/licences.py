"""Reads licences as packages state them: only an SPDX expression is taken for one. Pure."""

from __future__ import annotations

import dataclasses
import functools

from boolean import ParseError
from license_expression import ExpressionError, Licensing, get_spdx_licensing

MAX_EXPRESSION = 200
_OF_OTHER_LISTS = ("licenseref-", "documentref-")
"""Beginnings of names that mean nothing in a document which does not define them."""


@dataclasses.dataclass(frozen=True)
class Licence:
    """What a package states: in its own words, and in SPDX's notation where all of it is certain."""

    stated: str
    expression: str | None


UNSTATED = Licence(stated="", expression=None)


def licence_as_stated(text: str) -> Licence:
    """Return a licence that a package states by an expression, or in words of its own."""
    return Licence(stated=text, expression=spdx_expression(text))


def spdx_expression(text: str) -> str | None:
    """Return a licence in SPDX's notation, or None if the text is no expression of SPDX's list."""
    if not text.strip() or len(text) > MAX_EXPRESSION:
        return None
    try:
        parsed = _licensing().parse(text, validate=True, strict=True)
    except (ExpressionError, ParseError, RecursionError):
        return None
    expression = "" if parsed is None else str(parsed.render())
    is_foreign = any(begin in expression.lower() for begin in _OF_OTHER_LISTS)
    return None if is_foreign else expression or None


@functools.cache
def _licensing() -> Licensing:
    return get_spdx_licensing()
