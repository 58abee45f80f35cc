"""What a program needs to run, looked for as the dynamic linker, the kernel and a shell would, in any root folder.

It runs nothing, so that a root other than the running one can be looked at. Python 3.6, and nothing of the library.
"""

import os
import re
import struct
from collections import namedtuple

MAX_LINKS = 40
MAX_LINE = 256
SYSTEM_FOLDERS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")

Elf = namedtuple("Elf", "kind interpreter needed rpath runpath")


class Root:
    """A file system below `top`; every path given and returned is as seen from inside."""

    def __init__(self, top=""):
        self.top = top.rstrip("/")
        self._ends = {}
        self._elves = {}
        self._system = None

    def host(self, path):
        """Where a path of the root lies on this system; its own links are followed by `end` alone."""
        return self.top + path

    def place(self, path):
        """Where the file itself lies on this system, be it a link; None when its folder is not there."""
        folder, _, name = path.rpartition("/")
        end = self.end(folder)
        return None if end is None else self.host(end.rstrip("/") + "/" + name)

    def walk(self, path):
        """The links on the way to what a path means, and that itself (None when it is not there)."""
        waiting, done, links = path.split("/"), [], []
        while waiting:
            part = waiting.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = "/" + "/".join([*done, part])
            try:
                target = os.readlink(self.host(here))
            except OSError:
                if not os.path.lexists(self.host(here)):
                    return links, None
                done.append(part)
                continue
            links.append(here)
            if len(links) > MAX_LINKS:
                return links, None
            if target.startswith("/"):
                done = []
            waiting = target.split("/") + waiting
        return links, "/" + "/".join(done)

    def end(self, path):
        """What a path means after all links, or None."""
        if path not in self._ends:
            self._ends[path] = self.walk(path)[1]
        return self._ends[path]

    def elf(self, path):
        """The ELF facts of the file at a path; None when it is none."""
        if path not in self._elves:
            end = self.end(path)
            self._elves[path] = read_elf(self.host(end)) if end is not None else None
        return self._elves[path]

    def system_folders(self):
        """Where the linker looks at last: its configuration, and its own folders."""
        if self._system is None:
            self._system = list(dict.fromkeys(list(self._configured("/etc/ld.so.conf", 0)) + list(SYSTEM_FOLDERS)))
        return self._system

    def _configured(self, path, depth):
        end = self.end(path)
        if end is None or depth > 5:
            return
        with open(self.host(end), errors="replace") as file:
            lines = [line.split("#")[0].strip() for line in file]
        for line in lines:
            if line.startswith("include "):
                folder, _, pattern = line.split(None, 1)[1].rpartition("/")
                wanted = re.compile(re.escape(pattern).replace(r"\*", ".*") + r"\Z")
                names = os.listdir(self.host(folder)) if os.path.isdir(self.host(folder)) else []
                for name in sorted(filter(wanted.match, names)):
                    for found in self._configured(folder + "/" + name, depth + 1):
                        yield found
            elif line.startswith("/"):
                yield line

    def program(self, name, path):
        """Where a command of that name is found on a PATH, or None."""
        for folder in path.split(":"):
            end = self.end(folder + "/" + name) if folder.startswith("/") else None
            if end is not None and os.path.isfile(self.host(end)):
                return folder + "/" + name
        return None


def read_elf(path):
    """What the dynamic linker reads in a program or library; None for other files and for broken ones."""
    try:
        with open(path, "rb") as file:
            return _parse(file)
    except (OSError, struct.error, ValueError, UnicodeDecodeError):
        return None


def _parse(file):
    ident = file.read(64)
    if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        return None
    order, wide = "<" if ident[5] == 1 else ">", ident[4] == 2
    kind, machine = struct.unpack_from(order + "HH", ident, 16)
    if kind not in (2, 3):
        return None
    if wide:
        offset, = struct.unpack_from(order + "Q", ident, 32)
        size, count = struct.unpack_from(order + "HH", ident, 54)
    else:
        offset, = struct.unpack_from(order + "I", ident, 28)
        size, count = struct.unpack_from(order + "HH", ident, 42)
    interpreter, dynamic, loads = "", None, []
    for number in range(count):
        file.seek(offset + number * size)
        header = file.read(size)
        if wide:
            segment, _, at, address, _, length = struct.unpack_from(order + "IIQQQQ", header)
        else:
            segment, at, address, _, length = struct.unpack_from(order + "IIIII", header)
        if segment == 1:
            loads.append((address, at, length))
        elif segment == 2:
            dynamic = (at, length)
        elif segment == 3:
            file.seek(at)
            interpreter = file.read(min(length, 4096)).rstrip(b"\0").decode()
    entries = _dynamic(file, dynamic, order, wide) if dynamic else []
    texts = _texts(file, entries, loads)
    return Elf((machine, ident[4], ident[5]), interpreter, [texts(value) for tag, value in entries if tag == 1],
               _folders(texts, entries, 15), _folders(texts, entries, 29))


