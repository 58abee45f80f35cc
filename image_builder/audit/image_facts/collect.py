"""Gathers the facts of an image from its files, which come one by one and once. Pure.

Of the distribution's own files only the libraries that a fact is about are read, as its packages fit
each other. All that was added to it is read: what Spack and pip installed, and the user's own.
"""

from __future__ import annotations

import dataclasses
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence

from image_builder.audit import elf
from image_builder.audit.image_facts import mpi_library, naming
from image_builder.audit.image_facts.elf_file import ElfFile, read_elf
from image_builder.audit.image_facts.facts import CudaCode, ImageFacts
from image_builder.audit.image_facts.gpu_code import GpuCode
from image_builder.audit.image_facts.mpi_library import Library
from image_builder.spack.versions import numbers

MAX_PARSED = 5000
"""Files of which the tables are read."""
MAX_PARSED_BYTES = 256 * 1024**2
"""A larger file is looked through for code of GPUs alone."""
MAX_TEXT_BYTES = 64 * 1024**2
"""As much of a library of an MPI or of PMIx is looked through for its release."""
MAX_LISTED = 200
"""Files of a kind that are listed; a sound image has a few."""
MAX_NAMES = 5000
"""Names of programs that are kept in memory."""
BUDGET_S = 60.0
"""Processor time for one image, so that what is found does not depend on what else runs here."""
_IN_MEMORY_BYTES = 32 * 1024**2
_NAMED_BY_TEXT = ("mpi", "pal", "pmix", "libc")


