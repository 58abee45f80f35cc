"""A fake of `spack install` for the tests of `packages.py`: it keeps a journal, and pushes as
Spack's autopush does.

    fake_spack.py INSTALLED LOCK SCOPE JOURNAL SECONDS LAYOUT [--no-cache] [--no-add] [/HASH]...

INSTALLED is a folder of its own for each build; `LAYOUT` is `build_cache` (before Spack 1.0) or
`v3`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
import time
from pathlib import Path

RECIPE = 'class Any(Package):\n    version("1.0", sha256="0")\n    version("2.0", branch="two")\n'


def tarball(name: str, content: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in (
            (f"opt/{name}/.spack/repos/fake/packages/{name}/package.py", RECIPE),
            (f"opt/{name}/bin/{name}", content),
        ):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def push(mirror: Path, layout: str, node: dict[str, str], content: str) -> None:
    """The archive first, then the file that names it."""
    data = tarball(node["name"], content)
    digest = hashlib.sha256(data).hexdigest()
    name = f"{node['name']}-{node['version']}-{node['hash']}"
    if layout == "v3":
        archive = mirror / "blobs" / "sha256" / digest[:2] / digest
        spec_file = (
            mirror / "v3" / "manifests" / "spec" / node["name"] / f"{name}.spec.manifest.json"
        )
        spec = {"version": 3, "data": [{"checksum": digest, "checksumAlgorithm": "sha256"}]}
    else:
        stem = f"linux-debian12-haswell-gcc-12-{name}"
        folder = (
            mirror
            / "build_cache"
            / "linux-debian12-haswell"
            / "gcc-12"
            / f"{node['name']}-{node['version']}"
        )
        archive = folder / f"{stem}.spack"
        spec_file = mirror / "build_cache" / f"{stem}.spec.json"
        spec = {"binary_cache_checksum": {"hash_algorithm": "sha256", "hash": digest}}
    for path in (archive, spec_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(data)
    spec_file.write_text(json.dumps(spec), "utf-8")


def main() -> None:
    installed, lock_file, scope, journal, seconds, layout = sys.argv[1:7]
    options = sys.argv[7:]
    nodes = json.loads(Path(lock_file).read_text("utf-8"))["concrete_specs"]
    urls = re.findall(r"url: file://(\S+)", (Path(scope) / "mirrors.yaml").read_text("utf-8"))
    taken, made = map(Path, urls[-2:])

    def tell(what: str, node: dict[str, str]) -> None:
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(f"{what} {node['name']}\n")

    def install(digest: str) -> None:
        node = {**nodes[digest], "hash": digest}
        if node.get("external") or (Path(installed) / digest).exists():
            return
        for edge in node.get("dependencies") or ():
            install(edge["hash"])
        if any(taken.rglob(f"*{digest}.spec*json")):
            tell("took", node)
        else:
            tell("began", node)
            time.sleep(float(seconds))
            if node["name"].startswith("broken"):
                sys.exit(1)
            tell("compiled", node)
            push(made, layout, node, str(time.time_ns()))
        (Path(installed) / digest).touch()

    wanted = [option[1:] for option in options if option.startswith("/")]
    for digest in wanted or nodes:
        install(digest)


if __name__ == "__main__":
    main()
