"""Installs what spack.lock names and shares the built packages with other builds, through Spack's own binary mirrors.

    python3 packages.py install CACHE LOCK SCOPE [--build-roots] -- SPACK-INSTALL-COMMAND...
    python3 packages.py copy MIRROR CACHE HASHES
    python3 packages.py list MIRROR HASHES
    python3 packages.py aside CACHE HASHES

The second copies the packages of a mirror whose hashes are lines of the file HASHES, where CACHE has none: a site's
folder is such a CACHE, too. The third prints what a mirror holds of them, an object of JSON in each line, and does not
look at the archives; the last takes them out of a CACHE.

CACHE is a folder that all builds of one kind see at once (a BuildKit cache mount). It holds:

    shared/    a Spack binary mirror: what is in here is complete, and is never overwritten
    builds/    a folder for each build at work: the packages it takes, and the mirror that Spack pushes its own to
    locks/     a file for each package: whoever holds its lock may build the package
    aside/     entries that were found broken

Spack sees its build's own folder only. What it pushes is checked, and then published by hard links: first the package,
then the file that names it. A package that another build is building is waited for, and while waiting no lock is held,
so that two builds never wait for each other. Losing the folder, or any part of it, costs time only.

It runs on Python 3.6 and newer, and needs nothing else.
"""

import contextlib
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading

INTERVAL_S = 0.5
MIN_FREE_BYTES = 1024 ** 3
CHUNK_BYTES = 1024 ** 2
MAX_RECIPE_BYTES = 1024 ** 2
SPEC_FILE = re.compile(r"-([a-z0-9]{32})\.spec(?:\.manifest)?\.json$")
SHA256 = re.compile(r"[0-9a-f]{64}$")
MOVING = {"develop", "main", "master", "head", "trunk", "stable"}
OWN_RECIPE = re.compile(r"(?:^|/)\.spack/repos/.*/packages/[^/]+/package\.py$")

MIRRORS = """\
mirrors:
{sources}  taken:
    url: file://{taken}
    binary: true
    source: false
    signed: false
  made:
    url: file://{made}
    binary: true
    source: false
    signed: false
    autopush: true
"""


class Broken(Exception):
    """An entry of a mirror that cannot be used: its message says why."""


class Graph(object):
    """The packages of a spack.lock that are installed, externals aside, dependencies first."""

    def __init__(self, lock):
        self._nodes = lock["concrete_specs"]
        self.roots = [root["hash"] for root in lock["roots"]]
        self.order = []
        seen = set()
        for root in self.roots:
            self._visit(root, seen)

    def _visit(self, node, seen):
        if node in seen:
            return
        seen.add(node)
        for dependency in sorted(self._dependencies(node)):
            self._visit(dependency, seen)
        if not self._nodes[node].get("external"):
            self.order.append(node)

    def _dependencies(self, node):
        return [edge["hash"] for edge in self._nodes[node].get("dependencies") or ()]

    def needs(self, node):
        """The packages that have to be there before this one."""
        return [needed for needed in self._dependencies(node) if not self._nodes[needed].get("external")]

    def name(self, node):
        return self._nodes[node]["name"]

    def version(self, node):
        return str(self._nodes[node]["version"])


