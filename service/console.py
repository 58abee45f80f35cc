"""What the service's processes tell their operator: one line for each thing that happened, on standard error.

Lines about what users do read `action=… subject=… user=… address=…`; no secret is ever part of one.
"""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Let log lines of this process go to standard error, unless it has arranged for them already."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
