"""The check of an image's files on their way into squashfs: what goes through, and what does not."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.sif import tar_filter
from image_builder.sif.tar_filter import CorruptArchive, Filter, Report, UnsupportedArchive

FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)


@dataclasses.dataclass(frozen=True)
class Entry:
    name: str
    kind: bytes = tarfile.REGTYPE
    content: bytes = b""
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    pax: tuple[tuple[str, str], ...] = ()


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode=mode)


def tar(entries: Sequence[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.linkname, member.mode, member.uid = (
                entry.kind,
                entry.link,
                entry.mode,
                entry.uid,
            )
            member.size = len(entry.content)
            member.pax_headers = dict(entry.pax)
            archive.addfile(member, io.BytesIO(entry.content))
    return buffer.getvalue()


def read(archive: bytes) -> list[Entry]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return [
            Entry(
                member.name,
                member.type,
                content_of(members, member),
                member.linkname,
                member.mode,
                member.uid,
                tuple(
                    (key, value)
                    for key, value in sorted(member.pax_headers.items())
                    if "xattr" in key
                ),
            )
            for member in members
        ]


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member) if member.isreg() else None
    return file.read() if file is not None else b""


def filtered(
    image: bytes,
    additions: bytes | None = tar([]),
    *,
    step: int | None = None,
    newest_s: int | None = None,
) -> tuple[bytes, Report]:
    """What becomes of a stream, which arrives in portions of `step` bytes."""
    report = Report()
    with (
        memory_file(additions or b"") as extra,
        memory_file(b"") as target,
        fed_pipe(image, step or 65536) as source,
    ):

        def opened() -> int:
            os.lseek(extra.fileno(), 0, os.SEEK_SET)
            return extra.fileno()

        job = Filter(
            source,
            target.fileno(),
            report,
            additions=None if additions is None else opened,
            newest_s=newest_s,
        )
        job.copy_image()
        job.add()
        target.seek(0)
        return target.read(), report


def memory_file(content: bytes) -> io.FileIO:
    file = io.FileIO(os.memfd_create("test"), "r+")
    file.write(content)
    file.seek(0)
    return file


class fed_pipe:
    """The reading end of a pipe into which a thread writes."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content, self._step = content, step

    def __enter__(self) -> int:
        self._source, target = os.pipe()
        self._thread = threading.Thread(target=self._feed, args=(target,))
        self._thread.start()
        return self._source

    def __exit__(self, *_: object) -> None:
        os.close(self._source)
        self._thread.join()

    def _feed(self, target: int) -> None:
        try:
            for begin in range(0, len(self._content), self._step):
                os.write(target, self._content[begin : begin + self._step])
        except BrokenPipeError:
            pass
        finally:
            os.close(target)


def patched(archive: bytes, offset: int, new: bytes, *, fix_checksum: bool = True) -> bytes:
    """The archive with some bytes of its first header changed."""
    changed = bytearray(archive)
    changed[offset : offset + len(new)] = new
    if fix_checksum:
        changed[148:156] = b" " * 8
        changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


# --- what goes through

letters = st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",))
names = st.text(letters, min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))


@st.composite
def images(draw: st.DrawFn) -> list[Entry]:
    """A tree in the order in which `docker export` writes one: folders before what is in them."""
    folders, files, entries = ["top"], [], [folder("top")]
    seen = {"top"}
    for _ in range(draw(st.integers(0, 12))):
        name = f"{draw(st.sampled_from(folders))}/{draw(names)}"
        if name in seen:
            continue
        seen.add(name)
        kind = draw(st.sampled_from(["folder", "file", "symlink", "hard link", "fifo"]))
        mode = draw(st.integers(0, 0o7777))
        if kind == "folder":
            folders.append(name)
            entries.append(folder(name, mode))
        elif kind == "file":
            files.append(name)
            entries.append(
                Entry(
                    name,
                    content=draw(st.binary(max_size=3000)),
                    mode=mode,
                    uid=draw(st.sampled_from([0, 1000, 2**21, 3_000_000_000])),
                )
            )
        elif kind == "symlink":
            entries.append(
                Entry(name, tarfile.SYMTYPE, link=draw(names) * draw(st.integers(1, 4)), mode=0o777)
            )
        elif kind == "hard link" and files:
            entries.append(
                Entry(name, tarfile.LNKTYPE, link=draw(st.sampled_from(files)), mode=mode)
            )
        elif kind == "fifo":
            entries.append(Entry(name, tarfile.FIFOTYPE, mode=mode))
    return entries


