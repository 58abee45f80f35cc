"""Ask a container image creation service for images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cic_client.errors import (
    BadInput,
    ClientError,
    Refused,
    UnexpectedAnswer,
    Unreachable,
    WrongChecksum,
)

if TYPE_CHECKING:
    from cic_client.client import Client

__all__ = [
    "BadInput",
    "Client",
    "ClientError",
    "Refused",
    "UnexpectedAnswer",
    "Unreachable",
    "WrongChecksum",
]


def __getattr__(name: str) -> Any:
    """Import the client when somebody names it: the command's help needs none of its libraries."""
    if name == "Client":
        return importlib.import_module("cic_client.client").Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
