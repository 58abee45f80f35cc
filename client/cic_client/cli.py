"""Run the command `cic`: each verb is one function, and one entry of the parser.

Exit status: 0 success, 1 refused by the service, or the image does not work there, 2 wrong usage,
3 service not reached, 4 the build failed, 5 the downloaded file has the wrong checksum.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import getpass
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cic_client import login, models
from cic_client.client import Client, Request
from cic_client.errors import BadInput, ClientError
from cic_client.live import download_bar, watched
from cic_client.show import Screen
from cic_client.text import printable

MAX_REQUEST_BYTES = 1024**2
MAX_PLAN_BYTES = 64 * 1024**2
MAX_TOKEN_CHARACTERS = 10_000
DOES_NOT_WORK, BUILD_FAILED, INTERRUPTED = 1, 4, 130


@dataclasses.dataclass(frozen=True)
class Call:
    """What a verb works with."""

    asked: argparse.Namespace
    client: Client
    screen: Screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know every letter of a log
    asked = parser().parse_args(arguments)
    screen = Screen.of_terminal(as_json=getattr(asked, "json", False))
    try:
        if asked.verb in (verb_login, verb_logout):
            return int(asked.verb(asked, screen))
        with login.client_from(os.environ) as client:
            return int(asked.verb(Call(asked, client, screen)))
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


# ---- The verbs


def verb_login(asked: argparse.Namespace, screen: Screen) -> int:
    token = _line_of_standard_input() if not sys.stdin.isatty() else getpass.getpass("Token: ")
    kept = login.KeptLogin(url=asked.url, token=token.strip())
    with login.client(kept.url, os.environ, token=kept.token) as client:
        client.list_builds(per_page=1)  # refused, if the token is not good
    path = login.path_of(os.environ)
    login.keep(kept, path)
    screen.note(f"The log-in is kept in {path}, which you alone can read.")
    return 0


def verb_logout(_: argparse.Namespace, screen: Screen) -> int:
    login.path_of(os.environ).unlink(missing_ok=True)
    screen.note("No log-in is kept any more.")
    return 0


def verb_build(call: Call) -> int:
    asked = call.asked
    accepted = call.client.submit(_request(asked), folder=asked.path)
    if not (asked.wait or asked.pull):
        if not call.screen.answer(accepted):
            call.screen.out.print(printable(accepted.id))
        return 0
    call.screen.note(f"build {accepted.id}")
    return _to_its_end(call, accepted.id, pull=asked.pull)


def verb_watch(call: Call) -> int:
    return _to_its_end(call, call.asked.build, pull=call.asked.pull)


def verb_status(call: Call) -> int:
    call.screen.build(call.client.status(call.asked.build))
    return 0


def verb_cancel(call: Call) -> int:
    call.screen.build(call.client.cancel(call.asked.build))
    return 0


def verb_log(call: Call) -> int:
    build_id, decoder = call.asked.build, codecs.getincrementaldecoder("utf-8")("replace")
    read = call.client.follow_log if call.asked.follow else call.client.log_so_far
    for part in read(build_id):
        # An escape sequence that two parts divide loses its escape, and so does nothing.
        sys.stdout.write(printable(decoder.decode(part)))
        sys.stdout.flush()
    return 0


def verb_pull(call: Call) -> int:
    _pull(call, call.asked.image, None)
    return 0


def verb_builds(call: Call) -> int:
    asked = call.asked
    call.screen.builds(call.client.list_builds(status=asked.status, page=asked.page))
    return 0


def verb_images(call: Call) -> int:
    call.screen.images(call.client.list_images())
    return 0


def verb_machines(call: Call) -> int:
    machines = call.client.machines()
    wanted = (call.asked.search or "").lower()
    chosen = [one for one in machines.machines if wanted in json.dumps(one.as_json()).lower()]
    call.screen.machines(machines.model_copy(update={"machines": chosen}))
    return 0


def verb_plan(call: Call) -> int:
    against = _earlier_plan(call.asked.against) if call.asked.against else None
    call.screen.plan(call.client.plan(_request(call.asked)), against)
    return 0


def verb_check(call: Call) -> int:
    names = [one for one in call.asked.machine if "=" not in one]
    if len(names) > 1:
        raise BadInput("Name one machine; what is known besides is written as fact=value.")
    facts = dict(one.split("=", 1) for one in call.asked.machine if "=" in one)
    query: dict[str, Any] = {**facts, **({"machine": names[0]} if names else {})}
    if not all(name.isidentifier() for name in query) or "filename" in query:
        raise BadInput("A fact is written as in gpu=cuda@12.2.")
    check = call.client.check(call.asked.image, **query)
    call.screen.check(check)
    return 0 if check.ok else DOES_NOT_WORK


# ---- What verbs share


def _to_its_end(call: Call, build_id: str, *, pull: bool) -> int:
    build = watched(call.client, build_id, call.screen)
    call.screen.build(build)
    if build.status != models.FINISHED:
        call.screen.note(f"cic: the build failed: {build.error_code or ''}", "red")
        return BUILD_FAILED
    if pull:
        if build.filename is None:
            raise ClientError("This build has no image file: its engine is docker.")
        _pull(call, build.filename, build.sha256)
    return 0


def _pull(call: Call, filename: str, sha256: str | None) -> None:
    folder: Path = call.asked.to
    with download_bar(filename, call.screen) as progress:
        path = call.client.download(filename, folder, sha256=sha256, progress=progress)
    call.screen.note(f"{path} is here, and is what the service names.")


def _request(asked: argparse.Namespace) -> Request:
    """Return the request that options or a file make. Raises `BadInput`."""
    has_options = bool(asked.packages or asked.machine or asked.name)
    if asked.request is not None:
        if has_options:
            raise BadInput(
                "Write packages, machine and name into the request, or leave the file out."
            )
        return _bounded(asked.request, MAX_REQUEST_BYTES)
    path = getattr(asked, "path", None)
    if not asked.machine or bool(asked.packages) == (path is not None):
        raise BadInput(
            "Give a file with a request, or -m with -p or --path: cic build -p hdf5+mpi -m lumi-c"
        )
    fields: dict[str, Any] = {"machine": asked.machine}
    if asked.packages:
        fields["packages"] = asked.packages
    if name := asked.name or (path.resolve().name if path is not None else None):
        fields["name"] = name
    return fields


def _bounded(path: str, max_bytes: int) -> bytes:
    """Return what a file holds, or standard input for `-`. Raises `BadInput`."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise BadInput(f"{path} is larger than {max_bytes} bytes.")
    return content


