"""Builds one container image without the service: `python3 cic_builder.py --request file.json`.

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
from image_builder.request.build_request import BuildRequest
from image_builder.request.machines import load_machines
from image_builder.settings import BuildSettings, LibrarySettings
from image_builder.sources.own_description import parse_any_request
from image_builder.state import BuildState
from image_builder.timeline.spans import Span

EXIT_OK, EXIT_BAD_REQUEST, EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 2, 3, 4, 130


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
    """Parse the command line, build or plan, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        settings = load_library_settings(options.config)
        request = parse_any_request(
            _read(options.request), allow_path=True, machines=load_machines(settings.build.machines)
        )
        if options.plan:
            return _print_plan(request, settings)
        if options.shell:
            return _open_shell(request, settings, console)
        return _build(request, settings, console, options.output)
    except CicError as error:
        return _explain(error, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build a container image for a workflow step and a target machine."
    )
    parser.add_argument(
        "-r",
        "--request",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON file with the request; - reads standard input",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would be built, and build nothing"
    )
    parser.add_argument(
        "--shell",
        action="store_true",
        help="open a shell in the environment in which Spack would work on the request",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file instead of config/configuration.py",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="copy the SIF there, under its own name; the folder is made if it is missing",
    )
    return parser


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(f"The request file {path} cannot be read: {error.strerror}.") from None


def _print_plan(request: BuildRequest, settings: LibrarySettings) -> int:
    made = pipeline.plan(request, settings)
    print(f"image_id: {made.image_id}\nfilename: {made.filename}\nidentity: {made.identity}")
    for warning in made.warnings:
        print(f"warning: {warning}")
    if made.spack_yaml:
        print(f"\n--- spack.yaml\n{made.spack_yaml}", end="")
    print(f"\n--- Dockerfile\n{made.dockerfile}", end="")
    return EXIT_OK


def _build(
    request: BuildRequest, settings: LibrarySettings, console: Console, output: Path | None
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