@given(images(), st.sampled_from(FORMATS), st.integers(1, 5000))
@settings(deadline=None)
def test_a_tree_goes_through_unchanged_in_whatever_portions_it_comes(
    entries: list[Entry], format: int, step: int
) -> None:
    written, report = filtered(tar(entries, format), step=step)
    assert read(written) == entries
    assert report.entries == len(entries)
    assert report.inodes == sum(entry.kind != tarfile.LNKTYPE for entry in entries)
    assert report.listed_lines == sum(1 + entry.name.count("\n") for entry in entries)


@given(images(), st.sampled_from(FORMATS), st.data())
@settings(deadline=None)
def test_no_cut_stream_is_taken_for_a_whole_one(
    entries: list[Entry], format: int, data: st.DataObject
) -> None:
    archive = tar(entries, format)
    whole = (
        len(archive.rstrip(b"\0")) // 512 * 512 + 512
    )  # the last block that holds something, and then the end
    cut = data.draw(st.integers(0, whole + 512))
    with pytest.raises(CorruptArchive):
        filtered(archive[:cut])


def test_no_stream_cut_at_an_edge_of_a_member_is_taken_for_a_whole_one() -> None:
    archive = tar(
        [folder("a"), Entry("a/b", content=b"x" * 600), Entry("a/c", tarfile.LNKTYPE, link="a/b")]
    )
    end = len(archive.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end + 1024, 512):
        with pytest.raises(CorruptArchive):
            filtered(archive[:cut])
    assert filtered(archive[: end + 1024])[1].entries == 3


def test_large_files_pass_without_being_looked_at() -> None:
    content = os.urandom(5 * 1024**2 + 17)
    entries = [
        folder("a"),
        Entry("a/large", content=content),
        Entry("a/small", content=b"1"),
        Entry("dev", tarfile.DIRTYPE),
        Entry("dev/console", content=content),
        Entry("last", content=b"2"),
    ]
    written, report = filtered(tar(entries), step=100_000)
    assert read(written) == [entry for entry in entries if entry.name != "dev/console"]
    assert report.left_out == ["dev/console"]


def test_the_program_does_the_same_between_pipes(tmp_path: Path) -> None:
    entries = [
        folder("a"),
        Entry("a/large", content=os.urandom(3 * 1024**2)),
        Entry("etc", tarfile.DIRTYPE),
        Entry("etc/hostname", content=b"gone"),
    ]
    additions, report = tmp_path / "additions.tar", tmp_path / "report.json"
    additions.write_bytes(tar([Entry("etc/hostname", content=b"the image's own")]))
    done = subprocess.run(
        program(additions, report), input=tar(entries), capture_output=True, check=True
    )
    assert read(done.stdout) == [*entries[:3], Entry("etc/hostname", content=b"the image's own")]
    told = json.loads(report.read_text())
    assert (told["entries"], told["added"], told["left_out"]) == (4, 1, ["etc/hostname"])


@pytest.mark.parametrize(
    ("stream", "exit_code"),
    [
        (b"", tar_filter.EXIT_BROKEN),
        (tar([folder("a")])[:512], tar_filter.EXIT_BROKEN),
        (tar([Entry("a"), Entry("a/b")]), tar_filter.EXIT_UNFIT),
    ],
)
def test_the_program_says_which_kind_of_refusal_it_was(
    stream: bytes, exit_code: int, tmp_path: Path
) -> None:
    additions, report = tmp_path / "additions.tar", tmp_path / "report.json"
    additions.write_bytes(tar([]))
    done = subprocess.run(program(additions, report), input=stream, capture_output=True)
    assert done.returncode == exit_code and done.stderr and not report.exists()


def program(additions: Path, report: Path) -> list[str]:
    return [
        sys.executable,
        "-I",
        "-S",
        tar_filter.__file__,
        "--additions",
        str(additions),
        "--report",
        str(report),
    ]


