"""Decide what clean-up may remove, and remove it; the command and the pool take turns at it.

What is in use stays. Builds hold their folder and their identity, readers the file that they read,
and each of them keeps it from being removed in any process; see `image_builder.host.file_leases`.
What was used within the last hour stays, too: an image that was just made belongs to a build that
is about to be recorded as finished. Pinned images stay for ever, and so do base images, on which
others are built.

Everything is checked once more when nothing can begin to use it any more, and only then removed. A
clean-up that is killed leaves nothing that is offered and not whole; the next one takes the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator

import filelock
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.docker import buildx, daemon
from image_builder.docker.registry import is_identity_name
from image_builder.errors import CicError, ServiceError
from image_builder.host.files import bytes_of
from image_builder.host.process import run
from image_builder.host.workspace import abandoned, remove_abandoned
from image_builder.plan.image_name import is_private_name
from image_builder.sif import docker_export
from image_builder.store.image_store import Images
from image_builder.store.record import ImageRecord
from service import downloads
from service.db import audit_trail, builds, notices, runs, shares, timelines
from service.db import uploads as db_uploads
from service.db.ageing import Ageing
from service.logs.storage import logs_of
from service.uploads import Uploads

GRACE_S = 3600.0
"""What was used within this time stays, whatever the limits say."""

_RUN = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that may be removed. `remove` returns False when it is in use by now."""

    kind: str
    name: str
    size_bytes: int
    reason: str
    remove: Callable[[], bool] = dataclasses.field(repr=False)


