"""From `spack env activate --sh` on standard input to /opt/cic/activate.sh, for login shells and the entry point.

Spack prints whole values, made of this build step's own variables. Here a list of paths becomes what is put before the
value of the day. Nobody needs to start Spack to activate, and twice is the same as once.
"""

import os
import re
import shlex
import subprocess
import sys

VIEW = "/opt/view"
SCRIPT = "/opt/cic/activate.sh"
PROFILE = "/etc/profile.d/z10-cic.sh"

HEAD = """\
# Activates the Spack environment of this image. Made when the image was built; read by sh and bash.
_cic_before() {
    eval "_cic_now=\\${$1-}"
    case ":$_cic_now:" in
        *":$2:"*) ;;
        *) export "$1=$2${_cic_now:+:$_cic_now}" ;;
    esac
}
"""


def exports(text):
    """The variables that Spack sets, in its order."""
    for line in text.splitlines():
        match = re.match(r"export ([A-Za-z_][A-Za-z0-9_]*)=(.*?);?$", line)
        if match:
            yield match.group(1), "".join(shlex.split(match.group(2)))


def lines(text, inherited, python_finds_view):
    for name, value in exports(text):
        if not name.endswith("PATH"):
            yield "export %s=%s\n" % (name, shlex.quote(value))
            continue
        known = inherited.get(name, "").split(":")
        entries = [entry for entry in value.split(":") if entry and entry not in known]
        if name == "PYTHONPATH" and python_finds_view:
            entries = [entry for entry in entries if not entry.startswith(VIEW + "/")]
        for entry in reversed(entries):
            yield "_cic_before %s %s\n" % (name, shlex.quote(entry))
        if name == "MANPATH":
            yield "export MANPATH=\"${MANPATH%:}:\"\n"


FIND_VIEW = """
import os, site, sys
view = sys.argv[1]
packages = os.path.join(view, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
if not os.path.isdir(packages) or packages in site.getsitepackages():
    sys.exit(1)
folder = site.getsitepackages()[0]
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "cic-view.pth"), "w") as file:
    file.write(packages + "\\n")
"""


def let_python_find_view():
    """Let a Python that is not the view's own import from the view, behind what pip installs for it.

    Through PYTHONPATH the view would come first, and hide the versions that pip was asked for.
    """
    path = VIEW + "/bin:" + os.environ.get("PATH", "")
    for folder in path.split(":"):
        interpreter = os.path.join(folder, "python3")
        if os.access(interpreter, os.X_OK):
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            return subprocess.call([interpreter, "-c", FIND_VIEW, VIEW], env=environment) == 0
    return False


def main():
    text = sys.stdin.read()
    if not any(name == "SPACK_ENV" for name, _ in exports(text)):
        sys.exit("cic: error: Spack did not tell how to activate the environment")
    script = HEAD + "".join(lines(text, os.environ, let_python_find_view())) + "unset _cic_now\nunset -f _cic_before\n"
    with open(SCRIPT, "w") as file:
        file.write(script)
    os.makedirs(os.path.dirname(PROFILE), exist_ok=True)
    with open(PROFILE, "w") as file:
        file.write("[ ! -r %s ] || . %s\n" % (SCRIPT, SCRIPT))


if __name__ == "__main__":
    main()