@dataclasses.dataclass
class Collector:
    """Takes an image's files, and says at the end what is known of it."""

    budget_ends: float = dataclasses.field(default_factory=lambda: time.thread_time() + BUDGET_S)
    _libraries: list[Library] = dataclasses.field(default_factory=list)
    _plugins: list[str] = dataclasses.field(default_factory=list)
    _cuda_runtimes: set[str] = dataclasses.field(default_factory=set)
    _needs: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    _mpi_needed: set[str] = dataclasses.field(default_factory=set)
    _code: GpuCode = dataclasses.field(default_factory=GpuCode)
    _cuda: list[CudaCode] = dataclasses.field(default_factory=list)
    _programs: set[str] = dataclasses.field(default_factory=set)
    _distributions: set[str] = dataclasses.field(default_factory=set)
    _has_musl: bool = False
    _parsed: int = 0
    _incomplete: str = ""

    def note(self, path: str) -> None:
        """Take the path of a file, a folder or a link: some say enough by their names."""
        name = posixpath.basename(path)
        cuda = naming.elf_facts()["cuda"]
        if naming.kind_of(path) == naming.PLUGIN and len(self._plugins) < MAX_LISTED:
            self._plugins.append(path)
        for found in (
            name.startswith("libcudart") and naming.pattern(cuda["runtime"]).fullmatch(name),
            name.endswith(".dist-info") and naming.pattern(cuda["packages"]).search(path),
        ):
            if found and len(self._cuda_runtimes) < MAX_LISTED:
                self._cuda_runtimes.add(found[1])
        self._has_musl |= name.startswith("ld-musl-")
        if "/bin/" in path or "/sbin/" in path:
            self._note_program(path)

    def _note_program(self, path: str) -> None:
        if (name := naming.distributions_program(path)) and len(self._distributions) < MAX_NAMES:
            self._distributions.add(name)
        elif (name := naming.added_program(path)) and len(self._programs) < MAX_NAMES:
            self._programs.add(name)

    def wants(self, path: str) -> bool:
        """Return whether the bytes of a program or library of this path tell something."""
        return naming.kind_of(path) is not None or naming.is_added(path)

    def add(self, path: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
        """Take a file's bytes, of which the first chunk has an ELF header if it is a program."""
        stream = iter(chunks)
        start = next(stream, b"")
        header = elf.read_header(start[: elf.HEADER_BYTES])
        if header is None or not header.runs:
            return
        code, kind = GpuCode(), naming.kind_of(path)
        is_parsed = self._may_parse(size_bytes)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as copy:
            for chunk in _all(start, stream):
                code.feed(chunk)
                if is_parsed:
                    copy.write(chunk)
            self._keep_code(path, code)
            tables = read_elf(copy) if is_parsed else None
            if tables is None:
                return
            text = b""
            if kind in _NAMED_BY_TEXT:
                copy.seek(0)
                text = copy.read(MAX_TEXT_BYTES)
        self._keep_tables(path, kind, tables, text)

    def facts(self) -> ImageFacts:
        """Return what is known of the image."""
        symbols = self._offered("libc", "GLIBC")
        release = _highest(one.version for one in self._of("libc") if one.version)
        return ImageFacts(
            libc="glibc" if symbols else "musl" if self._has_musl else None,
            glibc=release or symbols,
            glibc_symbols=symbols,
            glibcxx=self._offered("libstdcxx", "GLIBCXX"),
            kernel=_highest(one.tables.kernel for one in self._of("libc") if one.tables.kernel),
            needs=self._needs,
            mpis=mpi_library.mpis(self._libraries, self._plugins),
            mpi_needed=tuple(sorted(self._mpi_needed)),
            pmix=mpi_library.pmix_release(self._libraries),
            libfabric=self._networks("libfabric"),
            ucx=self._networks("ucx"),
            cuda_runtime=_highest(self._cuda_runtimes),
            cuda_code=tuple(self._cuda),
            machine_code=tuple(sorted(self._code.machine_code)),
            ptx=tuple(sorted(self._code.ptx)),
            amd_code=tuple(sorted(self._code.amd)),
            programs=tuple(sorted(self._programs - self._distributions)),
            incomplete=self._incomplete,
        )

    def _may_parse(self, size_bytes: int) -> bool:
        if self._parsed >= MAX_PARSED:
            self._incomplete = f"there are more than {MAX_PARSED} programs and libraries"
        elif time.thread_time() > self.budget_ends:
            self._incomplete = "reading all programs and libraries took too long"
        elif size_bytes <= MAX_PARSED_BYTES:
            self._parsed += 1
            return True
        return False

    def _keep_code(self, path: str, code: GpuCode) -> None:
        self._code.machine_code |= code.machine_code
        self._code.ptx |= code.ptx
        self._code.amd |= set(sorted(code.amd)[: MAX_LISTED - len(self._code.amd)])
        if (code.machine_code or code.ptx) and len(self._cuda) < MAX_LISTED:
            machine_code, ptx = tuple(sorted(code.machine_code)), tuple(sorted(code.ptx))
            self._cuda.append(CudaCode(path=path, machine_code=machine_code, ptx=ptx))

    def _keep_tables(self, path: str, kind: str | None, tables: ElfFile, text: bytes) -> None:
        if kind is not None and len(self._libraries) < MAX_LISTED:
            self._libraries.append(mpi_library.library(path, kind, tables, text))
        if not naming.is_added(path):
            return
        for family, version in tables.needs.items():
            if numbers(version) > numbers(self._needs.get(family, ("", ""))[0]):
                self._needs[family] = (version, path)
        if not naming.is_of_an_mpi(path) and len(self._mpi_needed) < MAX_LISTED:
            self._mpi_needed.update(filter(naming.is_mpi_library, tables.needed))

    def _of(self, kind: str) -> Sequence[Library]:
        return [one for one in self._libraries if one.kind == kind]

    def _offered(self, kind: str, family: str) -> str | None:
        return _highest(
            one.tables.offers[family] for one in self._of(kind) if family in one.tables.offers
        )

    def _networks(self, library: str) -> tuple[str, ...] | None:
        """Return the networks that libfabric or UCX can use, or None where it is not there."""
        known = naming.elf_facts()["networks"][library]
        names = map(posixpath.basename, self._plugins)
        plugins = [
            found[1] for found in map(naming.pattern(known["plugins"]).match, names) if found
        ]
        libraries = self._of(library)
        if not libraries and not plugins:
            return None
        needed = {known["needed"].get(name) for one in libraries for name in one.tables.needed}
        found = needed | {known["names"].get(name, name) for name in plugins}
        return tuple(sorted(name for name in found if name))


def _all(start: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from rest


def _highest(versions: Iterable[str]) -> str | None:
    return max(versions, key=numbers, default=None)
