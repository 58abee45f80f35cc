"""Facts of images, from files of this machine and from others made byte by byte."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.audit.exported_files import facts_of_tar
from image_builder.audit.image_facts import Collector, ImageFacts
from image_builder.audit.image_facts.elf_file import MAX_READS, read_elf
from image_builder.audit.image_facts.gpu_code import (
    ENTRY,
    HEADER,
    MACHINE_CODE,
    MAGIC,
    PTX,
    GpuCode,
)
from image_builder.docker import label_names
from image_builder.host.cancellation import CancelToken
from image_builder.sif.tar_filter import CorruptArchive

LIBRARIES = Path("/usr/lib") / f"{platform.machine()}-linux-gnu"
LIBC = (LIBRARIES / "libc.so.6").resolve()
LIBSTDCXX = (LIBRARIES / "libstdc++.so.6").resolve()
OPENMPI = b"\0Open MPI\0v4.1.8\0"
MPICH = b"\0MPICH Version:\t%s\0003.4.3\0000.13.99\0pmi_version\0"
INTEL = b"\0Intel(R) MPI Library %s for Linux* OS\x001.3.2\x002021.19.0\0pmi_version\0"


def patched(soname: str, needed: str = "", text: bytes = b"") -> bytes:
    """Return libstdc++ under another name, which needs another library, with a text behind it."""
    content = LIBSTDCXX.read_bytes()
    for old, new in ((b"libstdc++.so.6", soname), (b"libgcc_s.so.1", needed)):
        content = content.replace(old, (new.encode() or old).ljust(len(old), b"\0"))
    return content + text


def facts_of(files: Mapping[str, bytes]) -> ImageFacts:
    """Return the facts of an image with these files, which come through a pipe as Docker's do."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            if not content:
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(content))
    return facts_of_stream(archive.getvalue())


