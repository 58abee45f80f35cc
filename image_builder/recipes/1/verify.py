"""Compares a slim image with the full one, in a stage that is older than a description's code: verify.py FOLDER.

FOLDER is the step's. Everything that was delivered must find in the slim image what it finds in the full one:
libraries, interpreters, the ends of links. Prints JSON: the first of what is `missing`, and their `count`.
"""

import json
import os
import sys

from closure import Root, interpreters, needs

FULL = "/run/cic/full"
SLIM = "/run/cic/slim"
DELIVERED = "/run/cic/collected"
FIRST_LINES = "/run/cic/first-lines"
MAX_MISSING = 50


def delivered(step):
    for top, shown in ((DELIVERED, ""), (SLIM + step, step)):
        for parent, folders, files in os.walk(top):
            for name in folders + files:
                yield shown + os.path.join(parent, name)[len(top):]


def missing(full, slim, paths, search_path, preferred):
    """`PATH: WHAT` for everything that is found in the full image and not in the slim one."""
    for path in paths:
        place = slim.place(path)
        if place is None or not os.path.lexists(place):
            yield "%s: it is not there" % path
            continue
        here = needs(full, path, search_path, preferred)
        there = needs(slim, path, search_path, preferred) if any(here.values()) else {}
        for what, found in here.items():
            if found is not None and there.get(what) is None and not found.startswith(("/proc/", "/dev/", "/sys/")):
                yield "%s: %s" % (path, what)


def main(step):
    full, slim = Root(FULL), Root(SLIM)
    search_path = os.environ.get("PATH", "")
    preferred = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    found = list(missing(full, slim, delivered(step), search_path, preferred))
    with open(FIRST_LINES) as file:
        for line in file:
            for what, place in interpreters(full, line.split(), search_path).items():
                if place is not None and interpreters(slim, line.split(), search_path).get(what) is None:
                    found.append("a script of the step: %s" % what)
    json.dump({"missing": found[:MAX_MISSING], "count": len(found)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
