"""Masks secrets in every line of output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import SecretStr

Secret = SecretStr
"""A value whose printing is masked; only what hands it to a process's input reads it."""
MASK = "[hidden]"
MIN_SECRET_LINE = 8


def redactor(secrets: Sequence[Secret]) -> Callable[[str], str]:
    """Return a function that masks the secrets in a line.

    The longest is masked first, as one secret may contain another. Of a secret with several lines,
    each line of at least `MIN_SECRET_LINE` characters is masked by itself.
    """
    values = masked_values(secrets)

    def redact(line: str) -> str:
        for value in values:
            line = line.replace(value, MASK)
        return line

    return redact


def masked_values(secrets: Sequence[Secret]) -> list[str]:
    whole = {value for secret in secrets if (value := secret.get_secret_value())}
    lines = {line for value in whole for line in value.splitlines() if len(line) >= MIN_SECRET_LINE}
    return sorted(whole | lines, key=len, reverse=True)