def facts_of_stream(data: bytes) -> ImageFacts:
    source, target = os.pipe()

    def feed() -> None:
        with open(target, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(data)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        return facts_of_tar(source, CancelToken())
    finally:
        os.close(source)
        writer.join()


def test_the_c_library_of_this_machine_is_read() -> None:
    found = facts_of(
        {
            "usr/lib/libc.so.6": LIBC.read_bytes(),
            "usr/lib/libstdc++.so.6.0.30": LIBSTDCXX.read_bytes(),
        }
    )
    assert (found.libc, found.glibc) == ("glibc", platform.libc_ver()[1])
    assert found.glibc_symbols is not None and found.glibc_symbols.startswith("2.")
    assert found.glibcxx is not None and found.glibcxx.startswith("3.4.")
    assert found.kernel is not None and found.kernel[0].isdigit()
    assert found.needs == {}
    labels = found.labels({})
    assert labels[label_names.FACTS] == "1" and labels[label_names.GLIBC] == found.glibc
    assert label_names.MPI_NAME not in labels and label_names.LIBFABRIC not in labels


def test_what_was_added_says_what_it_needs() -> None:
    found = facts_of({"opt/view/lib/libx.so": LIBSTDCXX.read_bytes(), "usr/lib/liby.so": b"x"})
    version, path = found.needs["GLIBC"]
    assert version.startswith("2.") and path == "/opt/view/lib/libx.so"
    own = facts_of({"usr/lib/libx.so": LIBSTDCXX.read_bytes()})
    assert own.needs == {} and own.labels({})[label_names.GLIBC] == "none"
    with_pip = "usr/lib/python3/dist-packages/x/libx.so"
    assert facts_of({with_pip: LIBSTDCXX.read_bytes()}).needs["GLIBC"][0] == version


@pytest.mark.parametrize(
    ("path", "soname", "text", "mpi"),
    [
        ("opt/lib/libmpi.so.40", "libmpi.so.40", OPENMPI, ("openmpi", "openmpi", "4.1.8", "none")),
        ("usr/lib/libmpich.so.12.1", "libmpi.so.12", MPICH, ("mpich", "mpich", "3.4.3", "pmi2")),
        (
            "venv/lib/libmpi.so.12",
            "libmpi.so.12",
            INTEL,
            ("intel-oneapi-mpi", "mpich", "2021.19.0", "pmi2"),
        ),
    ],
)
def test_an_mpi_is_known_by_its_library(
    path: str, soname: str, text: bytes, mpi: tuple[str, ...]
) -> None:
    labels = facts_of({path: patched(soname, text=text)}).labels({})
    assert mpi == tuple(
        labels[name]
        for name in (
            label_names.MPI_NAME,
            label_names.MPI_FAMILY,
            label_names.MPI_VERSION,
            label_names.MPI_PMI,
        )
    )
    assert labels[label_names.MPI_ABI] == soname


@pytest.mark.parametrize(
    "files",
    [
        {"opt/lib/libmpi.so.40": patched("libmpi.so.40", "libpmix.so.2", OPENMPI)},
        {
            "opt/lib/libmpi.so.40": patched("libmpi.so.40", "", OPENMPI),
            "opt/lib/libopen-pal.so.40": patched("libpal.so.40", "", b"mca_pmix_pmix3x_component"),
        },
        {
            "opt/lib/libmpi.so.40": patched("libmpi.so.40", "", OPENMPI),
            "opt/lib/openmpi/mca_pmix_ext3x.so": b"any",
        },
    ],
)
def test_open_mpi_speaks_pmix_by_a_library_a_component_or_a_plugin(files: dict[str, bytes]) -> None:
    assert facts_of(files).labels({})[label_names.MPI_PMI] == "pmix"


def test_components_of_another_open_mpi_say_nothing_of_this_one() -> None:
    found = facts_of(
        {
            "opt/a/lib/libmpi.so.40": patched("libmpi.so.40", "", OPENMPI),
            "opt/b/lib/libopen-pal.so.40": patched(
                "libpal.so.40", "", b"mca_pmix_pmix3x_component"
            ),
            "opt/b/lib/openmpi/mca_pmix_ext3x.so": b"any",
        }
    )
    assert found.mpis[0].pmi == ()


def test_two_mpis_are_told_apart_by_what_programs_need() -> None:
    both = {
        "opt/a/libmpi.so.40": patched("libmpi.so.40", "", OPENMPI),
        "opt/b/libmpi.so.12": patched("libmpi.so.12", "", MPICH),
    }
    assert label_names.MPI_NAME not in facts_of(both).labels({})
    model = {"step/model": patched("", "libmpi.so.12")}
    labels = facts_of(both | model).labels({})
    assert (labels[label_names.MPI_NAME], labels[label_names.MPI_NEEDED]) == (
        "mpich",
        "libmpi.so.12",
    )
    asked = facts_of(both).labels({label_names.MPI_NAME: "openmpi"})
    assert asked[label_names.MPI_ABI] == "libmpi.so.40" and label_names.MPI_NAME not in asked


def test_programs_that_were_added_are_named() -> None:
    added = ["lmp", "gmx_mpi", "python3", "mpirun", "mpichversion", "with space", "git"]
    view = {f"opt/view/bin/{name}": b"any" for name in added}
    found = facts_of(
        view | {"usr/bin/python3": b"any", "bin/git": b"any", "usr/local/bin/jupyter": b"any"}
    )
    assert found.labels({})[label_names.PROGRAMS] == "gmx_mpi,jupyter,lmp"


def test_networks_are_known_by_libraries_and_plugins() -> None:
    found = facts_of(
        {
            "opt/lib/libfabric.so.1": patched("libfabric.so.1", "libcxi.so.1"),
            "opt/lib/libfabric/libverbs-1.12-fi.so": b"any",
            "opt/lib/ucx/libuct_ib.so.0": b"any",
            "opt/lib/ucx/libuct_gdr_copy.so.0.0.0": b"any",
        }
    )
    assert (found.libfabric, found.ucx) == (("cxi", "verbs"), ("gdr_copy", "ib"))


def test_the_release_of_cuda_in_wheels_is_known_by_its_package() -> None:
    packages = "usr/lib/python3/dist-packages"
    found = facts_of(
        {
            f"{packages}/nvidia_cuda_runtime_cu12-12.4.127.dist-info": b"",
            f"{packages}/nvidia/cuda_runtime/lib/libcudart.so.12": b"any",
        }
    )
    assert found.labels({})[label_names.CUDA_RUNTIME] == "12.4.127"


def fat_binary(*entries: tuple[int, int, int]) -> bytes:
    """Return a fat binary of entries, each a kind, an architecture and the length of its code."""
    body = b"".join(
        ENTRY.pack(kind, 0x101, 64, size, 0, 64, 1, 1, architecture).ljust(64, b"\0")
        + b"\x7f" * size
        for kind, architecture, size in entries
    )
    return HEADER.pack(MAGIC, 1, HEADER.size, len(body)) + body


CODE = (
    b"\x7fELF"
    + os.urandom(3000).replace(MAGIC, b"")
    + fat_binary((MACHINE_CODE, 70, 5000), (9, 75, 8), (MACHINE_CODE, 90, 64), (PTX, 90, 700))
    + bytes(999)
    + fat_binary((MACHINE_CODE, 80, 24))
    + b"hipv4-amdgcn-amd-amdhsa--gfx90a:xnack-"
)


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10**6])
def test_gpu_code_is_found_however_the_file_is_cut(size: int) -> None:
    code = GpuCode()
    for begin in range(0, len(CODE), size):
        code.feed(CODE[begin : begin + size])
    assert (code.machine_code, code.ptx, code.amd) == ({70, 80, 90}, {90}, {"gfx90a"})


