"""Builds one container image without the service: `python3 cic_builder.py --request file.json`.

`python3 cic_builder.py bundle` collects all that this needs, for a machine without network.

It needs `requirements-library.txt` alone. It ends with 0 when the image is there, 2 for a bad
request or configuration, 3 when the build failed, 4 when something that the build needs is not
available, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from config.loading import load_library_settings
from image_builder import hints, pipeline
from image_builder.bundle.make import make_bundle
from image_builder.bundle.opening import Trust, open_bundle
from image_builder.errors import (
    BuildFailed,
    Cancelled,
    CicError,
    InvalidRequest,
    Misconfigured,
    ServiceError,
    UserError,
    with_hint,
)
from image_builder.host import file_leases, files
from image_builder.host.cancellation import CancelToken
from image_builder.plan.inputs import Inputs
from image_builder.proof import compare_sifs, keys
from image_builder.request.build_request import BuildRequest
from image_builder.request.machines import load_machines
from image_builder.settings import BuildSettings, LibrarySettings
from image_builder.sources.own_description import parse_any_request
from image_builder.state import BuildState
from image_builder.timeline.spans import Span

EXIT_OK, EXIT_DIFFERENT, EXIT_BAD_REQUEST, EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    130,
)


class ConsoleObserver:
    """Shows a build on a terminal: the log, and below it how far the build is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("Starting") if console.is_terminal else None

    def __enter__(self) -> ConsoleObserver:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def entered(self, state: BuildState) -> None:
        self._show(state.value)
        self._console.print(f"--- {state.value}", markup=False, highlight=False)

    def progress(self, done: int, total: int, what: str) -> None:
        self._show(f"package {done} of {total}: {what}")

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def span(self, span: Span) -> None:
        """Show nothing: the lines say it, and times are kept by the service alone."""

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do what it says, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["compare"]:
        return _compare(words[1:], Console(stderr=True))
    makes_bundle = words[:1] == ["bundle"]
    parser = _bundle_parser() if makes_bundle else _parser()
    options = parser.parse_args(words[1:] if makes_bundle else words)
    console = Console(stderr=True)
    try:
        settings = _for_one_build(load_library_settings(options.config))
        request = parse_any_request(
            _read(options.request),
            allow_path=True,
            machines=load_machines(settings.build.machines),
            kept=lambda name: pipeline.kept_request(name, settings),
        )
        if makes_bundle:
            return _make_bundle(request, settings, console, options.output, options.built)
        if options.bundle is not None:
            trust = _trust(settings, options.keys, allow_unsigned=options.allow_unsigned)
            return _build_bundle(request, settings, console, options, trust)
        if options.plan:
            return _print_plan(request, settings)
        if options.shell:
            return _open_shell(request, settings, console)
        return _build(request, settings, console, options.output)
    except CicError as error:
        return _explain(error, console)


def _bundle_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cic_builder.py bundle",
        description="Collect everything that building a request needs into one file, from which "
        "cic_builder.py --bundle builds without network.",
    )
    _add_common(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the bundle, a tar archive"
    )
    parser.add_argument(
        "--built",
        action="store_true",
        help="build Spack's packages here, and put them into the bundle beside their sources",
    )
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--request",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON file with the request; - reads standard input",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file instead of config/configuration.py",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build a container image for a workflow step and a target machine. "
        "cic_builder.py bundle --help tells how to build it without network."
    )
    _add_common(parser)
    parser.add_argument(
        "--plan", action="store_true", help="print what would be built, and build nothing"
    )
    parser.add_argument(
        "--shell",
        action="store_true",
        help="open a shell in the environment in which Spack would work on the request",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="copy the SIF there, under its own name; the folder is made if it is missing",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="build from what cic_builder.py bundle collected, without network",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="public keys of those whose bundles are used; otherwise those of proof_cfg",
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="use a bundle that nobody signed, or that no key can be compared with",
    )
    return parser


def _for_one_build(settings: LibrarySettings) -> LibrarySettings:
    """Return the settings of a machine that builds nothing else: one build has all cores."""
    alone = settings.build.model_copy(update={"max_concurrent_builds": 1})
    return settings.model_copy(update={"build": alone})


def _trust(settings: LibrarySettings, named: Path | None, *, allow_unsigned: bool) -> Trust:
    public = keys.published(settings.proof) if named is None else keys.read_public_keys(named)
    return Trust(keys=tuple(public), allow_unsigned=allow_unsigned)


