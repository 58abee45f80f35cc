"""Ask for builds, and look after them."""

from __future__ import annotations

import codecs
import sys

from cic_client import names
from cic_client.asking import request_of
from cic_client.call import Call
from cic_client.errors import ClientError
from cic_client.text import printable

FINISHED = "FINISHED"
BUILD_FAILED = 4


def build(call: Call) -> int:
    """Ask for an image; with --wait or --pull, stay until it is there."""
    asked = call.asked
    accepted = call.client.submit(request_of(asked), folder=asked.path)
    if not (asked.wait or asked.pull):
        if not call.screen.answer(accepted):
            call.screen.line(accepted.id)
        return 0
    call.screen.note(f"build {accepted.id}")
    return _to_its_end(call, accepted.id)


def watch(call: Call) -> int:
    """Show a build until it has ended."""
    return _to_its_end(call, call.asked.build)


def status(call: Call) -> int:
    """Show how a build stands."""
    from cic_client import tables

    tables.show_build(call.screen, call.client.status(call.asked.build))
    return 0


def cancel(call: Call) -> int:
    """Give a build up."""
    from cic_client import tables

    tables.show_build(call.screen, call.client.cancel(call.asked.build))
    return 0


def builds(call: Call) -> int:
    """List the user's builds."""
    from cic_client import tables

    asked = call.asked
    answer = call.client.list_builds(status=asked.status, page=asked.page)
    if not asked.status and asked.page == 1:
        call.remember(names.BUILDS, [one.id for one in answer.builds])
    tables.show_builds(call.screen, answer)
    return 0


def timeline(call: Call) -> int:
    """Show what ran in a build, and when."""
    from cic_client import tables

    tables.show_timeline(call.screen, call.client.timeline(call.asked.build))
    return 0


def log(call: Call) -> int:
    """Print a build's log."""
    build_id, decoder = call.asked.build, codecs.getincrementaldecoder("utf-8")("replace")
    read = call.client.follow_log if call.asked.follow else call.client.log_so_far
    for part in read(build_id):
        # An escape sequence that two parts divide loses its escape, and so does nothing.
        sys.stdout.write(printable(decoder.decode(part)))
        sys.stdout.flush()
    return 0


def _to_its_end(call: Call, build_id: str) -> int:
    from cic_client import live, tables  # rich, which a build that is not waited for does without

    try:
        ended = live.watched(call.client, build_id, call.screen)
    except KeyboardInterrupt:
        call.screen.note(
            f"The build goes on. `cic watch {build_id}` shows it again, and "
            f"`cic cancel {build_id}` gives it up."
        )
        raise
    tables.show_build(call.screen, ended)
    if ended.status != FINISHED:
        call.screen.note(f"cic: the build failed: {ended.error_code or ''}", "red")
        return BUILD_FAILED
    if call.asked.pull:
        if ended.filename is None:
            raise ClientError("This build has no image file: its engine is docker.")
        live.pulled(call.client, call.screen, ended.filename, call.asked.to, sha256=ended.sha256)
    return 0
