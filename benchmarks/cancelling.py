"""Measure how long a cancelled build's processes and its slot are held: `python3 -m benchmarks.cancelling`.

Starts a service with one slot. A build that would go on for long is cancelled while another one
waits; the time ends when nothing of the first is left and the other one has begun.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import Row, show
from image_builder.docker import container, daemon
from tests.support.daemon_images import remove_images
from tests.support.processes import command_lines, sleepers
from tests.support.silent_registry import silent_registry
from tests.support.site import MACHINE, Service, Site, make_site, running_service

GOAL_S = 5.0
WAIT_S = 120.0
ROUNDS = 3
ENDLESS = """#!/usr/bin/python3
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: time.sleep(1)
"""
"""A shell that does not end."""


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the longest of some cancels at each place where a build may be."""
    return [
        _row("a step of a description", _of_steps),
        _row("a look at an image whose shell never ends", _of_looks),
        _row("a push to a registry that says nothing", _of_pushes),
    ]


def _row(where: str, measure: Callable[[Path], list[float]]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(Path(folder))
    what = f"from a cancel until slot and processes are free, in {where}"
    return Row(what, max(taken), GOAL_S, " s", note=f"the longest of {len(taken)}")


def _of_steps(folder: Path) -> list[float]:
    sleep_s = f"600.{secrets.randbelow(10**9):09}"
    site = _site(folder, {"post_inst.sh": f"#!/bin/sh\nsleep {sleep_s}\n"})
    return _measured(site, lambda: bool(sleepers(sleep_s)))


def _of_looks(folder: Path) -> list[float]:
    script = f"# {secrets.token_hex()}\nchmod 755 sh && cp sh /x && mv /x /bin/sh\n"
    files = {"eflows4hpc.yaml": "smoke: [echo, fine]\n", "sh": ENDLESS, "post_inst.sh": script}
    before = {name for name, _ in daemon.labelled_containers(container.LABEL)}
    return _measured(
        _site(folder, files),
        lambda: bool({name for name, _ in daemon.labelled_containers(container.LABEL)} - before),
    )


def _of_pushes(folder: Path) -> list[float]:
    with silent_registry() as (host, _):
        site = _site(folder, {}).with_environ(
            CIC_REGISTRY_URL=host, CIC_REGISTRY_IMAGES_PREFIX=f"{host}/group/"
        )
        return _measured(
            site,
            lambda: any(
                b"push" in arguments and host.encode() in b" ".join(arguments)
                for arguments in command_lines()
            ),
            push=True,
        )


def _site(folder: Path, files: dict[str, str]) -> Site:
    site = make_site(folder / "site").with_environ(CIC_BUILD_MAX_CONCURRENT_BUILDS="1")
    site.add_step("demo", "held", {"eflows4hpc.yaml": "apt: []\n"} | files)
    site.add_step("demo", "next", {"eflows4hpc.yaml": "apt: []\n"})
    return site


def _measured(site: Site, is_there: Callable[[], bool], *, push: bool = False) -> list[float]:
    try:
        with running_service(site) as service:
            return [_seconds_to_end(service, is_there, push=push) for _ in range(ROUNDS)]
    finally:
        remove_images(site)


def _seconds_to_end(service: Service, is_there: Callable[[], bool], *, push: bool) -> float:
    held = _submitted(service, "held", push=push)
    _wait_for(is_there)
    waiting = _submitted(service, "next", push=False)
    begun = time.monotonic()
    assert service.call("POST", f"/build/{held}/cancel").status_code == 200
    _wait_for(lambda: not is_there() and _status(service, waiting) != "PENDING")
    taken = time.monotonic() - begun
    assert service.wait_for(waiting)["status"] == "FINISHED"
    return taken


def _submitted(service: Service, step: str, *, push: bool) -> str:
    asked = {
        "machine": MACHINE | {"container_engine": "docker"},
        "workflow": "demo",
        "step_id": step,
        "push": push,
        "force": True,
    }
    return service.submit(asked)


def _status(service: Service, build_id: str) -> str:
    return str(service.call("GET", f"/build/{build_id}").json()["status"])


def _wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end, "that did not happen"
        time.sleep(0.05)


if __name__ == "__main__":
    main()
