"""Writes down which files pip took: used.py OUT, with pip's own report on standard input.

A line of JSON for each package, in order of name. An index's address is left out: another mirror has the same files.
Python 3.6, and nothing of the library.
"""

import json
import posixpath
import sys
import urllib.parse


def taken(entry):
    """What is kept of an entry of the report: the file with its digest, or the commit of a repository."""
    came, metadata = entry.get("download_info", {}), entry.get("metadata", {})
    url = urllib.parse.urlsplit(came.get("url", ""))
    archive = came.get("archive_info", {})
    hashes = archive.get("hashes") or dict([archive["hash"].split("=", 1)] if archive.get("hash") else [])  # pip 22, 23
    kept = {"name": metadata.get("name"), "version": metadata.get("version"), "sha256": hashes.get("sha256"),
            "commit": came.get("vcs_info", {}).get("commit_id"), "subdirectory": came.get("subdirectory")}
    if archive:
        kept["file"] = urllib.parse.unquote(posixpath.basename(url.path))
    if entry.get("is_direct"):
        kept["url"] = urllib.parse.urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
    return {key: value for key, value in kept.items() if value}


def main():
    report = json.load(sys.stdin)
    lines = sorted(json.dumps(taken(entry), sort_keys=True) for entry in report["install"])
    with open(sys.argv[1], "w") as out:
        out.writelines(line + "\n" for line in lines)


main()
