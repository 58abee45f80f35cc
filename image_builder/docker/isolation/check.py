"""Tests whether build steps are kept from this host's services and are limited.

A container on the network that build steps have tries to reach a listener of ours. What it finds
holds for build steps of Docker's own builder; of other builders nothing is known from here.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from image_builder.docker import buildx, container, daemon
from image_builder.docker.isolation import cgroup
from image_builder.errors import CicError, Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run
from image_builder.settings import BuildSettings

REMEMBERED_S = 600.0
FIRST_WITH_LIMITS = 23
"""The version of Docker whose builder applies `--cgroup-parent`; 20.10 ignores it."""
METADATA = "169.254.169.254:80"
WORD_BYTES = 32
_SETTLE_S = 0.2

_PROGRAM = """
for target; do
    said=$(timeout 3 bash -c 'exec 3<>"/dev/tcp/$1/$2" && { [ "$2" = 80 ] || head -c 64 <&3; }' \\
        probe "${target%:*}" "${target##*:}" 2>/dev/null) && echo "reached $target $said"
done
echo done
"""
"""For bash, which knows the network: every base image has it."""


_remembered: dict[tuple[str, str | None], tuple[float, tuple[Misconfigured, ...]]] = {}


def problems(
    settings: BuildSettings, *, base_image: str | None, cancel: CancelToken | None = None
) -> list[Misconfigured]:
    """Return what build steps can do that they should not, or why that is not known.

    It is empty when all is well. Raises what `cancel` does.
    """
    cancel = cancel or CancelToken()
    return [
        problem
        for problem in (_limits_problem(settings), _network_problem(settings, base_image, cancel))
        if problem is not None
    ]


def require(settings: BuildSettings, *, base_image: str | None, cancel: CancelToken) -> None:
    """Raise what `problems` finds, if the settings require isolation.

    What was found holds for ten minutes.
    """
    if settings.require_isolation:
        weaknesses = _recent_problems(settings, base_image, cancel)
        if weaknesses:
            raise Misconfigured(
                "Nothing is built here while build steps are not isolated: "
                + " ".join(error.message for error in weaknesses),
                hint=weaknesses[0].hint,
            )


def _recent_problems(
    settings: BuildSettings, base_image: str | None, cancel: CancelToken
) -> tuple[Misconfigured, ...]:
    key = (settings.model_dump_json(), base_image)
    now = time.monotonic()
    known = _remembered.get(key)
    if known is None or now - known[0] > REMEMBERED_S:
        for old in [old for old, entry in _remembered.items() if now - entry[0] > REMEMBERED_S]:
            _remembered.pop(old, None)
        known = now, tuple(problems(settings, base_image=base_image, cancel=cancel))
        _remembered[key] = known
    return known[1]


def _limits_problem(settings: BuildSettings) -> Misconfigured | None:
    if (problem := cgroup.problem(settings)) is not None:
        return problem
    try:
        version = daemon.server_version()
    except CicError as error:
        return Misconfigured(f"Whether build steps have limits is not known: {error}")
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) >= FIRST_WITH_LIMITS:
        return None
    return Misconfigured(
        f"Docker {version} holds build steps to no limits.",
        hint=f"Version {FIRST_WITH_LIMITS} and later ones do.",
    )


def _network_problem(
    settings: BuildSettings, base_image: str | None, cancel: CancelToken
) -> Misconfigured | None:
    try:
        if not buildx.sees_local_images(settings, functools.partial(run, cancel=cancel)):
            return Misconfigured(
                "What build steps can reach and use is not known for this buildx_builder.",
                hint="Only Docker's own builder can be looked at.",
            )
        if base_image is None:
            return Misconfigured(
                "What build steps can reach is not known: there is no base image for this platform."
            )
        reached = _reached(base_image, cancel)
    except (CicError, OSError) as error:
        cancel.check()
        return Misconfigured(f"What build steps can reach is not known: {error}")
    if not reached:
        return None
    return Misconfigured(
        f"Build steps can reach this host's services: {', '.join(reached)}.",
        hint="As root: python3 isolate_builds.py apply.",
    )


def _reached(base_image: str, cancel: CancelToken) -> list[str]:
    """Return which addresses of this host a container on the default bridge can reach.

    The metadata address is one of those that are tried.
    """
    word = secrets.token_hex(WORD_BYTES // 2)
    with (
        _listening(daemon.default_bridge().gateway, word) as inner,
        _listening(_own_address(), word) as outer,
    ):
        targets = [inner, outer, METADATA]
        said = container.run_probe(
            base_image,
            None,
            ("bash", "-c", _PROGRAM, "probe", *targets),
            network="bridge",
            cancel=cancel,
        ).splitlines()
    if "done" not in said:
        raise Misconfigured("the base image's bash did not answer")
    lines = [line.split() for line in said if line.startswith("reached ")]
    return [line[1] for line in lines if line[1] == METADATA or line[2:] == [word]]


def _own_address() -> str:
    """Return this host's address towards the world; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def _listening(address: str, word: str) -> Iterator[str]:
    """Listen on an address of this host, answer `word` to every client, and yield `host:port`."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(_SETTLE_S)
        done = threading.Event()

        def answer() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(word.encode())

        thread = threading.Thread(target=answer, name="isolation-probe", daemon=True)
        thread.start()
        try:
            yield f"{address}:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join()
