"""Will an image run on a machine? Its labels are held against what is known of the machine. Pure.

Two MPIs matter: the one in the image and the machine's own, which starts the processes and reaches
the network. They have to be of one family (Open MPI, or MPICH and its kin); of Open MPI, of one
major release.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import archspec.cpu

from image_builder.audit.run_command import PROGRAM, run_command
from image_builder.errors import InvalidRequest
from image_builder.recipe import labels
from image_builder.request import cpu_targets, gpu_drivers, host_cpu, mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.machines import MachineFacts

ERROR, WARNING = "error", "warning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to know before the image is used. `level` is `error` (it will not work) or
    `warning`.
    """

    level: str
    subject: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.message}" + (f" {self.hint}" if self.hint else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the check found, and the command line that runs the image there."""

    findings: tuple[Finding, ...]
    run_command: str

    @property
    def ok(self) -> bool:
        return not any(finding.level == ERROR for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "run_command": self.run_command,
        }


def check(
    image: Mapping[str, str],
    machine: MachineFacts,
    *,
    file: str = "image.sif",
    program: str = PROGRAM,
) -> Report:
    """Whether an image with the labels `image` works on `machine`.

    `file` is the SIF's name, or the image's for docker, and `program` what to run in it.
    """
    findings = [
        *_platform(image, machine),
        *_cpu(image, machine),
        *_mpi(image, machine),
        *_gpu(image, machine),
    ]
    return Report(
        findings=tuple(findings),
        run_command=run_command(image, machine, file=file, program=program),
    )


