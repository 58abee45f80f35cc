"""Define the command line of `cic`: the standard library alone, since each start reads it.

A verb is named as the module of `cic_client.verbs` with its function.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cic_client import completing
from cic_client.version import VERSION

EXIT_STATUSES = (
    "Exit status: 0 success, 1 refused by the service, or the image does not work there, 2 wrong usage, "
    "3 service not reached, 4 the build failed, 5 the downloaded file has the wrong checksum, "
    "6 a file is not what was signed, 130 interrupted."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="cic",
        description="Ask a container image creation service for images.",
        epilog="CIC_URL with CIC_TOKEN, or with CIC_USER and CIC_PASSWORD, stand for a kept log-in. "
        + EXIT_STATUSES,
    )
    top.add_argument("--version", action="version", version=f"cic {VERSION}")
    verbs = Verbs(top.add_subparsers(title="verbs", required=True, metavar="<verb>"))
    _add_account(verbs)
    _add_builds(verbs)
    _add_images(verbs)
    return top


@dataclasses.dataclass(frozen=True)
class Verbs:
    """The verbs of a command line, to which more are added."""

    actions: argparse._SubParsersAction[argparse.ArgumentParser]

    def add(
        self, name: str, function: str, text: str, *, has_json: bool = True
    ) -> argparse.ArgumentParser:
        """Add a verb, whose function is named as `module.function`."""
        made = self.actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made.set_defaults(verb=function)
        if has_json:
            made.add_argument("--json", action="store_true", help="print the service's JSON")
        return made


def _add_account(verbs: Verbs) -> None:
    login = verbs.add(
        "login",
        "account.log_in",
        "log in with your institute in a browser, or keep a token",
        has_json=False,
    )
    login.add_argument("url")
    login.add_argument(
        "--token",
        action="store_true",
        help="ask for a token; without a terminal, it is read from standard input anyway",
    )
    login.add_argument(
        "--no-keyring",
        dest="keyring",
        action="store_false",
        help="keep the token in a file that you alone can read",
    )
    logout = verbs.add(
        "logout", "account.logout", "revoke the token, and forget it", has_json=False
    )
    logout.add_argument(
        "--keep-token", action="store_true", help="only forget it, and let it be good for others"
    )
    completion = verbs.add(
        "completion",
        "shells.completion",
        "print what lets a shell complete verbs, options and names",
        has_json=False,
    )
    completion.add_argument("shell", choices=completing.SHELLS)


def _add_builds(verbs: Verbs) -> None:
    build = verbs.add("build", "builds.build", "ask for an image")
    _add_request(build)
    build.add_argument("--path", type=Path, metavar="DIR", help="send this folder as the step")
    build.add_argument("--wait", action="store_true", help="wait until the build has ended")
    _add_pull(build)
    plan = verbs.add("plan", "plans.plan", "show what would be built; nothing is")
    _add_request(plan)
    _completed(
        plan.add_argument(
            "--against",
            metavar="EARLIER",
            help="show the difference to a build, an image, or a file that `plan --json` printed",
        ),
        completing.earlier,
    )
    watch = verbs.add("watch", "builds.watch", "show a build until it has ended")
    _add_build(watch)
    _add_pull(watch)
    _add_build(verbs.add("status", "builds.status", "show how a build stands"))
    log = verbs.add("log", "builds.log", "print a build's log", has_json=False)
    _add_build(log)
    log.add_argument("-f", "--follow", action="store_true", help="go on until the build has ended")
    _add_build(verbs.add("timeline", "builds.timeline", "show what ran in a build, and when"))
    _add_build(verbs.add("cancel", "builds.cancel", "give a build up"))
    builds = verbs.add("builds", "builds.builds", "list your builds, newest first")
    _completed(
        builds.add_argument("--status", help="only builds of this status"), completing.states
    )
    builds.add_argument("--page", type=int, default=1)


def _add_images(verbs: Verbs) -> None:
    verbs.add("images", "images.images", "list the finished images")
    pull = verbs.add("pull", "images.pull", "fetch an image file, or complete one", has_json=False)
    _add_image(pull)
    pull.add_argument(
        "-o", "--output", metavar="FILE", help="what the file is called; - is standard output"
    )
    _add_folder(pull)
    packages = verbs.add("packages", "images.packages", "list what is installed in an image")
    _add_image(packages)
    packages.add_argument("search", nargs="?", help="only what has these words")
    packages.add_argument("--page", type=int, default=1)
    share = verbs.add("share", "images.share", "say who else sees your private image, or show it")
    _add_image(share)
    for kind in ("user", "group"):
        share.add_argument(
            f"--{kind}", action="append", default=[], metavar="NAME", help="may be repeated"
        )
    share.add_argument("--nobody", action="store_true", help="share it with nobody any more")
    verbs.add("groups", "images.groups", "list the groups that you are in")
    machines = verbs.add("machines", "images.machines", "list the machines that a request may name")
    machines.add_argument(
        "search",
        nargs="*",
        metavar="WORD",
        help="only machines that have these words in their names, sites, CPUs or GPUs",
    )
    check = verbs.add("check", "images.check", "show whether an image works on a machine")
    _add_image(check)
    _completed(
        check.add_argument(
            "machine", nargs="+", help="a name of the catalogue, and facts such as gpu=cuda@12.2"
        ),
        completing.machines,
    )
    verify = verbs.add(
        "verify", "proof.verified", "check that an image file is what the service signed, offline"
    )
    verify.add_argument("image", type=Path, help="the file")
    verify.add_argument(
        "keys", nargs="?", help="a file with the service's public keys; without it, it is asked"
    )


def _add_request(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("request", nargs="?", help="a file with a request; - is standard input")
    verb.add_argument(
        "-p", "--packages", action="append", metavar="SPEC", help="a Spack spec; may be repeated"
    )
    _completed(
        verb.add_argument("-m", "--machine", help="a name of the machine catalogue"),
        completing.machines,
    )
    verb.add_argument("--name", help="a name for the image")


def _add_build(verb: argparse.ArgumentParser) -> None:
    _completed(verb.add_argument("build"), completing.builds)


def _add_image(verb: argparse.ArgumentParser) -> None:
    _completed(verb.add_argument("image"), completing.images)


def _add_pull(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--pull", action="store_true", help="wait, and fetch the image file")
    _add_folder(verb)


def _add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="where the file goes")


def _completed(argument: argparse.Action, names: Callable[..., Any]) -> None:
    argument.completer = names  # type: ignore[attr-defined]  # where argcomplete looks for it
