"""The users and groups of a slim image: its base's and the full image's in one. Python 3.6, and nothing of the library.

A file keeps the numbers of its user and group when it is copied, so that a name has to have the full image's number.
"""

import os

IDS = ("passwd", "group")
MEMBERS = ("group", "gshadow")
FILES = (*IDS, "shadow", "gshadow")
"""The files of /etc; what is a password's hash stays as it is."""


class Conflict(Exception):
    """The slim image's base has a name or a number for something else than the full image."""


def merged(full, base, file):
    """The text of an account file: the base's entries as the full image has them, then those that it alone has.

    Both are folders such as /etc. None: the base has no such file. Raises `Conflict`.
    """
    if not os.path.exists(os.path.join(base, file)):
        return None
    entries, added = read(os.path.join(base, file)), read(os.path.join(full, file))
    if file in IDS:
        check(added, entries, "user" if file == "passwd" else "group")
    for name, fields in added.items():
        if file in MEMBERS and name in entries:
            members = fields[3].split(",") + entries[name][3].split(",")
            fields = [*fields[:3], ",".join(sorted(set(filter(None, members))))]
        entries[name] = fields
    return "".join(":".join(fields) + "\n" for fields in entries.values())


def read(path):
    """The entries of a file by name, in its order."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(":") for line in file]
    return {fields[0]: fields for fields in lines if len(fields) > 3}


def check(full, base, what):
    """That no name has two numbers, and none of the base a number that the full image gave to others alone."""
    holders = {fields[2]: name for name, fields in full.items()}
    for name, fields in base.items():
        if name in full and full[name][2] != fields[2]:
            raise Conflict("the %s %s is %s there and %s in the full image" % (what, name, fields[2], full[name][2]))
        if name not in full and fields[2] in holders:
            raise Conflict("the %s %s is %s there, which is %s in the full image"
                           % (what, name, fields[2], holders[fields[2]]))
