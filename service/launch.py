"""Check whether a stored image runs on a machine, and write what starts it there."""

from __future__ import annotations

import dataclasses

from image_builder.audit import compatibility
from image_builder.launch.commands import PROCESSES
from image_builder.launch.script import Script, script
from image_builder.launch.start import Start, program_words
from image_builder.request.machines import MachineFacts
from image_builder.store.record import COMPRESSOR, ImageRecord
from service.context import service
from service.db import builds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A stored image and a machine to run it on; `filename` is None for an image without a SIF."""

    record: ImageRecord
    filename: str | None
    machine: MachineFacts

    def report(self) -> compatibility.Report:
        """Return whether the image runs there."""
        record = self.record
        return compatibility.check(
            record.details.get("labels") or {},
            self.machine,
            file=self._file(),
            reference=record.image_id,
            compressor=record.details.get(COMPRESSOR),
            is_pushed=builds.is_pushed(service().engine, record.image_id, record.identity),
        )

    def script(self, kind: str | None, *, program: str = "", processes: int = PROCESSES) -> Script:
        """Return what starts the image there, with the findings of a check as comments.

        Raises `InvalidRequest`.
        """
        start = Start(
            image=self.record.details.get("labels") or {},
            machine=self.machine,
            file=self._file(),
            reference=self.record.image_id,
            program=program_words(program),
            processes=processes,
            remarks=tuple(map(str, self.report().findings)),
        )
        return script(start, kind)

    def _file(self) -> str:
        """Return what Singularity runs: the SIF, or what the registry has."""
        return self.filename or f"docker://{self.record.image_id}"