class Entry(object):
    """One package of a Spack binary mirror: `spec_file` names `files`, each with its sha256. Paths are in the mirror.

    Raises `Broken` when what is there is no entry, or not all of one.
    """

    def __init__(self, mirror, spec_file):
        self.mirror, self.spec_file = mirror, spec_file
        try:
            with io.open(os.path.join(mirror, spec_file), encoding="utf-8") as file:
                content = json.load(file)
            self.files = _manifest_files(content) if "data" in content else self._tarball(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Broken("%s: %s" % (spec_file, error)) from error
        if not self.files or not all(SHA256.match(digest) for _, digest in self.files):
            raise Broken("%s names nothing" % spec_file)

    def _tarball(self, content):
        """Before Spack 1.0: one archive, in folders that are named after the package."""
        stem = os.path.basename(self.spec_file)[:-len(".spec.json")]
        found = glob.glob(os.path.join(self.mirror, "build_cache", "*", "*", "*", glob.escape(stem) + ".spack"))
        if len(found) != 1:
            raise Broken("%s has no archive" % self.spec_file)
        return [(os.path.relpath(found[0], self.mirror), content["binary_cache_checksum"]["hash"])]

    def check(self):
        """Raises `Broken` unless every file is what the spec file says."""
        for path, digest in self.files:
            try:
                found = _sha256(os.path.join(self.mirror, path))
            except OSError as error:
                raise Broken("%s: %s" % (path, error)) from error
            if found != digest:
                raise Broken("%s does not have the checksum that %s tells" % (path, self.spec_file))

    def recipe(self):
        """The package.py that the package was built with; Spack keeps it beside what it installs."""
        for path, _ in self.files:
            with contextlib.suppress(tarfile.TarError, OSError, EOFError), \
                    tarfile.open(os.path.join(self.mirror, path), "r:*") as archive:
                for member in archive:
                    if OWN_RECIPE.search(member.name) and member.isreg() and member.size <= MAX_RECIPE_BYTES:
                        return archive.extractfile(member).read().decode("utf-8", "replace")
        return ""


def _manifest_files(content):
    """Spack 1.0 and newer: files that are named by their checksum."""
    return [("blobs/sha256/%s/%s" % (part["checksum"][:2], part["checksum"]), part["checksum"])
            for part in content["data"]]


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def spec_files(mirror):
    """The spec files of a mirror, by the hash of their package."""
    found = {}
    for pattern in (("build_cache", "*.spec.json"), ("v3", "manifests", "spec", "*", "*.spec.manifest.json")):
        for path in glob.glob(os.path.join(glob.escape(mirror), *pattern)):
            match = SPEC_FILE.search(path)
            if match:
                found[match.group(1)] = os.path.relpath(path, mirror)
    return found


def may_be_shared(version, recipe):
    """Whether a package of this version always holds the same: branches and tags do not say what they hold.

    `recipe` is the text of the package.py; what it inherits from other packages is not looked at.
    """
    if version in MOVING or version.startswith("git.") or "=" in version or not re.search("[0-9]", version):
        return False
    for call in re.finditer(r"\bversion\(\s*[\"']%s[\"']([^()]*)\)" % re.escape(version), recipe):
        words = call.group(1)
        if re.search(r"\b(?:branch|tag|git)\s*=", words) and not re.search(r"\b(?:commit|sha256)\s*=", words):
            return False
    return True


class Lock(object):
    """The right to build one package, as long as it is held; the kernel takes it from a build that was killed."""

    def __init__(self, path):
        self._path = path
        self._file = None

    def acquire(self, wait=False):
        """Whether it is held now. With `wait`, not before it is."""
        file = open(self._path, "a")  # noqa: SIM115 - it is closed by release, or with the process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def release(self):
        if self._file is not None:
            self._file.close()
            self._file = None


class Cache(object):
    """The folder that builds share."""

    def __init__(self, folder):
        self.shared, self.locks, self.builds, self.aside = (
            os.path.join(folder, name) for name in ("shared", "locks", "builds", "aside"))
        for path in (self.shared, self.locks, self.builds, self.aside):
            os.makedirs(path, exist_ok=True)

    def lock(self, node):
        return Lock(os.path.join(self.locks, node))

    @contextlib.contextmanager
    def guard(self):
        """One at a time: a build's folder is made, or those of ended builds are removed."""
        lock = Lock(os.path.join(self.locks, "builds"))
        lock.acquire(wait=True)
        yield
        lock.release()

    def available(self, wanted):
        """The sound entries of these packages, by hash, and the broken ones with what is wrong with them."""
        sound, broken = {}, {}
        for node, spec_file in spec_files(self.shared).items():
            if node not in wanted:
                continue
            try:
                entry = Entry(self.shared, spec_file)
                entry.check()
                sound[node] = entry
            except Broken as error:
                broken[node] = (spec_file, str(error))
        return sound, broken

    def publish(self, entry):
        """Let all builds see a checked entry. Only for who holds the package's lock."""
        for path, digest in entry.files:
            target = os.path.join(self.shared, path)
            if os.path.exists(target) and _sha256(target) != digest:
                self.put_aside(path)
            _link(os.path.join(entry.mirror, path), target)
        _link(os.path.join(entry.mirror, entry.spec_file), os.path.join(self.shared, entry.spec_file))

    def put_aside(self, path):
        """Take a file out of the shared mirror. Only for who holds the package's lock."""
        number = len(os.listdir(self.aside))
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self.shared, path),
                      os.path.join(self.aside, "%d-%d-%s" % (number, os.getpid(), os.path.basename(path))))

    def salvage(self):
        """Publish what builds that were killed had finished, and remove their folders."""
        with self.guard():
            for name in os.listdir(self.builds):
                folder = os.path.join(self.builds, name)
                alive = Lock(os.path.join(folder, "alive"))
                if alive.acquire():
                    self._salvage(os.path.join(folder, "made"))
                    shutil.rmtree(folder, ignore_errors=True)
                    alive.release()

    def _salvage(self, mirror):
        for node, spec_file in spec_files(mirror).items():
            lock = self.lock(node)
            if lock.acquire():
                self._publish_leftover(node, mirror, spec_file)
                lock.release()

    def _publish_leftover(self, node, mirror, spec_file):
        with contextlib.suppress(Broken):
            entry = Entry(mirror, spec_file)
            entry.check()
            if node not in spec_files(self.shared) and may_be_shared(_version_in(entry), entry.recipe()):
                self.publish(entry)
                say("%s was finished by a build that was ended" % os.path.basename(spec_file))


