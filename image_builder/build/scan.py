"""Lets the operator's scanner look at an image, before the image gets a name.

The scanner is a program of this machine. It gets the bill of materials, or an archive of the image,
and prints what it found in SARIF.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from image_builder.build.context import BuildContext, Built
from image_builder.docker import daemon
from image_builder.errors import BuildFailed, CicError, ErrorCode, ServiceError
from image_builder.host.process import Command
from image_builder.proof import sarif
from image_builder.proof.sarif import ScanReport, UnreadableReport
from image_builder.settings import SCAN_ARCHIVE, SCAN_SBOM

MAX_REPORT_BYTES = 64 * 1024**2
MOST_SHOWN = 20


class ScanFailed(ServiceError):
    """The scanner did not say what is in an image."""

    code = ErrorCode.SCAN_FAILED


def scanned(context: BuildContext, built: Built) -> Built:
    """Return the image with what the scanner found, where there is one.

    An image with findings that are too severe is removed, and `BuildFailed` raised. A scan that
    fails is a warning, but where severities decide: then it raises `ScanFailed`.
    """
    settings = context.settings.scan
    if not settings.command:
        return built
    context.cancel.check()
    context.observer.line("The image is scanned")
    try:
        with context.step("scan"):
            report = _report(context, built)
    except (CicError, UnreadableReport, OSError) as error:
        context.cancel.check()
        if settings.fail_on is None:
            context.warn(f"the image was not scanned: {error}")
            return built
        daemon.remove_image(built.image)
        raise ScanFailed(
            f"The image could not be scanned: {error}",
            hint="Nothing was published. The operator has to look at scan_cfg and its command.",
        ) from error
    _show(context, report)
    if settings.fail_on is not None and (severe := report.at_least(settings.fail_on)):
        daemon.remove_image(built.image)
        raise _vulnerable(severe, settings.fail_on)
    return dataclasses.replace(
        built,
        scan=report.summary(settings.fail_on),
        scan_document=report.document(settings.fail_on),
    )


def _report(context: BuildContext, built: Built) -> ScanReport:
    settings, folder = context.settings.scan, context.workspace.scratch / "scan"
    folder.mkdir()
    files = {}
    if settings.wants(SCAN_SBOM):
        if built.sbom is None:
            raise ScanFailed("it has no bill of materials")
        files[SCAN_SBOM] = folder / "sbom.spdx.json"
        files[SCAN_SBOM].write_text(built.sbom, "utf-8")
    if settings.wants(SCAN_ARCHIVE):
        files[SCAN_ARCHIVE] = folder / "image.tar"
        _save(context, built.image, files[SCAN_ARCHIVE])
    try:
        command = Command(
            name=f"the scanner {Path(settings.command[0]).name}",
            argv=tuple(_with_files(word, files) for word in settings.command),
            cwd=folder,
            timeout_s=settings.timeout_s,
            max_stdout_bytes=MAX_REPORT_BYTES,
        )
        ended = context.runner(
            command, on_line=context.log.line, cancel=context.cancel, capture_stdout=True
        )
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
    return sarif.read(ended.stdout)


def _save(context: BuildContext, image: str, path: Path) -> None:
    command = daemon.save_command(image, path, timeout_s=context.settings.scan.timeout_s)
    context.runner(command, cancel=context.cancel)


def _with_files(word: str, files: dict[str, Path]) -> str:
    for placeholder, path in files.items():
        word = word.replace(placeholder, str(path))
    return word


def _show(context: BuildContext, report: ScanReport) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items() if count)
    context.observer.line(f"{report.scanner} {report.version} found: {counts or 'nothing'}")
    for one in report.findings[:MOST_SHOWN]:
        context.observer.line(f"  {one.severity:8} {one.id} {one.where} {one.message}"[:300])
    if len(report.findings) > MOST_SHOWN:
        context.observer.line(f"  and {len(report.findings) - MOST_SHOWN} more")


def _vulnerable(severe: list[sarif.Finding], fail_on: str) -> BuildFailed:
    named = ", ".join(f"{one.id} ({one.severity})" for one in severe[:5])
    more = f" and {len(severe) - 5} more" if len(severe) > 5 else ""
    return BuildFailed(
        f"The scan found what this site does not publish, of severity {fail_on} or worse: "
        f"{named}{more}.",
        code=ErrorCode.VULNERABLE,
        step="scan",
        excerpt=[
            f"{one.severity} {one.id} {one.where} {one.message}" for one in severe[:MOST_SHOWN]
        ],
    )
