"""Collects below /cic-slim what a slim image gets: what Spack keeps, and what pip, scripts and packages added.

Debian's own files are not copied. /cic-slim.facts tells what is to be done on the runtime base before the rest is
copied there: `packages` to be installed, the `versions` of all that are here, and the files of users and groups; and
after that, which `alternatives` were chosen. Python 3.6, and nothing of the library.
"""

import collections
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys

import accounts
from closure import Root, first_line, interpreters, needs, read_elf

BEFORE = "/run/cic/before"
RUNTIME = "/run/cic/runtime"
OUT = "/cic-slim"
FACTS = "/cic-slim.facts"
KEPT = "/run/cic/kept.json"
ASKED = "/run/cic/packages.apt"
FIRST_LINES = "/run/cic/first-lines"
PASSED_OVER = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/cache", "/var/log", "/var/lib/apt",
               "/var/lib/dpkg", "/root/.cache", "/root/.spack", "/opt/cic/.spack-env", "/software-catalog", OUT,
               FACTS, "/etc/ld.so.cache", "/etc/alternatives", "/etc/mtab", "/etc/hosts", "/etc/hostname",
               "/etc/resolv.conf", "/.dockerenv",
               *("/etc/" + name + end for name in accounts.FILES for end in ("", "-")))
"""What a running system, Debian's packages and Spack make by themselves."""
SHARED_PREFIXES = ("/", "/usr", "/usr/local", "/bin", "/opt")
NOT_TO_RUN = re.compile(r"-(dev|dbg|dbgsym|doc|headers|source)\Z")


class Packages:
    """Debian's packages below a root, as `name:architecture`: versions, sources, who owns which file.

    `configuration` has the MD5 sums of the configuration files as the packages brought them.
    """

    def __init__(self, top=""):
        self.top = top
        self.versions, self.sources, self.configuration, self._owners = {}, {}, {}, None
        status = top + "/var/lib/dpkg/status"
        if not os.path.exists(status):
            sys.exit("cic: error: the base image is not made of Debian packages")
        for fields in stanzas(status):
            if fields.get("Status", "").endswith(" installed"):
                package = "%(Package)s:%(Architecture)s" % fields
                self.versions[package] = fields["Version"]
                self.sources[package] = fields.get("Source", fields["Package"]).split()[0]
                self.configuration.update(re.findall(r"^ (/.+) ([0-9a-f]{32})\b", fields.get("Conffiles", ""), re.M))
        self.automatic = {fields["Package"] for fields in stanzas(top + "/var/lib/apt/extended_states")
                          if fields.get("Auto-Installed") == "1"}

    def owner(self, path):
        """The package that a file came with, or None. Folders may be links: /lib is /usr/lib, as packages name it."""
        if self._owners is None:
            self._owners = dict(self._files())
        other = path[4:] if path.startswith("/usr/") else "/usr" + path
        return self._owners.get(path) or self._owners.get(other)

    def was_edited(self, path):
        """Whether a configuration file is not what its package brought."""
        if path not in self.configuration or not os.path.isfile(self.top + path):
            return False
        with open(self.top + path, "rb") as file:
            return hashlib.md5(file.read()).hexdigest() != self.configuration[path]

    def named(self, asked):
        """The packages that a description means by `name`, `name:architecture`, or either with `=version`."""
        name = asked.split("=")[0]
        return [package for package in self.versions if name in (package, bare(package))]

    def _files(self):
        folder, known = self.top + "/var/lib/dpkg/info", {bare(package): package for package in self.versions}
        for name in sorted(os.listdir(folder)):
            if name.endswith(".list"):
                package = name[:-5] if ":" in name else known.get(name[:-5])
                with open(os.path.join(folder, name), errors="surrogateescape") as file:
                    for line in file if package in self.versions else ():
                        yield line.rstrip("\n"), package

    def family(self, package):
        """The packages here that were made of the same source, without those that are only for building."""
        return [name for name, source in self.sources.items()
                if source == self.sources.get(package) and (name == package or not NOT_TO_RUN.search(bare(name)))]


def bare(package):
    """A package's name without its architecture."""
    return package.split(":")[0]


def stanzas(path):
    if not os.path.exists(path):
        return
    with open(path, errors="replace") as file:
        for block in file.read().split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z-]+): *(.*(?:\n[ \t].*)*)", block, re.MULTILINE))
            if "Package" in fields:
                yield fields


