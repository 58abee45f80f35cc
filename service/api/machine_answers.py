"""Turn machines and CPUs into the JSON objects that the API answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from image_builder.request.machines import MachineEntry
from service.api.responses import shaped_by


class DifferenceAnswer(TypedDict):
    """A fact in which a machine of the catalogue is another."""

    fact: str
    here: str | None
    there: str | None


class LikenessAnswer(TypedDict):
    """A machine of the catalogue that is like this one."""

    name: str
    title: str
    differences: list[DifferenceAnswer]


class RecognisedAnswer(TypedDict):
    """A machine, recognised from facts that were collected there."""

    machine: Annotated[dict[str, str], Field(description="what a request takes as its machine")]
    facts: Annotated[dict[str, str], Field(description="what a check takes behind the ?")]
    nearest: Annotated[
        list[LikenessAnswer], Field(description="machines of the catalogue, the likest first")
    ]
    notes: Annotated[list[str], Field(description="what was not found, and what to do about it")]


class ArchitectureAnswer(TypedDict):
    """A target that can be asked for."""

    name: str
    family: str
    platform: str
    vendor: str
    aliases: list[str]
    parents: list[str]


class ArchitectureList(TypedDict):
    """The known targets."""

    architectures: list[ArchitectureAnswer]
    platforms: list[str]


class MachineAnswer(MachineEntry):
    """A machine of the catalogue. What is not known is left out."""

    name: str


class MachineList(TypedDict):
    """The machine catalogue."""

    machines: list[Annotated[dict[str, Any], shaped_by(MachineAnswer)]]


def machine_list(machines: Any) -> MachineList:
    """Return the machine catalogue, by name."""
    return {
        "machines": [
            {"name": name, **entry.model_dump(mode="json", exclude_none=True)}
            for name, entry in sorted(machines.items())
        ]
    }
