"""Run by `spack -e <environment> python`: what of the installed packages is needed to run the environment's roots.

Prints JSON: `prefixes` of packages that Spack built, `externals` with what tells their files, and `apart`, the folders
that are Spack's own and hold nothing else that an image needs.
"""

import json
import sys

import spack.environment
import spack.paths
import spack.repo
import spack.store


def repository():
    return getattr(spack.repo, "PATH", None) or spack.repo.path


def install_root():
    return str(getattr(spack.store, "STORE", None).root if hasattr(spack.store, "STORE") else spack.store.root)


def main():
    roots = [concrete for _, concrete in spack.environment.active_environment().concretized_specs()]
    kept, run = {}, {root.dag_hash() for root in roots}
    for root in roots:
        for spec in root.traverse(deptype=("link", "run")):
            kept[spec.dag_hash()] = spec
            run.update(needed.dag_hash() for needed in spec.dependencies(deptype=("run",)))
    externals = []
    for key, spec in sorted(kept.items()):
        if spec.external:
            package = repository().get_pkg_class(spec.fullname)
            externals.append({"name": spec.name, "prefix": str(spec.prefix), "runs": key in run,
                              "executables": list(getattr(package, "executables", None) or [])})
    apart = [str(spack.paths.prefix), install_root()] + [str(repo.root) for repo in repository().repos]
    json.dump({"prefixes": sorted(str(spec.prefix) for spec in kept.values() if not spec.external),
               "externals": externals, "apart": apart}, sys.stdout)


main()