def alternatives(top=""):
    """Debian's alternatives below a root: (`auto` or `manual`, the program chosen) by name."""
    found, folder = {}, top + "/var/lib/dpkg/alternatives"
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        link = os.path.join(top + "/etc/alternatives", name)
        if os.path.islink(link):
            with open(os.path.join(folder, name), errors="surrogateescape") as file:
                found[name] = (file.readline().strip(), os.readlink(link))
    return found


def below(path, folders):
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def entries(top, passed_over):
    """Every path below a folder, folders first; without Spack's own notes (`.spack`)."""
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders
                            if name != ".spack" and os.path.join(parent, name) not in passed_over)
        for name in folders + sorted(files):
            path = os.path.join(parent, name)
            if path not in passed_over:
                yield path


def differs(path):
    """Whether a path is not what it was before the step added things."""
    now = os.lstat(path)
    try:
        then = os.lstat(BEFORE + path)
    except OSError:
        return True
    if stat.S_ISDIR(now.st_mode) and stat.S_ISDIR(then.st_mode):
        return (now.st_mode, now.st_uid, now.st_gid) != (then.st_mode, then.st_uid, then.st_gid)
    return ((now.st_mode, now.st_uid, now.st_gid, now.st_size, now.st_mtime)
            != (then.st_mode, then.st_uid, then.st_gid, then.st_size, then.st_mtime))


def added(kept, packages, changed):
    """What came since the Debian packages of the description, aside from Spack's and newer packages' files.

    Of those packages' files, the edited ones.
    """
    for path in entries("/", frozenset(PASSED_OVER) | frozenset(kept["apart"])):
        if differs(path) and (packages.owner(path) not in changed or packages.was_edited(path)):
            yield path


def of_prefix(prefix):
    """What was installed below a prefix."""
    if os.path.isdir(prefix):
        yield prefix
        for path in entries(prefix, frozenset()):
            yield path


class Collection:
    """What is delivered, and the packages that it needs; grows until nothing new is needed."""

    def __init__(self, packages):
        self.root, self.packages = Root(), packages
        self.paths, self.needed = collections.OrderedDict(), set()
        self.search_path = os.environ.get("PATH", "")
        self.preferred = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]

    def deliver(self, paths):
        waiting = list(paths)
        while waiting:
            path = waiting.pop()
            if path in self.paths:
                continue
            self.paths[path] = None
            if os.path.islink(path) or (os.path.isfile(path) and (os.access(path, os.X_OK) or read_elf(path))):
                for place in needs(self.root, path, self.search_path, self.preferred).values():
                    waiting += self.take(place)

    def take(self, place):
        """What has to be delivered so that `place` is there: itself, unless a package brings it."""
        if place is None or below(place, PASSED_OVER):
            return []
        links, end = self.root.walk(place)
        owners = self.owners(place)
        self.needed.update(owners)
        if end is None or os.path.isdir(end) or self.packages.owner(end):
            return []
        return [link for link in links if not self.packages.owner(link)] + [end]

    def owners(self, place):
        """The packages that a file, and the links to it, came with (`python3` and `python3.11`)."""
        links, end = self.root.walk(place)
        names = [link for link in links if not os.path.isdir(link)] + ([end] if end else [])
        return set(filter(None, map(self.packages.owner, names)))

    def interpreter(self, words):
        """A script's first line: what it starts, with all that was made of the same source (`python3-minimal`)."""
        for place in interpreters(self.root, words, self.search_path).values():
            self.deliver(self.take(place))
            for owner in self.owners(place) if place else ():
                self.needed.update(self.packages.family(owner))

    def external(self, external):
        """What belongs to a package that was there before Spack."""
        prefix = external["prefix"].rstrip("/") or "/"
        if prefix not in SHARED_PREFIXES and not self.packages.owner(prefix):
            self.deliver(of_prefix(prefix))
            return
        owners = set().union(*map(self.owners, self._programs(prefix, external["executables"])))
        if not owners and external["runs"]:
            sys.exit("cic: error: no Debian package is known to hold %(name)s of %(prefix)s" % external)
        for owner in owners:
            self.needed.update(self.packages.family(owner))

    def _programs(self, prefix, patterns):
        for folder in (prefix + "/bin", prefix + "/sbin"):
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                if any(re.search(pattern, name) for pattern in patterns):
                    yield os.path.join(folder, name)


