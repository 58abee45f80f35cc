"""Works for a service of several hosts, until a signal stops it: `python3 builder_worker.py`.

It reads the same configuration as the service, and connects to its database and its broker; nothing
connects to it.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Work until a signal stops it, and return the exit code."""
    from config import ConfigError, load_settings
    from image_builder.errors import CicError

    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if settings.service.executor != "celery":
        print(
            'Workers belong to a service of several hosts: write executor = "celery" into the configuration.',
            file=sys.stderr,
        )
        return 2
    from service.console import log_to_stderr
    from service.workers.celery_worker import WorkerMain
    from service.workers.pool import prepare_process

    prepare_process(settings)
    log_to_stderr(settings.service.log_format)
    try:
        return WorkerMain(settings).run()
    except CicError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