def test_architectures_become_labels() -> None:
    found = facts_of({"opt/lib/libtorch_cuda.so": patched("libt.so") + CODE})
    labels = found.labels({})
    assert labels[label_names.CUDA_CODE] == "70,80,90" and labels[label_names.CUDA_PTX] == "90"
    assert labels[label_names.ROCM_CODE] == "gfx90a"
    [one] = json.loads(found.document())["cuda_code"]
    assert one["path"] == "/opt/lib/libtorch_cuda.so"


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 20))
def test_any_bytes_behind_a_magic_number_are_borne(noise: bytes, entries: int) -> None:
    code = GpuCode()
    code.feed(MAGIC + noise + fat_binary(*[(MACHINE_CODE, 80, 8)] * entries) + MAGIC + noise)
    assert code.machine_code <= set(range(20, 1000))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10**6), st.binary(max_size=8))))
def test_a_damaged_library_costs_no_more_than_a_sound_one(
    changes: list[tuple[int, int, bytes]],
) -> None:
    content = bytearray(LIBC.read_bytes())
    for at_head, offset, new in changes:
        place = offset % (64 if at_head else len(content))
        content[place : place + len(new)] = new
    file = _Counted(bytes(content))
    read_elf(file)
    assert file.reads <= MAX_READS + 1


def test_tables_that_never_end_are_left() -> None:
    """A version entry that is its own next one, with 65535 of them to come."""
    content = bytearray(LIBSTDCXX.read_bytes())
    section = ELFFile(io.BytesIO(bytes(content))).get_section_by_name(".gnu.version_r")
    assert section is not None
    begin = section["sh_offset"]
    content[begin + 2 : begin + 4] = b"\xff\xff"
    content[begin + 16 + 12 : begin + 16 + 16] = bytes(4)
    file = _Counted(bytes(content))
    assert read_elf(file) is None and file.reads <= MAX_READS + 1


class _Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def test_what_was_not_read_in_time_is_said() -> None:
    collector = Collector(budget_ends=0.0)
    collector.add("/opt/lib/libmpi.so.40", 10**6, [patched("libmpi.so.40", "", OPENMPI) + CODE])
    found = collector.facts()
    assert "too long" in found.incomplete and found.mpis == ()
    assert found.machine_code == (70, 80, 90)


def test_a_stream_that_ends_early_is_no_image() -> None:
    with pytest.raises(CorruptArchive):
        facts_of_stream(b"")