def _earlier_plan(path: str) -> models.Plan:
    try:
        return models.Plan.model_validate_json(_bounded(path, MAX_PLAN_BYTES))
    except ValidationError:
        raise BadInput(f"{path} is no plan: `cic plan --json` prints one.") from None


def _line_of_standard_input() -> str:
    return sys.stdin.readline(MAX_TOKEN_CHARACTERS)


# ---- The command line


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="cic",
        description="Ask a container image creation service for images.",
        epilog="CIC_URL with CIC_TOKEN, or with CIC_USER and CIC_PASSWORD, stand for a kept log-in. "
        + (__doc__ or "").partition("\n\n")[2].replace("\n", " "),
    )
    verbs = top.add_subparsers(title="verbs", required=True, metavar="<verb>")

    def add(
        verb: Callable[..., int], text: str, *positional: str, has_json: bool = True
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(verb.__name__.removeprefix("verb_"), help=text, description=text)
        made.set_defaults(verb=verb)
        for name in positional:
            made.add_argument(name)
        if has_json:
            made.add_argument("--json", action="store_true", help="print the service's JSON")
        return made

    add(
        verb_login,
        "keep a token, which is asked for or read from standard input",
        "url",
        has_json=False,
    )
    add(verb_logout, "forget the token", has_json=False)
    build = add(verb_build, "ask for an image")
    _add_request(build)
    build.add_argument("--path", type=Path, metavar="DIR", help="send this folder as the step")
    build.add_argument("--wait", action="store_true", help="wait until the build has ended")
    _add_pull(build)
    plan = add(verb_plan, "show what would be built; nothing is")
    _add_request(plan)
    plan.add_argument(
        "--against", metavar="FILE", help="show the difference to what `plan --json` printed"
    )
    _add_pull(add(verb_watch, "show a build until it has ended", "build"))
    add(verb_status, "show how a build stands", "build")
    log = add(verb_log, "print a build's log", "build", has_json=False)
    log.add_argument("-f", "--follow", action="store_true", help="go on until the build has ended")
    add(verb_cancel, "give a build up", "build")
    pull = add(verb_pull, "fetch an image file, or complete one", "image", has_json=False)
    _add_folder(pull)
    builds = add(verb_builds, "list your builds, newest first")
    builds.add_argument("--status", help="only builds of this status")
    builds.add_argument("--page", type=int, default=1)
    add(verb_images, "list the finished images")
    machines = add(verb_machines, "list the machines that a request may name")
    machines.add_argument("search", nargs="?", help="only machines that this word is found in")
    check = add(verb_check, "show whether an image works on a machine", "image")
    check.add_argument(
        "machine", nargs="+", help="a name of the catalogue, and facts such as gpu=cuda@12.2"
    )
    return top


def _add_request(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("request", nargs="?", help="a file with a request; - is standard input")
    verb.add_argument(
        "-p", "--packages", action="append", metavar="SPEC", help="a Spack spec; may be repeated"
    )
    verb.add_argument("-m", "--machine", help="a name of the machine catalogue")
    verb.add_argument("--name", help="a name for the image")


def _add_pull(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--pull", action="store_true", help="wait, and fetch the image file")
    _add_folder(verb)


def _add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="where the file goes")
