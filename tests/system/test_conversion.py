"""Streaming an image into a SIF, held against what `apptainer build` makes of the same image. All
parts are real, but for the shims that stand for a docker or tar2sqfs that fails in the middle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker import leftovers
from image_builder.errors import BuildFailed, Cancelled, CicError, ErrorCode, ServiceError
from image_builder.host.cancellation import CancelToken
from image_builder.settings import BuildSettings
from image_builder.sif import convert as sif_convert
from image_builder.sif import docker_export, format
from image_builder.store import folder as store_folder
from image_builder.store import record
from tests.support.site import BASE_IMAGE, PROJECT

pytestmark = pytest.mark.system

RUNNABLE = r"""
FROM %s
ENV A="x y" B='q"$HOME' EMPTY= PATH=/opt/x:$PATH
LABEL one="1 2" two="a\"b & <c>"
WORKDIR /work dir
RUN touch /etc/kept && chmod 4751 /etc/kept && ln /etc/kept /opt/hard && mkfifo /opt/fifo && rm -f /etc/hostname \
 && cp /bin/true /opt/capable && truncate --size 20M /opt/sparse && chown 70000:3000000000 /opt/sparse \
 && python3 -c "import os; \
os.setxattr('/opt/capable', 'security.capability', bytes.fromhex('0100000200040000' + '00' * 12))"
ENTRYPOINT ["/bin/sh", "-c", "echo run: \"$@\"; echo \"$A|$B|$EMPTY|$PATH\"; pwd", "x"]
CMD ["a b", "c"]
"""

VARYING = "org.label-schema.build-date"


@pytest.fixture(scope="module")
def odd_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with every kind of file, and with files where Docker puts its own."""
    archive = tmp_path_factory.mktemp("odd") / "odd.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as target:
        for member, content in odd_members():
            member.mtime = 1_600_000_000
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    name = f"cic-test-conversion:{uuid.uuid4().hex}"
    subprocess.run(["docker", "import", str(archive), name], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


def odd_members() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    def member(
        name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, **fields: Any
    ) -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.mode = kind, mode
        for key, value in fields.items():
            setattr(made, key, value)
        return made

    for name in ("bin", "dev", "etc", "odd", "odd/deep"):
        yield member(name, tarfile.DIRTYPE, 0o755), b""
    yield member("tmp", tarfile.DIRTYPE, 0o1777), b""
    yield member("etc/hostname", mode=0o640), b"own\n"
    yield member("etc/hosts", mode=0o600), b"192.0.2.1 own\n"
    yield member("etc/resolv.conf", tarfile.SYMTYPE, linkname="/run/resolv.conf"), b""
    yield member("etc/mtab", tarfile.SYMTYPE, linkname="../proc/self/mounts"), b""
    yield member("dev/console", tarfile.CHRTYPE, 0o600, devmajor=5, devminor=1), b""
    yield member("dev/shm", tarfile.DIRTYPE, 0o1770), b""
    yield member("odd/setuid", mode=0o4755), b"x"
    yield member("odd/sticky", tarfile.DIRTYPE, 0o3777), b""
    yield member("odd/large-id", uid=3_000_000_000, gid=3_000_000_001), b"x"
    yield member("odd/first"), b"linked" * 1000
    yield member("odd/second", tarfile.LNKTYPE, linkname="odd/first"), b""
    yield member("odd/symbolic", tarfile.SYMTYPE, linkname="first"), b""
    yield member("odd/fifo", tarfile.FIFOTYPE), b""
    yield member("odd/block", tarfile.BLKTYPE, devmajor=8, devminor=1), b""
    yield member("odd/" + "l" * 200), b"long"
    yield member("odd/ünï \n\t\"'\\x"), b"odd"
    yield member("odd/latin\udce9"), b"not UTF-8"
    yield member("odd/" + "k" * 90, tarfile.SYMTYPE, linkname="t" * 190), b""
    yield member("odd/zeros"), bytes(5 * 1024**2)
    yield member("odd/noise"), os.urandom(3 * 1024**2)
    yield member("odd/empty"), b""
    path = "odd/deep"
    for _ in range(6):
        path += "/" + "d" * 60
        yield member(path, tarfile.DIRTYPE, 0o700), b""
    yield member(f"{path}/file"), b"1"


@pytest.fixture(scope="module")
def runnable_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that runs and has all kinds of configuration."""
    name = f"cic-test-conversion:{uuid.uuid4().hex}"
    subprocess.run(
        ["docker", "buildx", "build", "--builder=default", f"--tag={name}", "-"],
        check=True,
        input=(RUNNABLE % BASE_IMAGE).encode(),
        capture_output=True,
    )
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def runnable(runnable_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runnable") / "streamed.sif"
    convert(runnable_image, path)
    return path


@pytest.fixture(scope="module")
def built_runnable(runnable_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(runnable_image, tmp_path_factory.mktemp("runnable") / "built.sif")


def site(**keys: Any) -> BuildSettings:
    return BuildSettings(
        tmp_folder=Path("/nonexistent"), builder_home=Path("/nonexistent"), base_image="x", **keys
    )


def convert(
    image: str, path: Path, platform: str = "linux/amd64", **keys: Any
) -> sif_convert.Conversion:
    """Convert by streaming, and by nothing else."""
    lines: list[str] = []
    made = sif_convert.convert(
        image, path, platform=platform, settings=site(**keys), on_line=lines.append
    )
    assert made.method == sif_convert.STREAM, lines
    assert (made.sha256, made.size_bytes) == (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        path.stat().st_size,
    )
    return made


def built(image: str, path: Path) -> Path:
    """What Apptainer itself makes of an image."""
    subprocess.run(
        [
            sif_convert.program(),
            "build",
            "--mksquashfs-args",
            "-comp zstd -Xcompression-level 1",
            str(path),
            f"docker-daemon:{image}",
        ],
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "APPTAINER_CACHEDIR": str(path.parent),
            "APPTAINER_TMPDIR": str(path.parent),
        },
    )
    return path


@dataclasses.dataclass(frozen=True)
class File:
    """What counts of a file. `body` is the digest of what is in it, or where it points."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    body: str
    device: tuple[int, int]
    attributes: tuple[tuple[str, str], ...]


def tree(path: Path) -> dict[str, File]:
    """Every file of a SIF by its path."""
    primary = format.read(path).primary
    squashfs = path.with_suffix(".squashfs")
    with path.open("rb") as source, squashfs.open("wb") as target:
        source.seek(primary.offset)
        shutil.copyfileobj(source, target)
    archive = path.with_suffix(".tar")
    with archive.open("wb") as target:
        subprocess.run(
            ["sqfs2tar", "--root-becomes", ".", str(squashfs)], check=True, stdout=target
        )
    with tarfile.open(archive) as members:
        return {member.name.removeprefix("./"): file_of(members, member) for member in members}


def file_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    body = member.linkname
    if member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        body = hashlib.sha256(content.read()).hexdigest()
    attributes = sorted((key, value) for key, value in member.pax_headers.items() if "xattr" in key)
    return File(
        member.type,
        member.mode,
        (member.uid, member.gid),
        body,
        (member.devmajor, member.devminor),
        tuple(attributes),
    )


def differences(streamed: Path, made: Path) -> dict[str, tuple[File | None, File | None]]:
    """What is not the same, but for the labels, which hold the time of the build."""
    left, right = tree(streamed), tree(made)
    assert len(left) > 40
    return {
        name: (left.get(name), right.get(name))
        for name in left.keys() | right.keys()
        if left.get(name) != right.get(name) and name != ".singularity.d/labels.json"
    }


def object_of(path: Path, name: str) -> Any:
    return next(json.loads(item.content) for item in format.objects(path) if item.name == name)


def without_date(value: Any) -> Any:
    """JSON without the label that tells when it was made."""
    if isinstance(value, dict):
        return {key: without_date(item) for key, item in value.items() if key != VARYING}
    return value


def inspect(path: Path) -> Any:
    return json.loads(apptainer("inspect", "--all", "--json", str(path)))


def apptainer(*arguments: str) -> str:
    return subprocess.run(
        [sif_convert.program(), *arguments],
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    ).stdout


def left_behind(image: str) -> tuple[list[str], list[str]]:
    """Containers and names of an image's conversions that are still there."""
    containers = subprocess.run(
        [
            "docker",
            "ps",
            "--all",
            "--quiet",
            f"--filter=label={docker_export.REPOSITORY}",
            f"--filter=ancestor={image}",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    names = subprocess.run(
        ["docker", "inspect", "--format={{range .RepoTags}}{{println .}}{{end}}", image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return containers.stdout.split(), [
        name for name in names if name.startswith(docker_export.REPOSITORY)
    ]


# --- the same as Apptainer's own


def test_every_kind_of_file_comes_out_as_apptainer_has_it(odd_image: str, tmp_path: Path) -> None:
    convert(odd_image, tmp_path / "streamed.sif")
    assert differences(tmp_path / "streamed.sif", built(odd_image, tmp_path / "built.sif")) == {}
    files = tree(tmp_path / "streamed.sif")
    assert files["etc/hostname"].mode == 0o640 and files["dev/console"].kind == tarfile.CHRTYPE
    assert ".dockerenv" not in files and "dev/pts" not in files and "odd/latin\udce9" in files


def test_a_whole_system_comes_out_as_apptainer_has_it(runnable: Path, built_runnable: Path) -> None:
    assert differences(runnable, built_runnable) == {}
    files = tree(runnable)
    assert (
        files["opt/capable"].attributes and "etc/hostname" not in files and "etc/mtab" not in files
    )
    assert files["opt/sparse"].owner == (70000, 3_000_000_000)


def test_inspect_tells_the_same(runnable: Path, built_runnable: Path) -> None:
    told = inspect(runnable)
    assert without_date(told) == without_date(inspect(built_runnable))
    labels = told["data"]["attributes"]["labels"]
    assert labels["one"] == "1 2" and labels["two"] == 'a"b & <c>' and VARYING in labels


def test_the_other_objects_are_the_same(runnable: Path, built_runnable: Path) -> None:
    streamed, made = format.read(runnable), format.read(built_runnable)
    assert [
        (item.data_type, item.name, item.group, item.link) for item in streamed.descriptors
    ] == [(item.data_type, item.name, item.group, item.link) for item in made.descriptors]
    assert format.objects(runnable)[0] == format.objects(built_runnable)[0]
    assert object_of(runnable, "oci-config.json") == object_of(built_runnable, "oci-config.json")
    assert without_date(object_of(runnable, "inspect-metadata.json")) == without_date(
        object_of(built_runnable, "inspect-metadata.json")
    )


@pytest.mark.parametrize("arguments", [(), ("one two", "three", "")])
def test_a_run_prints_the_same(
    runnable: Path, built_runnable: Path, arguments: tuple[str, ...]
) -> None:
    printed = apptainer("run", "--userns", "--cleanenv", str(runnable), *arguments)
    assert printed == apptainer("run", "--userns", "--cleanenv", str(built_runnable), *arguments)
    assert printed.startswith("run: " + (" ".join(arguments[:1]) or "a b c"))


def test_the_environment_is_the_same(runnable: Path, built_runnable: Path) -> None:
    def environment(path: Path) -> set[str]:
        lines = apptainer("exec", "--userns", "--cleanenv", str(path), "env").splitlines()
        return {line.replace(path.name, "SIF").replace(str(path.parent), "") for line in lines}

    assert environment(runnable) == environment(built_runnable)
    assert "A=x y" in environment(runnable)


def test_apptainer_finds_nothing_wrong_with_the_file(runnable: Path) -> None:
    assert "Primary Architecture: amd64" in " ".join(
        apptainer("sif", "header", str(runnable)).split()
    )
    assert "Squashfs/*System/amd64" in apptainer("sif", "list", str(runnable))


@pytest.mark.parametrize(("compressor", "level"), [("gzip", 1), ("xz", None)])
def test_other_compressors_hold_the_same_files(
    odd_image: str, tmp_path: Path, compressor: str, level: int | None
) -> None:
    convert(
        odd_image, tmp_path / "other.sif", sif_compressor=compressor, sif_compression_level=level
    )
    convert(odd_image, tmp_path / "default.sif")
    assert differences(tmp_path / "other.sif", tmp_path / "default.sif") == {}


def test_an_image_for_another_platform_says_so_and_runs(arm64_base: str, tmp_path: Path) -> None:
    path = tmp_path / "arm64.sif"
    convert(arm64_base, path, "linux/arm64")
    assert format.read(path).architecture == "arm64"
    assert apptainer("exec", "--userns", str(path), "uname", "-m") == "aarch64\n"
    assert "build-arch: arm64" in apptainer("inspect", str(path))


def test_an_image_is_found_by_its_id_too(odd_image: str, tmp_path: Path) -> None:
    image_id = subprocess.run(
        ["docker", "inspect", "--format={{.Id}}", odd_image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    convert(image_id, tmp_path / "by-id.sif")
    assert image_id in apptainer("inspect", "--deffile", str(tmp_path / "by-id.sif"))


def test_an_image_without_a_name_is_still_there_afterwards(tmp_path: Path) -> None:
    image_id = (
        subprocess.run(
            ["docker", "import", "-"],
            check=True,
            capture_output=True,
            text=False,
            input=one_file("a"),
        )
        .stdout.decode()
        .strip()
    )
    try:
        convert(image_id, tmp_path / "nameless.sif")
        subprocess.run(["docker", "inspect", image_id], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rmi", "--force", image_id], check=True, capture_output=True)


def one_file(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return buffer.getvalue()


def test_a_converted_image_goes_into_the_store(odd_image: str, tmp_path: Path) -> None:
    store = store_folder.ImageStore(tmp_path / "store")
    with store.temporary_path() as temporary:
        made = convert(odd_image, temporary)
        store.publish(
            temporary,
            record.ImageRecord(
                identity="a" * 64, image_id=odd_image, platform="linux/amd64", filename="odd.sif"
            ),
            sha256=made.sha256,
        )
    found = store.by_name("odd.sif")
    assert found is not None and found.size_bytes == made.size_bytes
    format.verify(store.path_of(made.sha256), platform="linux/amd64")


# --- what is not streamed, and what fails


@contextlib.contextmanager
def image_of(entries: list[tuple[str, bytes, str]]) -> Iterator[str]:
    """An image of these files (name, type, where it points) and no others."""
    archive, name = io.BytesIO(), f"cic-test-conversion:{uuid.uuid4().hex}"
    with tarfile.open(fileobj=archive, mode="w") as target:
        for path, kind, link in entries:
            member = tarfile.TarInfo(path)
            member.type, member.linkname, member.mode = kind, link, 0o755
            target.addfile(member)
    subprocess.run(
        ["docker", "import", "-", name], input=archive.getvalue(), check=True, capture_output=True
    )
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


def converted_or_refused(image: str, path: Path, **keys: Any) -> tuple[str, list[str]]:
    """How an image was converted, or the code of its refusal; and what was said."""
    lines: list[str] = []
    try:
        made = sif_convert.convert(
            image, path, platform="linux/amd64", settings=site(**keys), on_line=lines.append
        )
        return made.method, lines
    except BuildFailed as error:
        return error.code.value, [*lines, str(error)]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder of this machine, in which nothing may change."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("precious")
    (folder / "file").chmod(0o640)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "precious"
    assert (folder / "file").stat().st_mode & 0o777 == 0o640


FOLDER, FILE, LINK = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE
PLAIN = [("a", FILE, ""), ("dev", FOLDER, ""), ("etc", FOLDER, "")]
INTO_METADATA = [
    [(".singularity.d", LINK, "%s")],
    [(".singularity.d", LINK, "through"), ("through", LINK, "%s")],
    [
        (".singularity.d", FOLDER, ""),
        *((f".singularity.d/{name}", LINK, "%s") for name in ("env", "actions", "libs")),
        *((f".singularity.d/{name}", LINK, "%s/file") for name in ("runscript", "labels.json")),
        *((f".singularity.d/{name}", LINK, "%s/new") for name in ("test", "Singularity")),
    ],
    [
        (".singularity.d", FOLDER, ""),
        (".singularity.d/env", FOLDER, ""),
        (".singularity.d/env/10-docker2singularity.sh", LINK, "%s/file"),
    ],
    [(name, LINK, "%s/file") for name in ("singularity", "environment", ".run", ".exec")],
    [(name, LINK, "%s/new") for name in (".shell", ".test", "environment")],
]
# Docker itself makes `/dev`, `/etc`, `/proc` and `/sys` folders in what it exports.
INTO_FOLDERS = [[(name, LINK, "%s")] for name in ("home", "root", "tmp", "var")] + [
    [("var", FOLDER, ""), ("var/tmp", LINK, "%s/new")],
    [("tmp", LINK, "var"), ("var", LINK, "%s")],
]


@pytest.fixture(params=["absolute", "relative"])
def pointing(request: pytest.FixtureRequest, victim: Path) -> str:
    return str(victim) if request.param == "absolute" else "../" * 30 + str(victim).lstrip("/")


@pytest.mark.parametrize("compressor", ["zstd", "lzo"], ids=["streamed", "built"])
@pytest.mark.parametrize("links", INTO_METADATA)
def test_links_where_singularity_has_its_own_lead_nowhere(
    links: list[tuple[str, bytes, str]], compressor: str, pointing: str, tmp_path: Path
) -> None:
    entries = [(name, kind, link.replace("%s", pointing)) for name, kind, link in links]
    with image_of(entries + PLAIN) as image:
        how, lines = converted_or_refused(image, tmp_path / "out.sif", sif_compressor=compressor)
        assert left_behind(image) == ([], [])
    assert how == (sif_convert.STREAM if compressor == "zstd" else sif_convert.BUILD)
    assert any("of the image is left out" in line for line in lines)
    files = tree(tmp_path / "out.sif")
    assert files[".singularity.d/runscript"].kind == FILE
    assert files["singularity"].body == ".singularity.d/runscript"


@pytest.mark.parametrize("links", INTO_FOLDERS)
def test_singularity_unpacks_no_image_whose_folders_lead_out(
    links: list[tuple[str, bytes, str]], pointing: str, tmp_path: Path
) -> None:
    entries = [(name, kind, link.replace("%s", pointing)) for name, kind, link in links]
    with image_of(PLAIN + entries) as image:
        how, lines = converted_or_refused(image, tmp_path / "out.sif", sif_compressor="lzo")
        converted_or_refused(image, tmp_path / "streamed.sif")
        assert left_behind(image) == ([], [])
    assert how == ErrorCode.CONVERSION_FAILED and "is not a folder" in lines[-1]
    assert not (tmp_path / "out.sif").exists()


@pytest.mark.parametrize("name", ["etc", "dev"])
def test_an_image_without_its_own_etc_or_dev_is_refused(
    name: str, pointing: str, tmp_path: Path
) -> None:
    entries = [entry for entry in PLAIN if entry[0] != name] + [(name, LINK, pointing)]
    with image_of(entries) as image:
        how, lines = converted_or_refused(image, tmp_path / "out.sif")
        converted_or_refused(image, tmp_path / "built.sif", sif_compressor="lzo")
    assert how == ErrorCode.CONVERSION_FAILED and f"/{name} is not a folder" in lines[-1]


@pytest.mark.parametrize("missing", ["buildx", "export"])
def test_what_this_machine_lacks_hands_no_image_to_singularity_unchecked(
    missing: str, pointing: str, tmp_path: Path, shims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reason for another way than streaming meets an image that points out."""
    entries = [(".singularity.d", LINK, pointing), ("tmp", LINK, pointing), *PLAIN]
    with image_of(entries) as image, contextlib.ExitStack() as stack:
        if missing == "buildx":
            shim(shims, "docker", '[ "$1" = buildx ] && exit 1; exec "$real" "$@"')
        else:
            stack.enter_context(opened(Door(tmp_path / "door", export_bytes=0)))
            stack.callback(monkeypatch.delenv, "DOCKER_HOST")
            monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/door")
        with pytest.raises(CicError) as failure:
            sif_convert.convert(
                image, tmp_path / "out.sif", platform="linux/amd64", settings=site()
            )
    assert failure.value.code is ErrorCode.CONVERSION_FAILED
    assert not (tmp_path / "out.sif").exists()


def test_a_step_may_be_called_as_singularity_calls_its_own(tmp_path: Path) -> None:
    own = [
        ("environment", FOLDER, ""),
        ("environment/script", FILE, ""),
        (".singularity.d", FOLDER, ""),
        (".singularity.d/env", FOLDER, ""),
        (".singularity.d/env/99-own.sh", FILE, ""),
    ]
    with image_of(own + PLAIN) as image:
        how, lines = converted_or_refused(image, tmp_path / "out.sif")
    assert how == sif_convert.STREAM, lines
    files = tree(tmp_path / "out.sif")
    assert {"environment/script", ".singularity.d/env/99-own.sh"} <= files.keys()
    assert ".singularity.d/runscript" in files


def test_an_image_for_another_platform_than_asked_is_refused(
    odd_image: str, tmp_path: Path
) -> None:
    with pytest.raises(ServiceError, match="for amd64, and a SIF for linux/arm64") as failure:
        sif_convert.convert(
            odd_image, tmp_path / "out.sif", platform="linux/arm64", settings=site()
        )
    assert failure.value.code == ErrorCode.CONVERSION_FAILED and not list(tmp_path.iterdir())


def test_an_image_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="not in the Docker daemon"):
        sif_convert.convert(
            "cic-test-conversion:never-made",
            tmp_path / "out.sif",
            platform="linux/amd64",
            settings=site(),
        )


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH."""
    folder = tmp_path / "shims"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def shim(folder: Path, name: str, script: str) -> None:
    """A script in the place of a program, which it knows as `real`."""
    program = shutil.which(name)
    assert program is not None
    path = folder / name
    path.write_text(f"#!/bin/bash\nreal={program}\n{script}\n")
    path.chmod(0o755)


class Door(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Another way to the daemon: a socket, or a port when no path is given. It may end an export's
    answer early.
    """

    daemon_threads = True

    def __init__(self, path: Path | None = None, *, export_bytes: int | None = None) -> None:
        self.address_family = socket.AF_INET if path is None else socket.AF_UNIX
        self.export_bytes, self.exports = export_bytes, 0
        super().__init__(("127.0.0.1", 0) if path is None else str(path), Passage)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], "someone"


class Passage(socketserver.BaseRequestHandler):
    """One connection through a door."""

    server: Door

    def handle(self) -> None:
        asked = self.request.recv(65536)
        is_export = b"/export HTTP/" in asked.partition(b"\r\n")[0]
        self.server.exports += is_export
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect("/var/run/docker.sock")
            daemon.sendall(asked)
            threading.Thread(
                target=passed_on, args=(self.request, daemon, None), daemon=True
            ).start()
            passed_on(daemon, self.request, self.server.export_bytes if is_export else None)


def passed_on(source: socket.socket, target: socket.socket, limit_bytes: int | None) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536 if limit_bytes is None else min(65536, limit_bytes)):
            target.sendall(chunk)
            limit_bytes = None if limit_bytes is None else limit_bytes - len(chunk)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def opened(door: Door) -> Iterator[Door]:
    with door:
        thread = threading.Thread(target=door.serve_forever)
        thread.start()
        try:
            yield door
        finally:
            door.shutdown()
            thread.join()


@pytest.fixture
def port_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A daemon without a socket here, so that `docker export` is what gives an image's files."""
    with opened(Door()) as door:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{door.server_address[1]}")
        yield door


@pytest.mark.usefixtures("port_only")
def test_an_image_comes_over_a_port_as_it_does_over_a_socket(
    odd_image: str, tmp_path: Path, shims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim(shims, "docker", f'[ "$1" = export ] && echo asked >> {tmp_path}/note; exec "$real" "$@"')
    convert(odd_image, tmp_path / "port.sif")
    monkeypatch.delenv("DOCKER_HOST")
    convert(odd_image, tmp_path / "socket.sif")
    assert (tmp_path / "note").read_text() == "asked\n"
    ported, direct = tree(tmp_path / "port.sif"), tree(tmp_path / "socket.sif")
    assert ported.keys() == direct.keys() and len(direct) > 20


@pytest.mark.parametrize("export_bytes", [0, 100])
def test_a_socket_without_an_answer_is_told(
    odd_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_bytes: int
) -> None:
    with opened(Door(tmp_path / "door", export_bytes=export_bytes)) as door:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/door")
        with pytest.raises(ServiceError, match="docker does not export the image") as failure:
            sif_convert.convert(
                odd_image, tmp_path / "out.sif", platform="linux/amd64", settings=site()
            )
    assert failure.value.code == ErrorCode.CONVERSION_FAILED and door.exports == 2
    assert not (tmp_path / "out.sif").exists()


@pytest.mark.parametrize("export_bytes", [2048, 300_000])
def test_a_socket_that_is_cut_never_gives_a_sif(
    odd_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_bytes: int
) -> None:
    (tmp_path / "out").mkdir()
    with opened(Door(tmp_path / "door", export_bytes=export_bytes)) as door:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/door")
        with pytest.raises(ServiceError) as failure:
            sif_convert.convert(
                odd_image, tmp_path / "out" / "out.sif", platform="linux/amd64", settings=site()
            )
        assert failure.value.code == ErrorCode.CONVERSION_FAILED and door.exports == 1
        assert not list((tmp_path / "out").iterdir()) and left_behind(odd_image) == ([], [])


@pytest.mark.parametrize(
    ("program", "script"),
    [
        ("docker", '[ "$1" = export ] && exit 0; exec "$real" "$@"'),
        ("docker", '[ "$1" = export ] || exec "$real" "$@"; "$real" "$@" | head --bytes 2048'),
        ("docker", '[ "$1" = export ] || exec "$real" "$@"; "$real" "$@" | head --bytes 3000000'),
        ("docker", '[ "$1" = export ] || exec "$real" "$@"; "$real" "$@"; exit 1'),
        ("docker", '[ "$1" = export ] || exec "$real" "$@"; kill -9 $$'),
        ("tar2sqfs", "exit 0"),
        ("tar2sqfs", "cat > /dev/null; exit 0"),
        ("tar2sqfs", '"$real" "$@"; exit 1'),
        ("tar2sqfs", "head --bytes 100000 > /dev/null; kill -9 $$"),
        ("tar2sqfs", '"$real" "$@" && truncate --size=-4096 "${@: -1}"'),
        (
            "tar2sqfs",
            "python3 -c \"\nimport sys, tarfile\nwith tarfile.open(fileobj=sys.stdin.buffer, mode='r|') as i, "
            "tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as o:\n    for m in i:\n        "
            'm.name == \'odd/second\' or o.addfile(m, i.extractfile(m) if m.isreg() else None)" | "$real" "$@"',
        ),
        (
            "tar2sqfs",
            "python3 -c \"\nimport sys, tarfile\nwith tarfile.open(fileobj=sys.stdin.buffer, mode='r|') as i, "
            "tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as o:\n    for m in i:\n        "
            'm.name == \'odd/empty\' or o.addfile(m, i.extractfile(m) if m.isreg() else None)" | "$real" "$@"',
        ),
        ("unsquashfs", "exit 1"),
    ],
    ids=[
        "no stream",
        "cut at an edge",
        "cut",
        "docker fails at the end",
        "docker is killed",
        "no reader",
        "nothing written",
        "tar2sqfs fails at the end",
        "tar2sqfs is killed",
        "squashfs cut",
        "a hard link is skipped",
        "a file is skipped",
        "unreadable",
    ],
)
@pytest.mark.usefixtures("port_only")
def test_no_failure_on_the_way_gives_a_sif(
    odd_image: str, tmp_path: Path, shims: Path, program: str, script: str
) -> None:
    shim(shims, program, script)
    (tmp_path / "out").mkdir()
    with pytest.raises(ServiceError) as failure:
        sif_convert.convert(
            odd_image, tmp_path / "out" / "out.sif", platform="linux/amd64", settings=site()
        )
    assert failure.value.code == (
        ErrorCode.INTERRUPTED if "kill -9" in script else ErrorCode.CONVERSION_FAILED
    )
    assert not list((tmp_path / "out").iterdir()) and left_behind(odd_image) == ([], [])


def test_a_buildx_that_does_not_show_the_image_means_a_build(
    odd_image: str, tmp_path: Path, shims: Path
) -> None:
    shim(
        shims,
        "docker",
        '[ "$1" = buildx ] && { echo no such driver >&2; exit 1; }; exec "$real" "$@"',
    )
    lines: list[str] = []
    made = sif_convert.convert(
        odd_image,
        tmp_path / "out.sif",
        platform="linux/amd64",
        settings=site(),
        on_line=lines.append,
    )
    assert made.method == sif_convert.BUILD
    assert any("no such driver" in line for line in lines)


def test_a_full_disk_is_told_and_leaves_nothing(odd_image: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
    try:
        with pytest.raises(ServiceError) as failure:
            sif_convert.convert(
                odd_image,
                small / "out.sif",
                platform="linux/amd64",
                settings=site(),
                scratch=tmp_path,
            )
        assert failure.value.code == ErrorCode.NO_SPACE
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("stuck", ["tar2sqfs", "docker"])
@pytest.mark.usefixtures("port_only")
def test_a_cancel_ends_it_and_leaves_nothing(
    odd_image: str, tmp_path: Path, shims: Path, stuck: str
) -> None:
    note = tmp_path / "stuck"
    shim(
        shims,
        stuck,
        f'case "$1" in --quiet|export) echo $$ > {note}; exec sleep 600;; esac; exec "$real" "$@"',
    )
    (tmp_path / "out").mkdir()
    cancel = CancelToken()

    def cancel_when_stuck() -> None:
        while not note.exists() or not note.read_text().strip():
            time.sleep(0.01)
        cancel.cancel("enough")

    thread = threading.Thread(target=cancel_when_stuck)
    thread.start()
    with pytest.raises(Cancelled, match="enough"):
        sif_convert.convert(
            odd_image,
            tmp_path / "out" / "out.sif",
            platform="linux/amd64",
            settings=site(),
            cancel=cancel,
        )
    thread.join()
    assert not Path("/proc", note.read_text().strip()).exists()
    assert not list((tmp_path / "out").iterdir()) and left_behind(odd_image) == ([], [])


@pytest.mark.usefixtures("port_only")
def test_what_a_killed_conversion_leaves_is_swept_and_nothing_of_a_living_one(
    odd_image: str, tmp_path: Path, shims: Path
) -> None:
    note = tmp_path / "note"
    shim(
        shims, "docker", f'[ "$1" = export ] || exec "$real" "$@"; echo $$ > {note}; exec sleep 600'
    )
    script = (
        "import sys; from pathlib import Path; from image_builder.sif import convert\n"
        "from tests.system.test_conversion import site\n"
        "convert.convert(sys.argv[1], Path(sys.argv[2]), platform='linux/amd64', settings=site())\n"
    )
    with docker_export.exported(odd_image) as mine:
        process = subprocess.Popen(
            [sys.executable, "-c", script, odd_image, str(tmp_path / "out.sif")], cwd=PROJECT
        )
        while not (note.exists() and note.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        docker_export.sweep()
        assert len(left_behind(odd_image)[0]) == 2
        process.kill()
        process.wait()
        assert docker_export.sweep() >= 2
        assert (
            left_behind(odd_image)[0] == [mine.container[:12]]
            and len(left_behind(odd_image)[1]) == 1
        )
    assert left_behind(odd_image) == ([], [])
    while Path(
        "/proc", note.read_text().strip()
    ).exists():  # the guard ends what the killed one had started
        time.sleep(0.01)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes PID name spaces")
def test_a_conversion_in_another_container_is_left_alone_until_it_must_be_dead(
    odd_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note"
    script = (
        "import sys, time; from pathlib import Path; from image_builder.sif import docker_export\n"
        "with docker_export.exported(sys.argv[1]): Path(sys.argv[2]).touch(); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            sys.executable,
            "-c",
            script,
            odd_image,
            str(note),
        ],
        cwd=PROJECT,
    )
    try:
        while not note.exists():
            assert process.poll() is None
            time.sleep(0.01)
        docker_export.sweep()
        assert [len(left) for left in left_behind(odd_image)] == [1, 1]
    finally:
        process.kill()
        process.wait()
        monkeypatch.setattr(leftovers, "ABANDONED_S", -1)
        docker_export.sweep()
    assert left_behind(odd_image) == ([], [])


def test_an_image_without_another_name_is_swept_once_it_is_old(
    odd_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = leftovers.owner_tag().replace(f"-{os.getpid()}-", "-999999999-")
    name = f"{docker_export.REPOSITORY}:{tag}"
    subprocess.run(
        ["docker", "build", "--quiet", f"--tag={name}", "-"],
        input=f"FROM {odd_image}\nLABEL of.nobody={tag}\n".encode(),
        check=True,
        capture_output=True,
    )
    docker_export.sweep()
    assert subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode == 0
    monkeypatch.setattr(leftovers, "ABANDONED_S", -1)
    docker_export.sweep()
    assert subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode == 1


def test_room_and_memory_are_bounded(runnable_image: str, tmp_path: Path) -> None:
    """Beside the SIF itself, no more room than it takes; no process with more than 512 MB."""
    peak_bytes = peak_memory_bytes = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak_bytes, peak_memory_bytes
        while not done.is_set():
            peak_bytes = max(peak_bytes, room(tmp_path))
            peak_memory_bytes = max(peak_memory_bytes, descendants_memory())
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        made = convert(runnable_image, tmp_path / "out.sif")
    finally:
        done.set()
        thread.join()
    assert made.size_bytes / 2 < peak_bytes < 2.05 * made.size_bytes
    assert 0 < peak_memory_bytes < 512 * 1024**2


def room(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
    return total


def descendants_memory() -> int:
    """The resident memory of all our child processes."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
            total += sum(
                int(Path("/proc", child, "statm").read_text().split()[1]) * 4096
                for child in children
            )
        except OSError:
            continue
    return total
