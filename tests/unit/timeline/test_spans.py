"""What a log tells of what ran when: packages, layers, and their document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_builder.build.context import step
from image_builder.build.log import BuildLog
from image_builder.errors import BuildFailed, Cancelled
from image_builder.spack.install_lines import LineReader
from image_builder.timeline import origins, spans
from image_builder.timeline.install_times import InstallTimes
from image_builder.timeline.spans import Span, Timeline, spans_of
from tests.conftest import DATA
from tests.support.recording import Heard

HASH = "abcdefghijklmnopqrstuvwxyz234567"
OTHER = "zyxwvutsrqponmlkjihgfedcba765432"
THIRD = "bcdefghijklmnopqrstuvwxyza345672"
FOURTH = "cdefghijklmnopqrstuvwxyzab456723"

OLDER = f"""\
#9 1.0 [+] /usr (external glibc-2.36-{THIRD})
#9 1.5 [+] /opt/spack/gcc-runtime-12.2.0-{THIRD}
#9 2.0 ==> Installing zlib-1.3.1-{HASH} [1/3]
#9 2.1 ==> Fetching file:///mirror/build_cache/x.spack
#9 2.2 ==> Extracting zlib-1.3.1-{HASH} from binary cache
#9 2.4 [+] /opt/spack/zlib-1.3.1-{HASH}
#9 3.0 ==> Installing fftw-3.3.10-{OTHER} [2/3]
#9 3.1 ==> No binary for fftw-3.3.10-{OTHER} found: installing from source
#9 4.0 ==> fftw: Executing phase: 'build'
#9 9.0 [+] /opt/spack/fftw-3.3.10-{OTHER}
#9 9.5 [+] /opt/spack/fftw-3.3.10-{OTHER}
#9 9.6 ==> Installing hdf5-1.14.5-{FOURTH} [3/3]"""
"""What Spack 0.19 to 1.1 write of an install that was ended before it was done."""

NEWER = """\
#12 1.4 [e] v2ombf5 glibc@2.36 /usr (0s)
#12 1.5 [ ] wz6nbda zlib@1.3.1 fetching from build cache (0s)
#12 1.6 [ ] 5no4vnu fftw@3.3.10 fetching from build cache (0s)
#12 1.7 [ ] 5no4vnu fftw@3.3.10 no binary available (0s)
#12 1.8 [ ] wz6nbda zlib@1.3.1 relocating (0s)
#12 2.0 [ ] 5no4vnu fftw@3.3.10 staging (1s)
#12 2.1 [+] wz6nbda zlib@1.3.1 /opt/spack/zlib (1s)
#12 2.2 [ ] abcdefg hdf5@1.14.5 staging
#12 5.0 [+] 5no4vnu fftw@3.3.10 /opt/spack/fftw (4s)
#12 6.0 [x] abcdefg hdf5@1.14.5 failed: /tmp/log (4s)"""
"""What Spack 1.2 writes of packages side by side."""


def installed(log: str) -> dict[str, tuple[float, float | None, str | None]]:
    """What the lines tell of packages, by the clock that stands in them."""
    reader, times, timeline = LineReader(["fftw", "zlib"]), InstallTimes(), Timeline()
    for line in log.splitlines():
        said = reader.read(line)
        if said is not None and (span := times.heard(said, reader.now_s or 0.0)):
            timeline.add(span)
    for span in times.stop(10.0):
        timeline.add(span)
    return {
        f"{span.name}@{span.version}": (span.began_s, span.ended_s, span.outcome)
        for span in spans_of(timeline.document())
    }


def test_older_releases_tell_where_a_package_came_from() -> None:
    assert installed(OLDER) == {
        "gcc-runtime@12.2.0": (1.5, 1.5, spans.PRESENT),
        "zlib@1.3.1": (2.0, 2.4, spans.CACHED),
        "fftw@3.3.10": (3.0, 9.0, spans.BUILT),
        "hdf5@1.14.5": (9.6, 10.0, spans.STOPPED),
    }


def test_a_package_that_is_installed_does_not_begin_again() -> None:
    lines = [
        f"==> Extracting zlib-1.3.1-{HASH} from binary cache",
        f"[+] /opt/zlib-1.3.1-{HASH}",
        f"==> Installing zlib-1.3.1-{HASH} [1/1]",  # Spack 1.1 says so late
    ]
    assert installed("\n".join(lines)) == {"zlib@1.3.1": (0.0, 0.0, spans.CACHED)}


def test_newer_releases_tell_it_of_packages_side_by_side() -> None:
    assert installed(NEWER) == {
        "zlib@1.3.1": (1.5, 2.1, spans.CACHED),
        "fftw@3.3.10": (1.6, 5.0, spans.BUILT),
        "hdf5@1.14.5": (2.2, 6.0, spans.FAILED),
    }


def test_two_packages_of_a_name_are_two() -> None:
    lines = [
        f"==> Installing py-setuptools-69.2.0-{HASH} [1/2]",
        f"==> Installing py-setuptools-59.4.0-{OTHER} [2/2]",
        f"[+] /opt/py-setuptools-59.4.0-{OTHER}",
    ]
    assert installed("\n".join(lines)) == {
        "py-setuptools@69.2.0": (0.0, 10.0, spans.STOPPED),
        "py-setuptools@59.4.0": (0.0, 0.0, spans.BUILT),
    }