def _dynamic(file, dynamic, order, wide):
    at, length = dynamic
    file.seek(at)
    block, entry = file.read(length), struct.Struct(order + ("qQ" if wide else "iI"))
    entries = []
    for position in range(0, len(block) - entry.size + 1, entry.size):
        tag, value = entry.unpack_from(block, position)
        if tag == 0:
            break
        entries.append((tag, value))
    return entries


def _texts(file, entries, loads):
    """A function from an offset in the string table to its text."""
    address = next((value for tag, value in entries if tag == 5), None)
    length = next((value for tag, value in entries if tag == 10), 0)
    start = next((at + address - low for low, at, size in loads if address is not None and low <= address < low + size),
                 None)
    if start is None:
        return lambda offset: ""
    file.seek(start)
    table = file.read(length)
    return lambda offset: table[offset:table.find(b"\0", offset)].decode()


def _folders(texts, entries, wanted):
    return [folder for tag, value in entries if tag == wanted for folder in texts(value).split(":") if folder]


def libraries(root, path, preferred=()):
    """The libraries that the ELF file at `path` loads, and those that they load: (name, where it was found or None).

    `preferred` are the folders of LD_LIBRARY_PATH.
    """
    start = root.elf(path)
    if start is None:
        return {}
    found, waiting = {}, [(path, ())]
    while waiting:
        user, inherited = waiting.pop(0)
        elf = root.elf(user)
        if elf is None:
            continue
        origin = os.path.dirname(user)
        rpath = tuple(_expanded(folder, origin) for folder in elf.rpath) if not elf.runpath else ()
        own = [] if elf.runpath else list(rpath + inherited)
        folders = own + list(preferred) + [_expanded(folder, origin) for folder in elf.runpath] + root.system_folders()
        for name in elf.needed:
            if name not in found:
                found[name] = _look_for(root, name, folders, start.kind)
                if found[name] is not None:
                    waiting.append((root.end(found[name]), rpath + inherited))
    return found


def _look_for(root, name, folders, kind):
    for place in [name] if "/" in name else (folder + "/" + name for folder in folders):
        end = root.end(place)
        elf = root.elf(end) if end is not None else None
        if elf is not None and elf.kind == kind:
            return place
    return None


def _expanded(folder, origin):
    return folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


def first_line(path):
    """The words of a script's first line behind `#!`; empty for what is no script."""
    try:
        with open(path, "rb") as file:
            start = file.read(MAX_LINE)
    except OSError:
        return []
    if start[:2] != b"#!":
        return []
    return start[2:].split(b"\n")[0].decode("utf-8", "replace").split()


def interpreters(root, words, path):
    """The programs that a script's first line starts: (how it names it, where it was found or None)."""
    found = {}
    for word in words[:2]:
        if word.startswith("/"):
            found[word] = word if root.end(word) is not None else None
    if words and os.path.basename(words[0]) == "env":
        name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
        if name and not name.startswith("/"):
            found[name] = root.program(name, path)
    return found


def needs(root, path, search_path, preferred=()):
    """What the file at `path` needs: (what it is, where it was found or None)."""
    place = root.place(path)
    if place is not None and os.path.islink(place):
        return {"-> " + os.readlink(place): root.end(path)}
    if place is None or not os.path.isfile(place):
        return {}
    elf = root.elf(path)
    if elf is not None:
        found = libraries(root, path, preferred)
        if elf.interpreter:
            found[elf.interpreter] = elf.interpreter if root.end(elf.interpreter) is not None else None
        return found
    return interpreters(root, first_line(place), search_path)
