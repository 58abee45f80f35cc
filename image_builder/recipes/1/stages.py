"""Remove the stages of packages that are no roots of the environment, and with them what failed or is left over."""

import json
import os
import shutil

STAGES = "/tmp/root/spack-stage"


def main():
    with open("/opt/cic/spack.lock") as lock:
        roots = [root["hash"] for root in json.load(lock)["roots"]]
    for name in os.listdir(STAGES) if os.path.isdir(STAGES) else ():
        if not any(name.endswith(root) for root in roots):
            path = os.path.join(STAGES, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


main()
