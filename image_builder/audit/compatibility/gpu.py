"""Tells whether the machine's GPU and its driver run what the image's GPU runtime made. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from image_builder.audit.compatibility.mpi import as_request, major
from image_builder.audit.compatibility.rules import Finding, finding
from image_builder.docker import label_names
from image_builder.errors import InvalidRequest
from image_builder.launch.facts import NONE
from image_builder.request import gpu_drivers, mpi_gpu
from image_builder.request.facts import gpu_facts
from image_builder.request.machines import MachineFacts
from image_builder.spack.versions import numbers


def gpu_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what keeps the image's GPU code from running, or running well."""
    runtime = image.get(label_names.GPU_RUNTIME)
    if runtime is None:
        yield from _added_cuda(image, machine)
        return
    version = image.get(label_names.GPU_VERSION, "")
    host = _host_gpu(machine)
    variant = gpu_facts()["runtimes"].get(runtime, {}).get("variant")
    if host is None and machine.driver is None:
        needed = f"{_called(runtime)} {version}".strip()
        yield finding("gpu-unknown", image=needed, machine=machine.name)
    elif host is not None and host.variant != variant:
        yield finding(
            "gpu-other-runtime", image=_called(runtime), machine=machine.name, host=host.spec
        )
    else:
        yield from (_cuda if runtime == "cuda" else _rocm)(version, machine, host)
        yield from _gpu_arch(image, machine, host)


def _added_cuda(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what keeps CUDA code of wheels from running; a machine without NVIDIA's GPUs runs the rest.

    No GPU was asked for, so none of it keeps the image from running.
    """
    host, version = _host_gpu(machine), image.get(label_names.CUDA_RUNTIME)
    if host is not None and host.variant != gpu_facts()["runtimes"]["cuda"].get("variant"):
        return
    driver = machine.driver or _driver_of(host)
    minimal = gpu_drivers.minimal_driver(version) if version else None
    words = {"machine": machine.name}
    if driver and minimal and numbers(driver) < numbers(minimal):
        known = driver if machine.driver else (host.spec if host else "")
        yield finding(
            "cuda-of-wheels-too-new", **words, image=str(version), minimal=minimal, host=known
        )
    theirs = host.arch if host else None
    if theirs and theirs.isdigit() and not _has_code_for(image, int(theirs)):
        code = image.get(label_names.CUDA_CODE, NONE)
        yield finding("cuda-code-for-others", **words, image=code, host=theirs)


def _has_code_for(image: Mapping[str, str], theirs: int) -> bool:
    """Return whether machine code or PTX of an image runs on an architecture, as far as is known."""
    code = _numbers(image, label_names.CUDA_CODE)
    ptx = _numbers(image, label_names.CUDA_PTX)
    if not code and not ptx:
        return True
    return any(one // 10 == theirs // 10 and one <= theirs for one in code) or any(
        one <= theirs for one in ptx
    )


def _numbers(image: Mapping[str, str], label: str) -> list[int]:
    return [int(one) for one in image.get(label, "").split(",") if one.isdigit()]


def _cuda(version: str, machine: MachineFacts, host: mpi_gpu.Gpu | None) -> Iterator[Finding]:
    """Yield what the driver lacks: its version, or else the newest CUDA that the site serves."""
    minimal, own = gpu_drivers.minimal_driver(version), gpu_drivers.toolkit_driver(version)
    driver = machine.driver or _driver_of(host)
    words = {"image": version, "machine": machine.name, "own": own or ""}
    if driver is None or minimal is None:
        yield finding("cuda-driver-unknown", **words, minimal=minimal or "unknown")
        return
    served = host.spec if host else "none"
    known = f"has {driver}" if machine.driver else f"is known to serve {served}"
    if numbers(driver) < numbers(minimal):
        such_as = f" such as {host.spec!r}".replace("'", '"') if host else ""
        yield finding("cuda-driver-too-old", **words, minimal=minimal, known=known, such_as=such_as)
    elif own is not None and numbers(driver) < numbers(own):
        yield finding("cuda-minor-version", **words, known=known)


def _driver_of(host: mpi_gpu.Gpu | None) -> str | None:
    """Return the driver that came with the newest CUDA that a site is known to serve."""
    if host is None or not host.version:
        return None
    release = _with_minor(host.version.lstrip("="))
    return gpu_drivers.toolkit_driver(release) or gpu_drivers.minimal_driver(host.version)


def _rocm(version: str, machine: MachineFacts, host: mpi_gpu.Gpu | None) -> Iterator[Finding]:
    site = machine.driver or (host.version.lstrip("=") if host else "")
    knows = version and "." in site
    fits = gpu_drivers.rocm_fits(_with_minor(version), _with_minor(site)) if knows else None
    words = {"image": version, "machine": machine.name}
    if fits is False:
        yield finding("rocm-driver-too-far", **words, host=site)
    elif fits is None and major(version) and major(site) and major(version) != major(site):
        yield finding("rocm-driver-unknown", **words, host=f" (ROCm {site})")


def _gpu_arch(
    image: Mapping[str, str], machine: MachineFacts, host: mpi_gpu.Gpu | None
) -> Iterator[Finding]:
    """Yield what keeps the machine's GPU from running code for the image's architecture.

    CUDA code runs on later minor revisions of its major one; ROCm code on its own architecture
    alone.
    """
    ours, theirs = image.get(label_names.GPU_ARCH), host.arch if host else None
    if theirs and theirs.isdigit() and not _has_code_for(image, int(theirs)):
        code = image.get(label_names.CUDA_CODE, NONE)
        yield finding("gpu-other-architecture", image=code, machine=machine.name, host=theirs)
        return
    if not ours or not theirs or ours.partition(":")[0] == theirs.partition(":")[0]:
        return
    words = {"image": ours, "machine": machine.name, "host": theirs}
    if ours.isdigit() and theirs.isdigit() and int(ours) < int(theirs):
        if ours[:-1] != theirs[:-1]:
            yield finding("gpu-ptx-alone", **words)
        return
    yield finding("gpu-other-architecture", **words)


def _host_gpu(machine: MachineFacts) -> mpi_gpu.Gpu | None:
    try:
        return mpi_gpu.gpu_of(as_request(machine))
    except InvalidRequest:
        return None


def _with_minor(version: str) -> str:
    return version if "." in version else f"{version}.0"


def _called(runtime: str) -> str:
    return {"cuda": "CUDA", "hip": "ROCm"}.get(runtime, runtime)