def _platform(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    platform = image.get(labels.PLATFORM)
    if platform is None:
        yield Finding(
            level=WARNING,
            subject="labels",
            message="The image does not say what it was built for.",
            hint="Only images that this service built have such labels.",
        )
    elif platform != machine.platform:
        yield Finding(
            level=ERROR,
            subject="platform",
            message=f"The image is for {platform}, and {machine.name} is {machine.platform}.",
            hint=f'Build it with "platform": "{machine.platform}".',
        )


def _cpu(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what keeps the machine's CPU from executing what the image holds."""
    target = archspec.cpu.TARGETS.get(image.get(labels.TARGET, ""))
    if target is None or image.get(labels.PLATFORM) not in (None, machine.platform):
        return
    host = _host_cpu(machine)
    if host is None:
        if target.name != target.family.name:
            yield Finding(
                level=WARNING,
                subject="cpu",
                message=f"The image needs a {target.name}; the CPU of {machine.name} is not known.",
            )
    elif not host_cpu.can_execute(host, target.name):
        missing = host_cpu.missing_features(host, target.name)
        yield Finding(
            level=ERROR,
            subject="cpu",
            message=f"The image is built for {target.name}, and the CPU of {machine.name} is {host}"
            + (f", which has no {', '.join(missing[:5])}." if missing else "."),
            hint=f'Build it with "architecture": "{host}".',
        )


def _host_cpu(machine: MachineFacts) -> str | None:
    if machine.architecture is None:
        return None
    name = cpu_targets.canonical_name(machine.architecture.strip().lower())
    return name if name in archspec.cpu.TARGETS else None


def _mpi(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    family = image.get(labels.MPI_FAMILY)
    if family is None:
        return
    ours = f"{image.get(labels.MPI_NAME, family)} {image.get(labels.MPI_VERSION, '')}".strip()
    host = _host_mpi(machine)
    if host is None:
        yield Finding(
            level=WARNING,
            subject="mpi",
            message=f"The image has {ours}; the MPI of {machine.name} is not known.",
        )
    elif host.family != family:
        yield Finding(
            level=ERROR,
            subject="mpi",
            message=f"The image has {ours}, and {machine.name} has {host.spec}: programs of one do not run "
            "with the other.",
            hint=f'Build it with "mpi": "{_major(host)}".',
        )
    elif (
        family == "openmpi"
        and image.get(labels.MPI_NAME) == host.name
        and _differ(image.get(labels.MPI_VERSION), host.version)
    ):
        yield Finding(
            level=ERROR,
            subject="mpi",
            message=f"The image has {ours}, and {machine.name} has {host.spec}: another major release.",
            hint=f'Build it with "mpi": "{_major(host)}".',
        )


def _host_mpi(machine: MachineFacts) -> mpi_gpu.Mpi | None:
    try:
        return mpi_gpu.mpi_of(_as_request(machine), None)
    except InvalidRequest:
        return None


def _gpu(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    runtime = image.get(labels.GPU_RUNTIME)
    if runtime is None:
        return
    version = image.get(labels.GPU_VERSION, "")
    host = _host_gpu(machine)
    if host is None and machine.driver is None:
        yield Finding(
            level=ERROR,
            subject="gpu",
            message=f"The image needs {_called(runtime)} {version}, and {machine.name} has no GPU that is "
            "known of.",
            hint='Build it without "gpu", or say which runtime the machine has.',
        )
    elif host is not None and host.variant != mpi_gpu.gpu_facts()["runtimes"].get(runtime, {}).get(
        "variant"
    ):
        yield Finding(
            level=ERROR,
            subject="gpu",
            message=f"The image needs {_called(runtime)}, and {machine.name} has {host.spec}.",
            hint=f'Build it with "gpu": "{host.spec}".',
        )
    elif runtime == "cuda":
        yield from _cuda(version, machine, host)
        yield from _gpu_arch(image, machine, host)
    else:
        yield from _rocm(version, machine, host)
        yield from _gpu_arch(image, machine, host)


def _cuda(version: str, machine: MachineFacts, host: mpi_gpu.Gpu | None) -> Iterator[Finding]:
    """Against the driver's version, or else against the newest CUDA that the site is known to
    serve.
    """
    minimal, own = gpu_drivers.minimal_driver(version), gpu_drivers.toolkit_driver(version)
    driver = machine.driver
    if driver is None and host is not None and host.version:
        driver = gpu_drivers.toolkit_driver(
            _with_minor(host.version.lstrip("="))
        ) or gpu_drivers.minimal_driver(host.version)
    if driver is None or minimal is None:
        yield Finding(
            level=WARNING,
            subject="gpu",
            message=f"CUDA {version} needs NVIDIA driver {minimal or 'unknown'}; "
            f"the driver of {machine.name} is not known.",
        )
        return
    known = (
        f"has {driver}" if machine.driver else f"is known to serve {host.spec if host else 'none'}"
    )
    if gpu_drivers.version(driver) < gpu_drivers.version(minimal):
        yield Finding(
            level=ERROR,
            subject="gpu",
            message=f"CUDA {version} needs NVIDIA driver {minimal} or newer, and {machine.name} {known}.",
            hint='Build it with an older "gpu"' + (f' such as "{host.spec}".' if host else "."),
        )
    elif own is not None and gpu_drivers.version(driver) < gpu_drivers.version(own):
        yield Finding(
            level=WARNING,
            subject="gpu",
            message=f"CUDA {version} came with NVIDIA driver {own}, and {machine.name} {known}: programs run "
            "by minor version compatibility, but cannot compile PTX code at run time.",
        )


def _rocm(version: str, machine: MachineFacts, host: mpi_gpu.Gpu | None) -> Iterator[Finding]:
    site = machine.driver or (host.version.lstrip("=") if host else "")
    fits = (
        gpu_drivers.rocm_fits(_with_minor(version), _with_minor(site))
        if version and "." in site
        else None
    )
    if fits is False:
        yield Finding(
            level=ERROR,
            subject="gpu",
            message=f"ROCm {version} is not supported with the driver of ROCm {site} on {machine.name}.",
            hint=f'Build it with "gpu": "hip@{site}".',
        )
    elif fits is None and _differ(version, site):
        yield Finding(
            level=WARNING,
            subject="gpu",
            message=f"It is not known whether ROCm {version} works with the driver of {machine.name}"
            + (f" (ROCm {site})." if site else "."),
        )


def _gpu_arch(
    image: Mapping[str, str], machine: MachineFacts, host: mpi_gpu.Gpu | None
) -> Iterator[Finding]:
    """CUDA code runs on later minor revisions of its major one; ROCm code on its own architecture
    alone.
    """
    ours, theirs = image.get(labels.GPU_ARCH), host.arch if host else None
    if not ours or not theirs or ours == theirs:
        return
    if ours.isdigit() and theirs.isdigit():
        if ours[:-1] == theirs[:-1] and int(ours) < int(theirs):
            return
        if int(ours) < int(theirs):
            yield Finding(
                level=WARNING,
                subject="gpu",
                message=f"The image is built for sm_{ours}: on sm_{theirs} only programs that carry PTX "
                "code run.",
            )
            return
    yield Finding(
        level=ERROR,
        subject="gpu",
        message=f"The image is built for GPU architecture {ours}, and {machine.name} has {theirs}.",
        hint=f'Build it with "gpu_arch": "{theirs}".',
    )


def _host_gpu(machine: MachineFacts) -> mpi_gpu.Gpu | None:
    try:
        return mpi_gpu.gpu_of(_as_request(machine))
    except InvalidRequest:
        return None


def _as_request(machine: MachineFacts) -> Machine:
    """The machine as a request names it, so that names mean the same here and there."""
    return Machine.model_construct(
        platform=machine.platform,
        architecture=None,
        container_engine="singularity",
        mpi=machine.mpi,
        gpu=machine.gpu,
        gpu_arch=machine.gpu_arch,
    )


def _major(mpi: mpi_gpu.Mpi) -> str:
    major = mpi.version.lstrip("=").split(".")[0]
    return f"{mpi.name}@{major}" if major.isdigit() else mpi.name


def _differ(one: str | None, other: str | None) -> bool:
    """Whether two versions have different majors; where one is not known, nothing is said."""
    first, second = (one or "").lstrip("=").split(".")[0], (other or "").lstrip("=").split(".")[0]
    return bool(first and second and first != second)


def _with_minor(version: str) -> str:
    return version if "." in version else f"{version}.0"


def _called(runtime: str) -> str:
    return {"cuda": "CUDA", "hip": "ROCm"}.get(runtime, runtime)
