"""Ask a container image creation service for images."""

from cic_client.client import Client
from cic_client.errors import (
    BadInput,
    ClientError,
    Refused,
    UnexpectedAnswer,
    Unreachable,
    WrongChecksum,
)

__all__ = [
    "BadInput",
    "Client",
    "ClientError",
    "Refused",
    "UnexpectedAnswer",
    "Unreachable",
    "WrongChecksum",
]
