"""Define the answer to a request for an image.

It is read without pydantic, which takes longer to import than a service takes to answer: `models`
has all other answers.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cic_client.errors import UnexpectedAnswer


@dataclasses.dataclass(frozen=True)
class Accepted:
    """A request that was taken. `folder` is the hash of the folder that was sent."""

    id: str
    folder: str | None = None
    sent: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, content: bytes) -> Accepted:
        """Return what a service answers. Raises `UnexpectedAnswer`."""
        try:
            sent = json.loads(content)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise UnexpectedAnswer.because("JSON: it is no object")
        build_id, folder = sent.get("id"), sent.get("folder")
        if not isinstance(build_id, str):
            raise UnexpectedAnswer.because("id: it is no text")
        return cls(build_id, folder if isinstance(folder, str) else None, sent)

    def as_json(self) -> dict[str, Any]:
        """Return the object as the service sent it."""
        return self.sent