@pytest.mark.parametrize("sparse_format", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_as_gnu_tar_writes_them_go_through(sparse_format: str, tmp_path: Path) -> None:
    source = tmp_path / "holes"
    with source.open("wb") as file:
        for position in range(0, 40 * 1024**2, 1024**2):  # more pieces than one header holds
            file.seek(position)
            file.write(b"x" * 4096)
        file.truncate(41 * 1024**2)
    options = (
        ["--format=gnu"]
        if sparse_format == "gnu"
        else ["--format=pax", f"--sparse-version={sparse_format}"]
    )
    archive = subprocess.run(
        ["tar", "--create", "--sparse", *options, "holes"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    ).stdout
    assert len(archive) < 1024**2
    written, report = filtered(archive, step=700)
    assert report.entries == 1
    with tarfile.open(fileobj=io.BytesIO(written)) as members:
        assert content_of(members, members.getmember("holes")) == source.read_bytes()


@pytest.mark.parametrize("step", [None, 7, 512, 1000])
def test_nothing_is_newer_than_the_newest_time(step: int | None) -> None:
    """What is older stays as it is, and so does everything but the time."""
    times = {"old": 100, "at": 500, "new": 501, "x" * 150: 2**31, "folder": 900, "folder/in": 3}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, time_s in times.items():
            member = tarfile.TarInfo(name)
            member.mtime, member.size = time_s, 0 if name == "folder" else 700
            member.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(b"content" * 100))
    made, _ = filtered(buffer.getvalue(), step=step, newest_s=500)
    with tarfile.open(fileobj=io.BytesIO(made)) as members:
        assert {one.name: one.mtime for one in members} == {
            name: min(time_s, 500) for name, time_s in times.items()
        }
    assert read(made) == read(buffer.getvalue())
    assert (
        filtered(buffer.getvalue(), step=step)[0]
        == buffer.getvalue().rstrip(b"\0") + made[len(made.rstrip(b"\0")) :]
    )


def test_extended_attributes_go_through() -> None:
    entries = [Entry("ping", pax=(("SCHILY.xattr.security.capability", "\x01\x00\x00\x02value"),))]
    assert read(filtered(tar(entries))[0]) == entries


def test_the_root_and_dots_before_names_are_understood() -> None:
    written, report = filtered(
        tar(
            [folder("./"), folder("./a"), Entry("./a/b"), Entry("c", tarfile.LNKTYPE, link="./a/b")]
        )
    )
    assert (report.entries, report.inodes) == (3, 2)
    assert len(read(written)) == 4


# --- what docker export puts in, and what is added


def test_what_docker_export_puts_in_is_left_out() -> None:
    entries = [
        Entry(".dockerenv"),
        folder("dev"),
        Entry("dev/console"),
        folder("dev/pts"),
        folder("dev/shm"),
        folder("etc"),
        Entry("etc/hostname"),
        Entry("etc/hosts"),
        Entry("etc/mtab", tarfile.SYMTYPE, link="x"),
        Entry("etc/passwd"),
        Entry("etc/resolv.conf"),
        Entry("etc/hostname.d"),
    ]
    assert [entry.name for entry in read(filtered(tar(entries))[0])] == [
        "dev",
        "etc",
        "etc/passwd",
        "etc/hostname.d",
    ]


def test_a_folder_of_docker_with_something_in_it_is_the_images_own() -> None:
    entries = [
        folder("dev"),
        folder("dev/pts"),
        folder("dev/shm", 0o1777),
        Entry("dev/shm/kept", content=b"x"),
    ]
    written, report = filtered(tar(entries))
    assert read(written) == [entries[0], entries[2], entries[3]]
    assert (report.entries, report.left_out) == (3, ["dev/pts"])


def test_folders_that_docker_prepares_get_the_time_that_is_given(tmp_path: Path) -> None:
    """Docker makes or writes into them for each container, so that they would differ each time."""
    folders = [Entry(name, tarfile.DIRTYPE) for name in ("dev", "etc", "etc/apt", "home")]
    xattr = (("SCHILY.xattr.user.x", "y"),)
    stream = tar([*folders, Entry("sys", tarfile.DIRTYPE, pax=xattr), Entry("etc/x", content=b"x")])
    additions, report = tmp_path / "additions.tar", tmp_path / "report.json"
    additions.write_bytes(tar([]))
    done = subprocess.run(
        [*program(additions, report), "--time", "1700000000"], input=stream, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert read(done.stdout) == read(stream)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as members:
        times = {member.name: member.mtime for member in members}
    assert times == {
        **dict.fromkeys(("dev", "etc", "sys"), 1_700_000_000),
        **dict.fromkeys(("etc/apt", "home", "etc/x"), 0),
    }


def test_additions_come_last_and_only_where_nothing_is_yet() -> None:
    additions = [
        folder("./", 0o711),
        folder("etc", 0o700),
        Entry("etc/hosts", content=b"new"),
        folder("tmp", 0o700),
        folder("tmp/inner"),
        Entry("tmp/inner/file", content=b"1"),
    ]
    written, report = filtered(tar([folder("etc"), folder("tmp", 0o1777)]), tar(additions))
    assert read(written)[2:] == [folder(".", 0o711), additions[2], *additions[4:]]
    assert (report.entries, report.added) == (5, 4)


def test_additions_do_not_climb_over_a_link_of_the_image() -> None:
    with pytest.raises(UnsupportedArchive, match="var/tmp"):
        filtered(
            tar([Entry("var", tarfile.SYMTYPE, link="elsewhere")]),
            tar([folder("var"), folder("var/tmp")]),
        )


# --- where Singularity has its own files

SINGULARITYS = tar(
    [
        folder(".singularity.d"),
        folder(".singularity.d/env"),
        Entry(".singularity.d/env/01-base.sh", content=b"its"),
        Entry(".singularity.d/runscript", content=b"its"),
        Entry("singularity", tarfile.SYMTYPE, link=".singularity.d/runscript"),
        Entry("environment", tarfile.SYMTYPE, link=".singularity.d/env/90-environment.sh"),
    ]
)
ELSEWHERE = ["/etc", "../../../../etc", "elsewhere", "."]
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE]
SPECIAL = [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
METADATA_PATHS = ["", "/env", "/env/01-base.sh", "/runscript", "/labels.json", "/env/own.sh"]


def with_parents(entry: Entry) -> list[Entry]:
    parts = entry.name.split("/")
    return [*(folder("/".join(parts[:end])) for end in range(1, len(parts))), entry]


@pytest.mark.parametrize("additions", [SINGULARITYS, None], ids=["streamed", "for build"])
@pytest.mark.parametrize(
    "name",
    [
        *(f".singularity.d{path}" for path in METADATA_PATHS),
        *(name.decode() for name in sorted(tar_filter.LAUNCHERS)),
    ],
)
def test_what_leads_elsewhere_gives_way_to_singularitys_own(
    name: str, additions: bytes | None
) -> None:
    for kind, link in itertools.product([*LINKS, *SPECIAL], ELSEWHERE):
        image = [Entry("elsewhere", content=b"1"), *with_parents(Entry(name, kind, link=link))]
        written, report = filtered(tar(image), additions)
        kept = {entry.name: entry for entry in read(written)}
        assert report.set_aside == 1 and report.set_aside_first == [ascii(name)]
        own = {entry.name: entry for entry in read(additions or tar([]))}
        assert kept.get(name) == own.get(name)
        assert own.items() <= kept.items()


def test_an_images_own_folders_and_files_stay_where_singularity_has_none() -> None:
    own = [
        folder(".singularity.d", 0o700),
        folder(".singularity.d/env"),
        Entry(".singularity.d/env/99-own.sh", content=b"own"),
        folder("environment"),
        Entry("environment/link", tarfile.SYMTYPE, link="/etc"),
        Entry("singularity", content=b"own"),
    ]
    for additions in (SINGULARITYS, None):
        written, report = filtered(tar(own), additions)
        assert read(written)[: len(own)] == own and report.set_aside == 0


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ([Entry(".singularity.d/runscript", content=b"own")], b"its"),
        ([folder(".singularity.d/runscript"), Entry(".singularity.d/runscript/x")], b"its"),
        ([Entry(".singularity.d/env", content=b"no folder")], b"its"),
    ],
)
def test_singularitys_own_files_win(own: list[Entry], kept: bytes) -> None:
    written, report = filtered(tar([folder(".singularity.d"), *own]), SINGULARITYS)
    found = {entry.name: entry.content for entry in read(written)}
    assert found[".singularity.d/runscript"] == found[".singularity.d/env/01-base.sh"] == kept
    assert report.set_aside == len(own)


