"""Hold the version of this service."""

from __future__ import annotations

VERSION = "1.0"