BUILDX = """\
#1 [internal] load build definition from Dockerfile
#1 DONE 0.0s
#5 [base 1/2] FROM docker.io/library/debian
#5 CACHED
#7 [final 3/9] RUN apt-get install -y bc
#7 0.3 #8 [final 4/9] RUN faked
#6 [other 1/1] RUN side by side
#7 [final 3/9] RUN apt-get install -y bc
#7 DONE 4.5s
#8 [final 4/9] COPY a b
#8 DONE 0.0s
#9 [final 5/9] RUN false
#9 ERROR: process "/bin/sh -c false" did not complete successfully: exit code: 1
#10 exporting to image"""


def test_layers_have_times_but_for_those_that_took_none() -> None:
    heard, clock = Heard(), iter(range(1000))
    log = BuildLog(heard, 10**6, clock=lambda: float(next(clock)))
    log.begin("docker buildx build")
    for line in BUILDX.splitlines():
        log.line(line)
    log.end()
    log.line("#9 [final 5/9] RUN a program that writes as buildx does")
    log.line("#9 DONE 99.0s")
    assert [(span.name, span.began_s, span.ended_s, span.outcome) for span in heard.spans] == [
        ("[final 3/9] RUN apt-get install -y bc", 4.0, 8.0, spans.DONE),
        ("[final 5/9] RUN false", 11.0, 12.0, spans.FAILED),
        ("[other 1/1] RUN side by side", 6.0, 14.0, spans.STOPPED),
        ("exporting to image", 13.0, 14.0, spans.STOPPED),
    ]


def test_packages_are_told_when_they_begin_and_when_they_end() -> None:
    heard = Heard()
    log = BuildLog(heard, 10**6, clock=lambda: 5.0)
    log.follow_install(["zlib"])
    log.begin("docker buildx build")
    log.line(f"#9 1.0 ==> Installing zlib-1.3.1-{HASH} [1/1]")
    log.line(f"#9 2.0 [+] /opt/zlib-1.3.1-{HASH}")
    log.end()
    began = Span(kind=spans.PACKAGE, name="zlib", version="1.3.1", hash=HASH, began_s=5.0)
    assert heard.spans == [began, began.ended(5.0, spans.BUILT)]
    assert log.packages == {HASH: began.ended(5.0, spans.BUILT)}
    assert heard.done[-1] == (1, 1, "zlib@1.3.1")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, spans.DONE),
        (BuildFailed("no", step="x"), spans.FAILED),
        (Cancelled("no more"), spans.STOPPED),
    ],
)
def test_a_step_ends_however_its_block_ends(error: Exception | None, outcome: str) -> None:
    heard = Heard()
    try:
        with step(heard, "prepare"):
            if error is not None:
                raise error
    except (BuildFailed, Cancelled) as raised:
        assert raised is error
    assert [(span.name, span.outcome) for span in heard.spans] == [
        ("prepare", None),
        ("prepare", outcome),
    ]
    assert heard.spans[0].began_s == heard.spans[1].began_s


def test_a_timeline_is_bounded_and_its_ends_are_kept() -> None:
    timeline = Timeline()
    many = [
        Span(kind=spans.PACKAGE, name="p" * 999, version=str(number), began_s=float(number))
        for number in range(spans.MAX_SPANS + 10)
    ]
    for span in many:
        timeline.add(span)
    for span in many:
        timeline.add(span.ended(span.began_s + 1, spans.BUILT))
    document = json.loads(json.dumps(timeline.document()))
    kept = spans_of(document)
    assert (len(kept), document["left_out"]) == (spans.MAX_SPANS, 10)
    assert {span.outcome for span in kept} == {spans.BUILT}
    assert max(len(span.name) for span in kept) == spans.MAX_NAME
    assert len(json.dumps(document)) < 10**6


def lockfile() -> dict[str, Any]:
    path = next((DATA / "locks").glob("*openmpi-haswell.json"))
    lock: dict[str, Any] = json.loads(Path(path).read_text())
    return lock


def test_origins_are_kept_for_every_node_of_the_lockfile() -> None:
    lock = lockfile()
    nodes = lock["concrete_specs"]
    built, cached = [
        (node_hash, node) for node_hash, node in nodes.items() if not node.get("external")
    ][:2]
    told = [
        Span(kind=spans.PACKAGE, name=node["name"], hash=node_hash[:7], began_s=1.0).ended(
            at, outcome
        )
        for (node_hash, node), at, outcome in (
            (built, 61.04, spans.BUILT),
            (cached, 1.5, spans.CACHED),
        )
    ]
    text = origins.document(lock, told)
    assert text is not None
    known = origins.read(text)
    assert known[built[0]] == spans.BUILT and known[cached[0]] == spans.CACHED
    assert json.loads(text)["packages"][built[0]]["seconds"] == 60.0
    externals = {node_hash for node_hash, node in nodes.items() if node.get("external")}
    assert {known[one] for one in externals & set(known)} == {origins.EXTERNAL}
    assert set(known.values()) == {spans.BUILT, spans.CACHED, origins.EXTERNAL, origins.LAYER}


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"packages": []}', '{"packages": {"a": 1}}']
)
def test_a_document_that_is_none_tells_nothing(text: str | None) -> None:
    assert origins.read(text) == {}


def test_without_a_lockfile_there_are_no_origins() -> None:
    assert origins.document({}, []) is None
