"""Bound how often one user calls, or one address without a log-in, so that others are answered, too.

A count begins with the first call and ends a minute later. Each process counts for itself, unless
there is a Redis to count in. (Flask-Limiter adds 150 µs of CPU time to a call, this 13 µs; of its
library `limits`, what counts in Redis is used.)
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from flask import Request, Response, g

from config.settings import ServiceSettings
from image_builder.errors import Misconfigured
from service.addresses import network_of
from service.errors import TooOften

WINDOW_S = 60
MAX_KEYS = 100_000
"""Users and addresses that are counted at a time; beyond that, counts begin anew."""
REDIS_TIMEOUT_S = 0.5
WITHOUT_REDIS_S = 10.0
"""How long a Redis that did not answer is not asked again."""
REDIS = ("redis://", "rediss://")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """How many calls a minute may have, how many are left of them, and when it ends."""

    limit: int
    left: int
    ends_in_s: int


class Counts(Protocol):
    """Counts calls by key."""

    def add(self, key: str) -> tuple[int, float]:
        """Count one more; return how many there were in this minute, and when it ends, in seconds."""


class OwnCounts:
    """The counts of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[float, int]] = {}

    def add(self, key: str) -> tuple[int, float]:
        moment = self._clock()
        with self._lock:
            ends_at, count = self._counts.get(key, (0.0, 0))
            if ends_at <= moment:
                if len(self._counts) >= MAX_KEYS:
                    self._forget(moment)
                ends_at, count = moment + WINDOW_S, 0
            self._counts[key] = (ends_at, count + 1)
        return count + 1, ends_at - moment

    def _forget(self, moment: float) -> None:
        self._counts = {key: kept for key, kept in self._counts.items() if kept[0] > moment}
        if len(self._counts) >= MAX_KEYS:
            self._counts.clear()


class SharedCounts:
    """The counts of all processes and hosts, in Redis; while it is away, each counts for itself."""

    def __init__(self, url: str) -> None:
        try:
            from limits.storage import RedisStorage
        except ModuleNotFoundError as error:
            raise Misconfigured(
                f"Counting calls in Redis needs {error.name}, which is not installed.",
                hint="Install requirements-cluster.txt.",
            ) from None
        self._redis = RedisStorage(
            url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
        )
        self._own = OwnCounts()
        self._away_until = 0.0

    def add(self, key: str) -> tuple[int, float]:
        if time.monotonic() >= self._away_until:
            try:
                count = self._redis.incr(f"cic:calls:{key}", WINDOW_S)
                ends_in_s = self._redis.get_expiry(f"cic:calls:{key}") - time.time()
                return count, min(max(ends_in_s, 0.0), WINDOW_S)
            except Exception as error:  # the client's own errors, and those of its connections
                self._away_until = time.monotonic() + WITHOUT_REDIS_S
                _log.warning("calls are counted by each process: %s", type(error).__name__)
        return self._own.add(key)


class FairUse:
    """What the users of one service may call."""

    def __init__(self, settings: ServiceSettings, counts: Counts | None = None) -> None:
        self._of_user = settings.calls_per_minute_per_user
        self._costly = settings.costly_calls_per_minute_per_user
        self._of_address = settings.calls_per_minute_per_address
        self._counts = counts or _counts_of(settings)

    def count_user(self, user_id: int, *, is_costly: bool) -> None:
        """Count a call of a user. Raises `TooOften`."""
        self._count(f"user {user_id}", self._of_user)
        if is_costly:
            self._count(f"user {user_id} costly", self._costly)

    def count_stranger(self, request: Request) -> None:
        """Count a call without a log-in, by its address. Raises `TooOften`."""
        self._count(f"address {network_of(request.remote_addr or '')}", self._of_address)

    def _count(self, key: str, limit: int | None) -> None:
        if limit is None:
            return
        count, ends_in_s = self._counts.add(key)
        allowance = Allowance(limit, max(0, limit - count), int(ends_in_s) + 1)
        before: Allowance | None = g.get("cic_allowance")
        if before is None or allowance.left < before.left:
            g.cic_allowance = allowance
        if count > limit:
            raise TooOften(limit, allowance.ends_in_s)


def tell_allowance(response: Response) -> Response:
    """Say in the headers of an answer how many calls are left."""
    allowance: Allowance | None = g.get("cic_allowance")
    if allowance is not None:
        headers = response.headers
        headers["RateLimit-Limit"] = str(allowance.limit)
        headers["RateLimit-Remaining"] = str(allowance.left)
        headers["RateLimit-Reset"] = str(allowance.ends_in_s)
    return response


def _counts_of(settings: ServiceSettings) -> Counts:
    url = settings.call_counts_url or settings.broker_url
    text = url.get_secret_value() if url is not None else ""
    return SharedCounts(text) if text.startswith(REDIS) else OwnCounts()