def _compare(arguments: Sequence[str], console: Console) -> int:
    """Print in what two SIFs differ; the exit code says whether they do."""
    parser = argparse.ArgumentParser(
        prog="cic_builder.py compare",
        description="Say in which files two SIFs differ, and whose files those are. "
        "It ends with 0 if they are equal, bit for bit, and else with 1.",
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args(arguments)
    try:
        said = compare_sifs.compare(options.first, options.second)
    except CicError as error:
        return _explain(error, console)
    print(said, end="")
    return EXIT_DIFFERENT if said else EXIT_OK


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(f"The request file {path} cannot be read: {error.strerror}.") from None


def _print_plan(
    request: BuildRequest, settings: LibrarySettings, inputs: Inputs | None = None
) -> int:
    made = pipeline.plan(request, settings, inputs=inputs)
    print(f"image_id: {made.image_id}\nfilename: {made.filename}\nidentity: {made.identity}")
    for warning in made.warnings:
        print(f"warning: {warning}")
    if made.spack_yaml:
        print(f"\n--- spack.yaml\n{made.spack_yaml}", end="")
    print(f"\n--- Dockerfile\n{made.dockerfile}", end="")
    return EXIT_OK


def _make_bundle(
    request: BuildRequest,
    settings: LibrarySettings,
    console: Console,
    output: Path,
    with_built: bool,
) -> int:
    with _folder(settings.build) as folder, ConsoleObserver(console) as observer:
        made = make_bundle(
            request,
            settings=settings,
            output=output,
            workspace=folder / "bundle",
            observer=observer,
            cancel=_cancel_on_signals(),
            with_built=with_built,
        )
    print(
        f"bundle: {output}\nidentity: {made.identity}\nsigned: {'yes' if made.is_signed else 'no'}"
    )
    share = made.size_bytes / made.parts_bytes
    print(f"size: {made.size_bytes} bytes, {share:.3f} of its {made.files} files")
    return EXIT_OK


def _build_bundle(
    request: BuildRequest,
    settings: LibrarySettings,
    console: Console,
    options: argparse.Namespace,
    trust: Trust,
) -> int:
    if options.shell:
        raise UserError("--shell does not go with --bundle.")
    with _folder(settings.build) as folder:
        with ConsoleObserver(console) as observer:
            opened = open_bundle(
                options.bundle,
                request,
                settings,
                trust=trust,
                folder=folder / "opened",
                observer=observer,
                cancel=_cancel_on_signals(),
            )
        if options.plan:
            return _print_plan(request, opened.settings, opened.inputs)
        return _build(request, opened.settings, console, options.output, opened.inputs)


def _build(
    request: BuildRequest,
    settings: LibrarySettings,
    console: Console,
    output: Path | None,
    inputs: Inputs | None = None,
) -> int:
    local = settings.model_copy(
        update={"build": settings.build.model_copy(update={"storage": "folder"})}
    )
    with _folder(settings.build) as folder, ConsoleObserver(console) as observer:
        result = pipeline.build_image(
            request,
            settings=local,
            workspace=folder / "build",
            observer=observer,
            cancel=_cancel_on_signals(),
            inputs=inputs,
        )
    print(f"image_id: {result.image_id}")
    if result.sif_path is not None and result.filename is not None:
        named = _link(result.sif_path, settings.build.tmp_folder / "images" / result.filename)
        print(f"sif: {_copy(named, output / result.filename) if output else named}")
    return EXIT_OK


def _open_shell(request: BuildRequest, settings: LibrarySettings, console: Console) -> int:
    """Replace this process by a shell in the environment, with `spack` as the build sees it."""
    with _folder(settings.build) as folder, ConsoleObserver(console) as observer:
        image = pipeline.build_debug_image(
            request,
            settings=settings,
            workspace=folder / "debug",
            observer=observer,
            cancel=_cancel_on_signals(),
        )
    console.print(
        "The request's environment is /opt/cic/spack.yaml: try `spack -e /opt/cic concretize`, or "
        "`spack install -v <your package>`.",
        markup=False,
        highlight=False,
    )
    terminal = ["--tty"] if sys.stdin.isatty() else []
    sys.stdout.flush()
    os.execvp(
        "docker",
        [
            "docker",
            "run",
            "--rm",
            "--interactive",
            *terminal,
            "--platform",
            request.machine.platform,
            image,
        ],
    )


def _cancel_on_signals() -> CancelToken:
    """Return a token that Ctrl-C and SIGTERM set."""
    cancel = CancelToken()

    def interrupted(number: int, _: FrameType | None) -> None:
        cancel.cancel(f"Interrupted by {signal.Signals(number).name}.")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    return cancel


@contextlib.contextmanager
def _folder(build: BuildSettings) -> Iterator[Path]:
    """Yield a folder of our own among the builds, which is removed at the end."""
    build.builds_folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="cli-", dir=build.builds_folder) as folder,
        file_leases.held_folder(Path(folder)),
    ):
        yield Path(folder)


def _link(sif: Path, name: Path) -> Path:
    """Link the stored SIF under its name, where the first version of this program put it."""
    with _explained(sif, name):
        files.link_file(sif, name)
    return name


def _copy(sif: Path, destination: Path) -> Path:
    """Copy the SIF to where the user wants it; the file appears whole or not at all."""
    with _explained(sif, destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(destination) as fresh:
            shutil.copyfile(sif, fresh)
    return destination


@contextlib.contextmanager
def _explained(sif: Path, destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The SIF cannot be written to {destination}: {error.strerror}.",
            hint=f"It is stored as {sif}.",
        ) from None


def _explain(error: CicError, console: Console) -> int:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if isinstance(error, InvalidRequest):
        say("The request is not valid:")
        for problem in error.problems:
            say(f"  {problem}")
        return EXIT_BAD_REQUEST
    if isinstance(error, BuildFailed) and error.details:
        say("\n".join(error.details))
    hint = error.hint or hints.usual(error.code)
    say(f"{error.code.value}: {with_hint(error.message, hint)}")
    if isinstance(error, Cancelled):
        return EXIT_INTERRUPTED
    if isinstance(error, Misconfigured):
        return EXIT_BAD_REQUEST
    if isinstance(error, ServiceError):
        return EXIT_UNAVAILABLE
    return (
        EXIT_BAD_REQUEST
        if isinstance(error, UserError) and not isinstance(error, BuildFailed)
        else EXIT_FAILED
    )


if __name__ == "__main__":
    sys.exit(main())
