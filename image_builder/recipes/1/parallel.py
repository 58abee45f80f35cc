"""Run by a Spack before 1.2, whose `install` builds one package after the other or knows no jobserver:

    spack -e ENVIRONMENT python parallel.py SCOPE [INSTALL-OPTION]... [/HASH]...

Installs as `spack install` does, several packages at once: each in a process of its own, forked from this one, as soon
as what it needs is there. Where MAKEFLAGS names a jobserver of make, a package takes one of its tokens, but for the
first, and the makes below it take those that are left: there are never more jobs than the jobserver has tokens.

SCOPE is empty, or a folder with the mirrors.yaml that a Spack before 0.22 cannot read: packages are taken from its
binary mirrors, without signatures, and from no other mirror; each is pushed as soon as it is built to those with
`autopush`. A package that cannot be pushed is installed all the same.

What a package's process prints is passed on line by line, but an error is kept together with what follows it.
"""

import os
import re
import selectors
import signal
import sys
import time
import traceback

import spack.environment
import spack.error
import spack.main

ERROR = b"==> Error"
CHUNK_BYTES = 65536
PATIENCE_S = 10


class Tokens(object):
    """The jobserver's tokens that running packages hold. The first package runs on the token that came with us."""

    def __init__(self, flags):
        match = re.search(r"--jobserver-auth=(\d+),(\d+)", flags)
        self._writes_to = int(match.group(2)) if match else None
        # A description of its own: what make reads must go on blocking.
        self.fd = os.open("/proc/self/fd/" + match.group(1), os.O_RDONLY | os.O_NONBLOCK) if match else None
        self._running = 0
        self._held = []

    def acquire(self):
        """Whether one more package may run."""
        if self._running:
            try:
                token = os.read(self.fd, 1) if self.fd is not None else b""
            except BlockingIOError:
                return False
            if not token:
                return False
            self._held.append(token)
        self._running += 1
        return True

    def release(self):
        self._running -= 1
        if self._held:
            os.write(self._writes_to, self._held.pop())


class Queue(object):
    """What is still to be installed, in the order of need; what most others wait for comes first."""

    def __init__(self, specs):
        here = {spec.dag_hash(): spec for spec in specs}
        self._needs = {key: {needed.dag_hash() for needed in spec.dependencies()} & set(here)
                       for key, spec in here.items()}
        self._height = {}
        for key in here:
            self._measure(key)

    def _measure(self, key):
        """The longest chain of packages that wait for this one."""
        if key not in self._height:
            users = [other for other, needs in self._needs.items() if key in needs]
            self._height[key] = 1 + max([self._measure(user) for user in users] or [0])
        return self._height[key]

    def __bool__(self):
        return bool(self._needs)

    def ready(self):
        """The most urgent package that needs nothing that is not installed; None: all that is left has to wait."""
        able = [key for key, needs in self._needs.items() if not needs]
        return max(able, key=lambda key: (self._height[key], key)) if able else None

    def begin(self, key):
        del self._needs[key]

    def done(self, key):
        for needs in self._needs.values():
            needs.discard(key)


class Child(object):
    """The process that installs one package."""

    def __init__(self, key, install):
        self.key = key
        self._line, self._kept = b"", []
        self.fd, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.dup2(write, 1)
            os.dup2(write, 2)
            # Line by line: 1.1 does not flush what it says of a package's beginning.
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            os._exit(_status_of(install, key))
        os.close(write)

    def pass_on(self):
        """Print the lines that are complete; False at the end of the output."""
        data = os.read(self.fd, CHUNK_BYTES)
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            self._print(line)
        return bool(data)

    def _print(self, line):
        if self._kept or line.startswith(ERROR):
            self._kept.append(line)
        else:
            _write([line])

    def end(self):
        """Print what was kept; whether the package is installed."""
        os.close(self.fd)
        _write(self._kept + ([self._line] if self._line else []))
        return os.waitpid(self.pid, 0)[1] == 0

    def stop(self, how):
        try:
            os.killpg(self.pid, how)
        except OSError:
            pass  # it has just ended


def _write(lines):
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


def _status_of(install, key):
    """The exit status of one package's process, which returns to nothing."""
    try:
        try:
            return 1 if install(key) else 0
        except spack.error.SpackError as error:
            error.die()
    except SystemExit as end:
        return 0 if end.code in (None, 0) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def run(queue, install, tokens):
    """Install all that is queued; whether everything was. After the first failure nothing more begins."""
    selector, failed = selectors.DefaultSelector(), False
    while queue or selector.get_map():
        while not failed and queue.ready() and tokens.acquire():
            key = queue.ready()
            queue.begin(key)
            child = Child(key, install)
            selector.register(child.fd, selectors.EVENT_READ, child)
        if not selector.get_map():
            return not failed and not queue
        waits_for_token = not failed and queue.ready() and tokens.fd is not None
        if waits_for_token:
            selector.register(tokens.fd, selectors.EVENT_READ, None)
        events = selector.select()
        if waits_for_token:
            selector.unregister(tokens.fd)
        for event, _ in events:
            child = event.data
            if child is None or child.pass_on():
                continue
            selector.unregister(child.fd)
            tokens.release()
            if child.end():
                queue.done(child.key)
            elif not failed:
                failed = True
                _stop([entry.data for entry in selector.get_map().values()])
    return not failed


def _stop(children):
    """End what is still at work, so that a failure does not wait for it."""
    for child in children:
        child.stop(signal.SIGTERM)
    deadline = time.time() + PATIENCE_S
    while time.time() < deadline and any(_is_alive(child.pid) for child in children):
        time.sleep(0.1)
    for child in children:
        child.stop(signal.SIGKILL)


def _is_alive(pid):
    """Whether a child has not ended yet; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wanted(environment, hashes):
    """What is not installed of these packages, or of the whole environment, and what they need."""
    every = {spec.dag_hash(): spec for spec in environment.all_specs()}
    roots = [every[key] for key in hashes] if hashes else list(every.values())
    below = {node.dag_hash(): node for root in roots for node in root.traverse()}
    return [spec for spec in below.values() if not spec.installed]


def installer(options):
    """What installs one package, in a process of its own: the view is made once, at the end."""
    parser = spack.main.make_argument_parser()
    command = parser.add_command("install")

    def install(key):
        spack.environment.Environment.write = lambda *_, **__: None
        spack.environment.Environment.regenerate_views = lambda *_: None
        return command(parser, parser.parse_args(["install", "--no-add", "--only", "package", *options, "/" + key]))

    return install


def main(scope, *arguments):
    """The exit status of the whole install."""
    hashes = [word[1:] for word in arguments if word.startswith("/")]
    options = [word for word in arguments if not word.startswith("/") and word != "--no-add"]
    if scope:
        sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
        import autopush

        autopush.use(scope)
    environment = spack.environment.active_environment()
    if not run(Queue(wanted(environment, hashes)), installer(options), Tokens(os.environ.get("MAKEFLAGS", ""))):
        return 1
    if not hashes:
        with environment.write_transaction():
            environment.write(regenerate=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
