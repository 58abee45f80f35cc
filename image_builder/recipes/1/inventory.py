"""Lists the programs and libraries below some folders, and the kinds of instructions that a sample of them holds.

Run in a container of the base image, which holds a sample of the files of the image that is looked at:

    python3 inventory.py FOLDER... > inventory.json

It needs Python 3.6 and nothing of this library; with `objdump` it looks at instructions too.
`image_builder.audit.exported_files` reads what it prints.
"""

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

MAX_FILES = 20000
MAX_SAMPLES = 40
MAX_LINES = 400000
SECONDS = 20
AT_ONCE = 2


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
    texts = {line.partition(b"\t")[2] for line in itertools.islice(process.stdout, MAX_LINES)}
    process.stdout.close()
    process.kill()
    process.wait()
    kinds = set()
    for text in texts:
        words = text.split()
        kinds.update(words[:1])
        kinds.update(mark for mark in (b"%ymm", b"%zmm") if mark in text)
        if b"z" in text and any(word[:1] == b"z" and word[1:2].isdigit() for word in words[1:]):
            kinds.add(b"z-register")
    return sorted(kind.decode("ascii", "replace") for kind in kinds)


def listing(folders):
    files = elf_files(folders)
    paths = sample([path for path, _ in files])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(instructions, paths))
    listed = zip(paths, found)  # noqa: B905 - Python 3.6 has no strict
    sampled = {path: kinds for path, kinds in listed if kinds is not None}
    return {"files": [[path, start[:64].hex()] for path, start in files], "instructions": sampled}


if __name__ == "__main__":
    json.dump(listing(sys.argv[1:]), sys.stdout)