class Cleanup:
    """The clean-up of one service; making one removes nothing."""

    def __init__(
        self, engine: Engine, settings: Settings, images: Images, *, grace_s: float = GRACE_S
    ) -> None:
        self._engine, self._images, self._grace_s = engine, images, grace_s
        self._limits, self._build = settings.service, settings.library.build
        self._folder = settings.library.build.tmp_folder
        self._kept_logs = logs_of(settings, engine)
        self._uploads = Uploads(engine=engine, settings=settings)

    def run(self, *, dry_run: bool = False) -> Iterator[Item]:
        """Remove what may go, and yield each thing removed; with `dry_run`, each that would be.

        Raises `ServiceError` when another clean-up is at work. What cannot be looked at now is left
        for another time.
        """
        lock = self._folder / "run" / "cleanup.lock"
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with filelock.FileLock(lock, timeout=0, mode=0o600):
                for items in (
                    self._folders,
                    self._half_written,
                    self._sent_folders,
                    self._logs,
                    self._timelines,
                    self._sifs,
                    self._docker_images,
                    self._texts,
                    self._build_cache,
                    self._audit,
                    self._notices,
                ):
                    yield from self._tried(items, dry_run)
        except filelock.Timeout:
            raise ServiceError(
                "Another clean-up is at work.", hint="Try again when it has ended."
            ) from None

    def _tried(self, items: Callable[[], Iterator[Item]], dry_run: bool) -> Iterator[Item]:
        try:
            for item in items():
                if dry_run or item.remove():
                    yield item
        except (CicError, OSError) as error:
            _log.warning("clean-up of %s: %s", items.__name__.strip("_"), error)

    def _folders(self) -> Iterator[Item]:
        for folder in abandoned(self._build.builds_folder):
            yield Item(
                kind="build folder",
                name=folder.name,
                size_bytes=bytes_of(folder),
                reason="its build was killed",
                remove=functools.partial(remove_abandoned, folder),
            )

    def _sent_folders(self) -> Iterator[Item]:
        """Folders that users sent: who sent the expired ones is forgotten, and then what is nobody's."""
        keep_s = self._limits.keep_uploads_s
        if count := db_uploads.count_expired(self._engine, keep_s):
            yield _rows(
                "sent folders",
                count,
                "not used for keep_uploads_s",
                lambda: db_uploads.expire(self._engine, keep_s),
            )
        for folder in self._uploads.unneeded(self._grace_s):
            yield Item(
                kind="sent folder",
                name=folder.name,
                size_bytes=bytes_of(folder),
                reason="nobody who sent it and no build needs it",
                remove=functools.partial(self._uploads.remove, folder),
            )

    def _audit(self) -> Iterator[Item]:
        keep_s = self._limits.keep_audit_s
        if keep_s is not None:
            yield from self._old("audit entries", audit_trail.ENTRIES, "keep_audit_s", keep_s)

    def _notices(self) -> Iterator[Item]:
        yield from self._old(
            "notices", notices.ENDED, "keep_notices_s", self._limits.keep_notices_s
        )

    def _old(self, kind: str, rows: Ageing, setting: str, age_s: float) -> Iterator[Item]:
        if count := rows.count(self._engine, age_s):
            reason = f"older than {setting}"
            yield _rows(kind, count, reason, lambda: rows.remove(self._engine, age_s))

    def _half_written(self) -> Iterator[Item]:
        if left := self._images.leftovers():
            yield Item(
                kind="half-written images",
                name=str(len(left)),
                size_bytes=sum(left.values()),
                reason="their writers were killed",
                remove=lambda: self._images.sweep() > 0,
            )

    def _logs(self) -> Iterator[Item]:
        """Logs of runs that ended or that the database does not have; the oldest first."""
        logs = sorted(self._ended_logs(), key=lambda log: log.ended_at)
        over_bytes = sum(log.size_bytes for log in logs) - _limit(self._limits.max_logs_bytes)
        for log in logs:
            reason = self._why_log(time.time() - log.ended_at, over_bytes)
            if reason is not None:
                over_bytes -= log.size_bytes
                yield Item(
                    kind="log",
                    name=log.run_id,
                    size_bytes=log.size_bytes,
                    reason=reason,
                    remove=self._kept_logs.of(log.run_id).remove,
                )

    def _timelines(self) -> Iterator[Item]:
        """Timelines of builds; one that goes on is written again and again, and so is never old."""
        keep_s = self._limits.keep_logs_s
        if keep_s is not None:
            age_s = max(keep_s, self._grace_s)
            yield from self._old("timelines", timelines.WRITTEN, "keep_logs_s", age_s)

    def _ended_logs(self) -> Iterator[_Log]:
        ends = runs.run_ends(self._engine)
        for facts in self._kept_logs.all():
            ended_at = ends.get(facts.run_id, facts.changed_at)
            if _RUN.fullmatch(facts.run_id) is not None and ended_at is not None:
                yield _Log(run_id=facts.run_id, size_bytes=facts.size_bytes, ended_at=ended_at)

    def _why_log(self, age_s: float, over_bytes: float) -> str | None:
        if self._limits.keep_logs_s is not None and age_s > self._limits.keep_logs_s:
            return f"its build ended {_days(age_s)} ago"
        return (
            "logs take more than max_logs_bytes"
            if over_bytes > 0 and age_s > self._grace_s
            else None
        )

    def _sifs(self) -> Iterator[Item]:
        """Those that nothing points to before others, and then the least recently used first."""
        records, referenced = self._images.images(), self._referenced()
        records.sort(
            key=lambda record: (record.sha256 in referenced, self._images.last_use(record))
        )
        over_bytes = sum(record.size_bytes or 0 for record in records) - _limit(
            self._limits.max_images_bytes
        )
        for record in records:
            reason = self._why_sif(record, referenced, is_too_much=over_bytes > 0)
            if reason is None or self._images.is_kept(record) or self._is_linked(record):
                continue
            remove = functools.partial(self._remove_sif, record, is_too_much=over_bytes > 0)
            over_bytes -= record.size_bytes or 0
            yield Item(
                kind="SIF",
                name=f"{record.filename} {record.sha256}",
                size_bytes=record.size_bytes or 0,
                reason=reason,
                remove=remove,
            )

    def _why_sif(
        self, record: ImageRecord, referenced: Collection[str], *, is_too_much: bool
    ) -> str | None:
        unused_s = time.time() - self._images.last_use(record)
        if unused_s < self._grace_s:
            return None
        if record.sha256 not in referenced and unused_s > self._limits.keep_unreferenced_s:
            return f"no name and no build points to it, and it was not used for {_days(unused_s)}"
        if self._limits.keep_unused_s is not None and unused_s > self._limits.keep_unused_s:
            return f"it was not used for {_days(unused_s)}"
        return "images take more than max_images_bytes" if is_too_much else None

    def _remove_sif(self, record: ImageRecord, *, is_too_much: bool) -> bool:
        """Remove a SIF unless it was used since the first look.

        The store asks again under the SIF's lease, when no new reader can come; earlier ones have left
        a trace.
        """

        def has_a_reason_to_stay() -> bool:
            return (
                self._is_linked(record)
                or self._why_sif(record, self._referenced(), is_too_much=is_too_much) is None
            )

        return self._images.remove(record.sha256 or "", unless=has_a_reason_to_stay)

    def _is_linked(self, record: ImageRecord) -> bool:
        sif = self._images.path_of(record.sha256 or "")
        return sif is not None and downloads.is_linked(sif, self._folder / "images")

    def _referenced(self) -> set[str]:
        """The SIFs that a name means, or a build that its user still sees.

        The name of a private image means nothing without such a build.
        """
        held = shares.held_private_filenames(self._engine)
        named = {
            record.sha256
            for name, record in self._images.names().items()
            if record.sha256 is not None and (name in held or not is_private_name(name))
        }
        return named | builds.held_sifs(self._engine)

    def _docker_images(self) -> Iterator[Item]:
        """Images in the daemon that were made here; another service's are not known here."""
        known = self._images.identities()
        for image in daemon.made_images():
            last_use = known.get(image.identity.removeprefix("sha256:"))
            if last_use is None or image.is_base or docker_export.is_converted(image.names):
                continue
            reason = self._why_image(image, time.time() - max(last_use, image.created_at))
            if (
                reason is None
                or self._images.is_pinned(image.identity)
                or self._is_pinned_sif(image.identity)
            ):
                continue
            yield Item(
                kind="docker image",
                name=image.names[0] if image.names else image.id,
                size_bytes=image.size_bytes,
                reason=reason,
                remove=functools.partial(self._remove_image, image),
            )

    def _why_image(self, image: daemon.DaemonImage, unused_s: float) -> str | None:
        if unused_s < self._grace_s:
            return None
        if all(map(is_identity_name, image.names)) and unused_s > self._limits.keep_unreferenced_s:
            return f"it has no name, and was not used for {_days(unused_s)}"
        if self._limits.keep_unused_s is not None and unused_s > self._limits.keep_unused_s:
            return f"it was not used for {_days(unused_s)}"
        return None

    def _remove_image(self, image: daemon.DaemonImage) -> bool:
        with self._images.unused(image.identity) as free:
            last_use = self._images.identities().get(image.identity.removeprefix("sha256:"), 0.0)
            return (
                free
                and self._why_image(image, time.time() - max(last_use, image.created_at))
                is not None
                and daemon.remove_made_image(image)
            )

    def _is_pinned_sif(self, identity: str) -> bool:
        record = self._images.by_identity(identity)
        return (
            record is not None
            and record.sha256 is not None
            and self._images.is_pinned(record.sha256)
        )

    def _texts(self) -> Iterator[Item]:
        """Records and texts of identities of which no image is left."""
        in_daemon = {image.identity.removeprefix("sha256:") for image in daemon.made_images()}
        for identity, last_use in self._images.identities().items():
            unused_s = time.time() - last_use
            record = self._images.by_identity(identity)
            if (
                identity in in_daemon
                or unused_s <= max(self._grace_s, self._limits.keep_unreferenced_s)
                or self._images.is_pinned(identity)
                or (record is not None and record.sha256 is not None)
            ):
                continue
            yield Item(
                kind="texts",
                name=identity,
                size_bytes=self._images.texts_bytes(identity),
                reason=f"no image of it is left, and it was not used for {_days(unused_s)}",
                remove=functools.partial(self._images.forget, identity),
            )

    def _build_cache(self) -> Iterator[Item]:
        keep_bytes = self._limits.max_build_cache_bytes
        if keep_bytes is None:
            return
        over_bytes = buildx.cache_bytes(buildx.cache_command(self._build), run) - keep_bytes
        if over_bytes > 0:
            prune = buildx.cache_command(self._build, keep_bytes=keep_bytes)
            yield Item(
                kind="build cache",
                name=self._build.buildx_builder or "default",
                size_bytes=over_bytes,
                reason="it takes more than max_build_cache_bytes",
                remove=lambda: buildx.cache_bytes(prune, run) > 0,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Log:
    run_id: str
    size_bytes: int
    ended_at: float


def _rows(kind: str, count: int, reason: str, forget: Callable[[], int]) -> Item:
    """Return rows of the database as one thing to remove; `forget` returns how many it removed."""
    return Item(
        kind=kind, name=str(count), size_bytes=0, reason=reason, remove=lambda: forget() > 0
    )


def _limit(max_bytes: int | None) -> float:
    return float("inf") if max_bytes is None else max_bytes


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days"