def test_the_names_of_what_gives_way_are_bounded() -> None:
    own = [Entry(f".singularity.d/{'x' * 90}{n}", tarfile.FIFOTYPE) for n in range(1000)]
    _, report = filtered(tar([folder(".singularity.d"), *own]), SINGULARITYS)
    assert report.set_aside == 1000 and len(report.set_aside_first) == tar_filter.MAX_SHOWN


def test_a_hard_link_to_what_gave_way_is_refused() -> None:
    image = [
        folder(".singularity.d"),
        Entry(".singularity.d/runscript"),
        Entry("bin", tarfile.LNKTYPE, link=".singularity.d/runscript"),
    ]
    with pytest.raises(UnsupportedArchive, match="links to"):
        filtered(tar(image), SINGULARITYS)


@pytest.mark.parametrize("name", sorted(tar_filter.WRITTEN))
def test_where_singularity_writes_there_are_only_folders(name: bytes) -> None:
    for kind, link in itertools.product([tarfile.REGTYPE, *LINKS], ELSEWHERE):
        image = [Entry("elsewhere"), *with_parents(Entry(name.decode(), kind, link=link))]
        with pytest.raises(UnsupportedArchive):
            filtered(tar(image), None)


# --- what does not go through


@pytest.mark.parametrize("kind", [b"7", b"V", b"M", b"D", b"g", b"A", b"\x80"])
def test_an_entry_of_an_unknown_type_is_refused(kind: bytes) -> None:
    with pytest.raises(UnsupportedArchive, match="unknown type"):
        filtered(patched(tar([Entry("a")], tarfile.GNU_FORMAT), 156, kind))


