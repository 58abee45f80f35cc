"""Takes out of Spack's own files what no two installs share: even.py TREE...

A TREE is a folder in which Spack installs. Logs and notes on how long it took go; in the files that Spack or others
read, times become that of the build's files, and what is in the order of the work is sorted. Python 3.6, and nothing of
the library.
"""

import hashlib
import json
import os
import shutil
import sys

TIME_S = int(os.environ["SOURCE_DATE_EPOCH"])
CREATED = "1980-01-02T00:00:00Z"
GONE = ("install_environment.json", "install_times.json", "archived-files")
LOGS = "spack-build-"


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(path, value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return text


def even_database(folder):
    """Even the list of what is installed, and return it."""
    index = os.path.join(folder, "index.json")
    content = read(index)
    installs = content["database"]["installs"]
    for record in installs.values():
        if "installation_time" in record:
            record["installation_time"] = float(TIME_S)
    text = write(index, content)
    verifier = os.path.join(folder, "index_verifier")
    if os.path.exists(verifier):  # Spack reads the list anew if this text is another one
        with open(verifier, "w") as file:
            file.write(hashlib.sha256(text.encode()).hexdigest()[:32])
    return installs


def even_notes(folder):
    """Even what Spack wrote down beside an installed package."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name in GONE or name.startswith(LOGS):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    manifest = os.path.join(folder, "install_manifest.json")
    if os.path.exists(manifest):
        content = read(manifest)
        for entry in content.values():
            if isinstance(entry, dict) and "time" in entry:
                entry["time"] = float(TIME_S)
        write(manifest, content)
    document = os.path.join(folder, "sbom", "spdx-2.3.json")
    if os.path.exists(document):
        content = read(document)
        content.pop("documentNamespace", None)
        content.setdefault("creationInfo", {})["created"] = CREATED
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        content["documentNamespace"] = "https://spdx.org/spdxdocs/spack-" + digest
        write(document, content)


def main():
    for tree in sys.argv[1:]:
        folder = os.path.join(tree, ".spack-db")
        if not os.path.exists(os.path.join(folder, "index.json")):
            continue
        for record in even_database(folder).values():
            notes = os.path.join(record.get("path") or "", ".spack")
            if (record.get("path") or "").startswith(tree + "/") and os.path.isdir(notes):
                even_notes(notes)


main()
