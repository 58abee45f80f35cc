"""Run the command `cic`: read what is asked, and hand it to the verb."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from cic_client.arguments import parser
from cic_client.call import Call
from cic_client.completing import complete
from cic_client.errors import ClientError
from cic_client.screen import Screen

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know every letter of a log
    reader = parser()
    complete(reader)  # and end, where a shell asks what could be written next
    asked = reader.parse_args(arguments)
    screen = Screen(as_json=getattr(asked, "json", False))
    try:
        with Call(asked, screen, os.environ) as call:
            return verb_named(asked.verb)(call)
    except ClientError as error:
        screen.note(f"cic: {error}", "red")
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on
        return 1
    except OSError as error:
        screen.note(f"cic: {error}", "red")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def verb_named(name: str) -> Callable[[Call], int]:
    """Return the function of a verb, which the parser names as `module.function`.

    Its module is imported no sooner: help and a wrong usage need a tenth of the time that the
    libraries of all verbs take.
    """
    module, _, function = name.partition(".")
    found: Callable[[Call], int] = getattr(
        importlib.import_module(f"cic_client.verbs.{module}"), function
    )
    return found
