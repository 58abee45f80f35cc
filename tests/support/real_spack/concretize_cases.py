"""Concretize environments in the base image: `spack python concretize_cases.py FOLDER`.

Each folder below FOLDER holds a `spack.yaml`, and gets a `result.json`: whether it concretizes, and
what Spack says if not. One start of Spack serves all; each environment is a process of its own.
"""

import json
import os
import sys
import time

import spack.environment
import spack.repo


def concretize(folder):
    environment = spack.environment.Environment(folder)
    spack.environment.activate(environment)  # `unify` is read from the configuration
    environment.concretize(force=True)
    environment.write(regenerate=False)


def in_process(folder):
    """Return whether a folder's environment concretizes, in a process whose output is a file."""
    child = os.fork()
    if not child:
        output = os.open(os.path.join(folder, "output.txt"), os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            concretize(folder)
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, getattr(error, "long_message", "") or "", flush=True)
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def main(root):
    repository = getattr(spack.repo, "PATH", None) or spack.repo.path
    repository.provider_index  # noqa: B018 - made once, for all the processes
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not os.path.exists(os.path.join(folder, "spack.yaml")):
            continue
        began = time.time()
        concretizes = in_process(folder)
        with open(os.path.join(folder, "output.txt"), errors="replace") as file:
            said = "" if concretizes else file.read(3000)
        with open(os.path.join(folder, "result.json"), "w") as file:
            json.dump(
                {"concretizes": concretizes, "said": said, "seconds": time.time() - began}, file
            )


main(sys.argv[-1])