def strip(paths):
    """Remove what only a debugger reads from what Spack built. Files with several names are left alone."""
    program = shutil.which("strip")
    for path in paths if program else ():
        elf = read_elf(path)
        if elf is None or os.stat(path).st_nlink > 1:
            continue
        aside = path + ".cic-stripped"
        options = [program, "--strip-unneeded", "--preserve-dates", "-o", aside, path]
        done = subprocess.call(options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
        if done and read_elf(aside) == elf:
            shutil.copystat(path, aside)
            info = os.stat(path)
            os.chown(aside, info.st_uid, info.st_gid)
            os.rename(aside, path)
        elif os.path.exists(aside):
            os.unlink(aside)


def copy(paths):
    """Copy into the collection as everything is: links, hard links, owners, modes and times."""
    listed = "\0".join("." + path for path in sorted(paths)) + "\0"
    os.makedirs(OUT)
    reader = subprocess.Popen(["tar", "-C", "/", "--null", "--no-recursion", "--xattrs", "--numeric-owner", "-cf", "-",
                               "-T", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer = subprocess.Popen(["tar", "-C", OUT, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-"],
                              stdin=reader.stdout)
    reader.stdout.close()
    reader.stdin.write(listed.encode("utf-8", "surrogateescape"))
    reader.stdin.close()
    if reader.wait() or writer.wait():
        sys.exit("cic: error: not everything could be copied")


def with_parents(paths):
    """The paths and the folders that they lie in, which come with their own modes."""
    found = set(paths)
    for path in paths:
        parent = os.path.dirname(path)
        while parent != "/" and parent not in found:
            found.add(parent)
            parent = os.path.dirname(parent)
    return found


def asked():
    """The description's packages, as it writes them."""
    if not os.path.exists(ASKED):
        return []
    with open(ASKED) as file:
        return file.read().split()


def to_install(needed, packages, before):
    """`package version` for everything needed, and the description's names that are virtual packages'."""
    provided = []
    for name in asked():
        found = packages.named(name)
        needed.update(found)
        if not found and not before.named(name):
            provided.append(name)
    return ["%s %s" % (package, packages.versions[package]) for package in sorted(needed)] + provided


def write_fact(name, text):
    with open(os.path.join(FACTS, name), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def write_accounts():
    for name in accounts.FILES:
        try:
            text = accounts.merged("/etc", RUNTIME + "/etc", name)
        except accounts.Conflict as error:
            sys.exit("cic: error: the runtime base does not go with the full image: %s" % error)
        if text is not None:
            write_fact(name, text)


def main():
    kept = {"prefixes": [], "externals": [], "apart": []}
    if os.path.exists(KEPT):
        with open(KEPT) as file:
            kept = json.load(file)
    os.mkdir(FACTS, 0o700)
    write_accounts()
    packages, before = Packages(), Packages(BEFORE)
    changed = {name for name, version in packages.versions.items() if before.versions.get(name) != version}
    collection = Collection(packages)
    for prefix in kept["prefixes"]:
        collection.deliver(of_prefix(prefix))
    collection.deliver(added(kept, packages, changed))
    for external in kept["externals"]:
        collection.external(external)
    with open(FIRST_LINES) as file:
        for line in file:
            collection.interpreter(line.split())
    for path in list(collection.paths):
        if not os.path.islink(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            collection.interpreter(first_line(path))
    earlier = alternatives(BEFORE)
    chosen = {name: choice for name, choice in alternatives().items()
              if choice[0] == "manual" or choice != earlier.get(name)}
    for name, choice in chosen.items():
        if choice != earlier.get(name):
            collection.deliver(collection.take(choice[1]))
    collection.needed.update(package for package in changed if bare(package) not in packages.automatic)
    if collection.needed & {package for name in packages.named("python3") for package in packages.family(name)}:
        collection.needed.update(packages.named("python3-pip"))
    write_fact("packages", "".join(line + "\n" for line in to_install(collection.needed, packages, before)))
    write_fact("alternatives", "".join("%s %s %s\n" % (name, *choice) for name, choice in chosen.items()))
    write_fact("versions", "".join("%s %s\n" % pair for pair in sorted(packages.versions.items())))
    paths = [path for path in collection.paths if os.path.lexists(path)]
    copy(with_parents(paths))
    strip([OUT + path for path in paths if below(path, kept["prefixes"]) and not os.path.islink(path)
           and os.path.isfile(path)])


if __name__ == "__main__":
    main()
