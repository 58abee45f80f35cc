"""Compares the hash of each node of the environment's spack.lock with the one that Spack computes.

It runs inside Spack (0.19 to 1.2), which takes the hashes of a lockfile for true when it installs. Externals are left
out: nothing is built of them, and Spack 1.1 reads other hashes of them than it wrote.
"""

import sys

import spack.environment
import spack.hash_types

wrong = []
for spec in spack.environment.active_environment().all_specs():
    if not spec.external and spec.spec_hash(spack.hash_types.dag_hash) != spec.dag_hash():
        wrong.append("%s@%s/%s" % (spec.name, spec.version, spec.dag_hash(7)))
if wrong:
    more = " and %d more" % (len(wrong) - 5) if len(wrong) > 5 else ""
    sys.exit("cic: error: nodes of spack.lock are not what their hashes say: " + ", ".join(sorted(wrong)[:5]) + more)
print("==> The hashes of spack.lock are those of its nodes.")
