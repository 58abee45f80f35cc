"""Lists the programs and libraries below some folders, and the kinds of instructions that a sample of them holds.

Run inside the image while it is built, after the install and before anybody else's code:

    python3 inventory.py FOLDER... > inventory.json

It needs Python 3.6 and nothing of this library; with `objdump` it looks at instructions too. `image_builder.inventory`
reads what it prints.
"""

import json
import os
import subprocess
import sys

MAX_FILES = 20000
MAX_SAMPLES = 40
MAX_LINES = 400000
SECONDS = 20


def elf_files(folders):
    """Paths and first bytes of programs and shared libraries, links aside, in a stable order."""
    found = []
    for folder in folders:
        for parent, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = os.path.join(parent, name)
                if os.path.islink(path) or len(found) >= MAX_FILES:
                    continue
                start = first_bytes(path)
                if start[:4] == b"\x7fELF" and len(start) >= 20 and start[16 if start[5] == 1 else 17] in (2, 3):
                    found.append((path, start))
    return found


def first_bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def sample(paths):
    """Some of the files, spread over the list: neighbours belong to the same package."""
    step = max(1, -(-len(paths) // MAX_SAMPLES))
    return paths[::step]


def instructions(path):
    """The mnemonics of a file, and %ymm, %zmm or z-registers where such registers are used; None without objdump."""
    try:
        process = subprocess.Popen(["timeout", str(SECONDS), "objdump", "-d", "--no-show-raw-insn", path],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    kinds = set()
    for number, line in enumerate(process.stdout):
        columns = line.split(b"\t")
        if len(columns) >= 2 and columns[1].strip():
            kinds.add(columns[1].split()[0])
            rest = b"\t".join(columns[1:])
            kinds.update(mark for mark in (b"%ymm", b"%zmm") if mark in rest)
            if b"z" in rest and any(word[:1] == b"z" and word[1:2].isdigit() for word in rest.split()[1:]):
                kinds.add(b"z-register")
        if number > MAX_LINES:
            break
    process.stdout.close()
    process.kill()
    process.wait()
    return sorted(kind.decode("ascii", "replace") for kind in kinds)


def listing(folders):
    files = elf_files(folders)
    sampled = {}
    for path in sample([path for path, _ in files]):
        found = instructions(path)
        if found is None:
            break
        sampled[path] = found
    return {"files": [[path, start[:64].hex()] for path, start in files], "instructions": sampled}


if __name__ == "__main__":
    json.dump(listing(sys.argv[1:]), sys.stdout)