@pytest.mark.parametrize("second", [Entry("a"), folder("a"), Entry("./a", content=b"2")])
def test_a_name_that_comes_twice_is_refused(second: Entry) -> None:
    with pytest.raises(UnsupportedArchive, match="twice"):
        filtered(tar([Entry("a"), second]))


@pytest.mark.parametrize("name", ["../a", "a/../b", "a//b", "a/./b", "/etc/../a", "a/.."])
def test_a_name_that_is_no_plain_path_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedArchive):
        filtered(tar([folder("a"), Entry(name)]))


@pytest.mark.parametrize("parent", [[], [Entry("a")], [Entry("a", tarfile.SYMTYPE, link="b")]])
def test_an_entry_without_its_folder_is_refused(parent: list[Entry]) -> None:
    with pytest.raises(UnsupportedArchive, match="not in a folder"):
        filtered(tar([*parent, Entry("a/b")]))


@pytest.mark.parametrize("before", [[], [folder("b")], [folder("etc"), Entry("etc/hosts")]])
def test_a_hard_link_to_what_is_not_there_is_refused(before: list[Entry]) -> None:
    target = before[-1].name if before else "b"
    with pytest.raises(UnsupportedArchive, match="links to"):
        filtered(tar([*before, Entry("a", tarfile.LNKTYPE, link=target)]))


def test_a_body_where_none_belongs_is_refused() -> None:
    archive = tar([Entry("a", content=b"x" * 512)], tarfile.GNU_FORMAT)
    with pytest.raises(UnsupportedArchive, match="body"):
        filtered(patched(archive, 156, b"2"))


def test_an_extension_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(UnsupportedArchive, match="unknown key"):
        filtered(tar([Entry("a", pax=(("VENDOR.thing", "1"),))]))


def test_an_enormous_extension_is_refused() -> None:
    with pytest.raises(UnsupportedArchive, match="1 MB"):
        filtered(tar([Entry("a", pax=(("SCHILY.xattr.user.x", "y" * 2 * 1024**2),))]))


def test_a_wrong_checksum_is_found() -> None:
    with pytest.raises(CorruptArchive, match="checksum"):
        filtered(patched(tar([Entry("a")]), 100, b"0000777", fix_checksum=False))


@pytest.mark.parametrize("size", [b"nonsense\0\0\0\0", b"\xff" * 12])
def test_a_size_that_is_none_is_found(size: bytes) -> None:
    with pytest.raises(CorruptArchive):
        filtered(patched(tar([Entry("a")], tarfile.GNU_FORMAT), 124, size))


@pytest.mark.parametrize("stream", [b"", bytes(1024), bytes(10240), b"no tar at all" * 100])
def test_a_stream_without_a_file_is_refused(stream: bytes) -> None:
    with pytest.raises(CorruptArchive):
        filtered(stream)


def test_only_padding_may_follow_the_end() -> None:
    archive = tar([Entry("a")])
    assert filtered(archive + bytes(5_000_000))[1].entries == 1
    for rest in (b"x", bytes(3_000_000) + b"x", tar([Entry("b")])):
        with pytest.raises(CorruptArchive, match="end"):
            filtered(archive + rest)


@given(st.binary(max_size=4000), st.integers(0, 3000))
@settings(deadline=None)
def test_noise_in_a_stream_never_raises_anything_else(noise: bytes, position: int) -> None:
    archive = tar([folder("a"), Entry("a/b", content=b"x" * 900), Entry("n" * 150), Entry("c")])
    changed = archive[:position] + noise + archive[position + len(noise) :]
    try:
        written, _ = filtered(changed)
    except (UnsupportedArchive, CorruptArchive):
        return
    read(written)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before