def _version_in(entry):
    """The version in a spec file's name, `…name-version-hash.spec.json`."""
    return SPEC_FILE.sub("", os.path.basename(entry.spec_file)).rpartition("-")[2]


def _link(source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.link(source, target)


class Workplace(object):
    """A folder of one's own in the cache, whose `made` is salvaged if its owner is killed."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = os.path.join(cache.builds, "%d-%s" % (os.getpid(), os.urandom(8).hex()))
        self.taken, self.made = os.path.join(self.folder, "taken"), os.path.join(self.folder, "made")
        self._alive = Lock(os.path.join(self.folder, "alive"))

    def __enter__(self):
        with self.cache.guard():
            os.makedirs(self.taken)
            os.makedirs(self.made)
            self._alive.acquire()
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)
        self._alive.release()

    def copy(self, node, mirror, spec_file):
        """Publish a sound entry of another mirror, unless it is there or on its way."""
        lock = self.cache.lock(node)
        if not lock.acquire():
            return
        with contextlib.suppress(Broken):
            entry = Entry(mirror, spec_file)
            for path in [path for path, _ in entry.files] + [spec_file]:
                os.makedirs(os.path.dirname(os.path.join(self.made, path)), exist_ok=True)
                shutil.copyfile(os.path.join(mirror, path), os.path.join(self.made, path))
            copied = Entry(self.made, spec_file)
            copied.check()
            if node not in spec_files(self.cache.shared):
                self.cache.publish(copied)
        lock.release()


class Build(Workplace):
    """One build's workplace, and the packages that it holds the locks of."""

    def __init__(self, cache, graph, own, sources):
        super(Build, self).__init__(cache)
        self.graph = graph
        self.shareable = set(graph.order) - own
        self.held = {}
        self._sources = sources
        self._published = set()

    def __exit__(self, *exception):
        self.release(list(self.held))
        super(Build, self).__exit__(*exception)

    def mirrors(self):
        """Spack's configuration for this build."""
        return MIRRORS.format(sources=self._sources, taken=self.taken, made=self.made)

    def install(self, spack):
        """Install everything; returns Spack's exit status."""
        while True:
            missing = self.take()
            foreign = self.lock(missing)
            if not foreign:
                return self.run(spack)
            ready = self.ready(missing, foreign)
            self.release(set(self.held) - set(ready))
            if ready:
                status = self.run([*spack, "--no-add"] + ["/" + node for node in ready])
                if status != 0:
                    return status
            else:
                self.wait_for(foreign[0])

    def take(self):
        """Bring what is published into this build's mirror; returns what is not there, dependencies first."""
        here = set(spec_files(self.taken)) | set(spec_files(self.made))
        sound, broken = self.cache.available(self.shareable - here)
        for entry in sound.values():
            for path in [path for path, _ in entry.files] + [entry.spec_file]:
                _link(os.path.join(self.cache.shared, path), os.path.join(self.taken, path))
        for node, (spec_file, problem) in broken.items():
            self.repair(node, spec_file, problem)
        here |= set(sound)
        return [node for node in self.graph.order if node in self.shareable and node not in here]

    def repair(self, node, spec_file, problem):
        """Put a broken entry aside, unless another build is at it already."""
        lock = self.cache.lock(node)
        if lock.acquire():
            if node in self.cache.available({node})[1]:
                say("%s is put aside and built again: %s" % (self.graph.name(node), problem))
                self.cache.put_aside(spec_file)
            lock.release()

    def lock(self, missing):
        """Take the locks of what is missing; returns those that other builds hold.

        What was published between the look at the cache and the lock is not built again.
        """
        foreign = []
        for node in missing:
            lock = self.cache.lock(node)
            if lock.acquire():
                self.held[node] = lock
            else:
                foreign.append(node)
        just_published, _ = self.cache.available(set(self.held))
        if just_published:
            self.release(just_published)
            self.take()
        return foreign

    def ready(self, missing, foreign):
        """The packages that are locked here and need nothing that another build is building."""
        waiting = set(foreign)
        for node in self.graph.order:
            if waiting.intersection(self.graph.needs(node)):
                waiting.add(node)
        return [node for node in missing if node in self.held and node not in waiting]

    def wait_for(self, node):
        """Wait until the build that holds this package has published it, or has ended. Nothing is held meanwhile."""
        say("waiting for %s, which another build is building" % self.graph.name(node))
        lock = self.cache.lock(node)
        lock.acquire(wait=True)
        lock.release()

    def release(self, nodes):
        for node in list(nodes):
            self.held.pop(node).release()

    def run(self, command):
        """Run Spack, and publish each package as soon as it is pushed."""
        ended = threading.Event()
        publisher = threading.Thread(target=self._publish_until, args=(ended,))
        publisher.start()
        try:
            return subprocess.call(command, close_fds=False)  # it may have a jobserver of make
        finally:
            ended.set()
            publisher.join()

    def _publish_until(self, ended):
        while not ended.wait(INTERVAL_S):
            self.publish()
        self.publish()

    def publish(self):
        """Publish what Spack has pushed since, and let others have its locks."""
        for node, spec_file in spec_files(self.made).items():
            if node in self._published:
                continue
            try:
                entry = Entry(self.made, spec_file)
                entry.check()
            except Broken:
                continue  # it is still being written
            self._published.add(node)
            if node in self.graph.order and may_be_shared(self.graph.version(node), entry.recipe()):
                self._publish(node, entry)
            self.release({node} & set(self.held))

    def _publish(self, node, entry):
        """What was built although another build has published it, or is building it, stays private."""
        lock = self.held.get(node) or self.cache.lock(node)
        if node not in self.held and not lock.acquire():
            return
        with contextlib.suppress(OSError):
            if node not in spec_files(self.cache.shared):
                self.cache.publish(entry)
        lock.release()


def say(text):
    print("cic: " + text, flush=True)


def install(arguments):
    at = arguments.index("--")
    options, spack = arguments[:at], arguments[at + 1:]
    folder, lock_file, scope = options[:3]
    with io.open(lock_file, encoding="utf-8") as file:
        graph = Graph(json.load(file))
    sources = os.path.join(scope, "mirrors.yaml")
    site = ""
    if os.path.exists(sources):
        with io.open(sources, encoding="utf-8") as file:
            site = file.read().replace("mirrors:\n", "", 1)
    if shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        say("the package cache is not used: its disk is nearly full")
        return subprocess.call([*spack, "--no-cache"], close_fds=False)
    cache = Cache(folder)
    cache.salvage()
    with Build(cache, graph, set(graph.roots) if "--build-roots" in options else set(), site) as build:
        with io.open(sources, "w", encoding="utf-8") as file:
            file.write(build.mirrors())
        return build.install(spack)


def copy(mirror, folder, hashes):
    wanted = _read_hashes(hashes)
    cache = Cache(folder)
    cache.salvage()
    with Workplace(cache) as workplace:
        wanted.difference_update(spec_files(cache.shared))
        for node, spec_file in spec_files(mirror).items():
            if node in wanted:
                workplace.copy(node, mirror, spec_file)
    return 0


def list_entries(mirror, hashes):
    wanted = _read_hashes(hashes)
    for node, spec_file in sorted(spec_files(mirror).items()):
        if node in wanted:
            told = {"node": node, "spec_file": spec_file}
            try:
                told["files"] = Entry(mirror, spec_file).files
                told["spec_sha256"] = _sha256(os.path.join(mirror, spec_file))
            except (Broken, OSError) as error:
                told["broken"] = str(error)
            print(json.dumps(told, sort_keys=True))
    return 0


def put_aside(folder, hashes):
    cache = Cache(folder)
    wanted = _read_hashes(hashes)
    for node, spec_file in spec_files(cache.shared).items():
        if node in wanted:
            lock = cache.lock(node)
            if lock.acquire():
                cache.put_aside(spec_file)
                lock.release()
    return 0


def _read_hashes(path):
    with io.open(path, encoding="utf-8") as file:
        return set(file.read().split())


COMMANDS = {"copy": copy, "list": list_entries, "aside": put_aside}


def main(arguments):
    return COMMANDS[arguments[0]](*arguments[1:]) if arguments[0] in COMMANDS else install(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
