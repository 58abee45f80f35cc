"""Prints as JSON what this Spack knows. Runs in the base image, with `spack python`, from 0.19 on.

    spack python spack_knowledge.py SECONDS NAME,...

Its package classes are asked, not its solver: the versions and variants of packages, which MPIs can
be built, which versions take a GPU's variant, which CUDA takes which compilers and architectures.
Loading all packages is most of the work. The packages NAME come first, and only they are printed
when the others take longer than SECONDS.
"""

import inspect
import json
import re
import sys
import time

import spack
import spack.config
import spack.repo
import spack.spec

FORMAT = 2
MARK = "cic-spack-knowledge "
REPOSITORY = getattr(spack.repo, "PATH", None) or spack.repo.path
GPU_VARIANTS = {"cuda": "cuda_arch", "rocm": "amdgpu_target"}
"""The variant that names the architecture, for each."""
WITH_CUDA = ("openmpi", "mpich", "kokkos", "amgx", "magma", "raja")
WITH_ROCM = ("mpich", "kokkos", "magma", "raja", "hypre", "amrex")
"""Packages made from CudaPackage and ROCmPackage: what all of them say is what those classes say."""


def package(name):
    """The class of a package, or None where this Spack cannot load it."""
    try:
        return REPOSITORY.get_pkg_class(name)
    except Exception:
        return None


def variants(cls):
    """The variants of a package: name -> the conditions under which it has them.

    Before 0.23 the class holds name -> (variant, conditions), from then on condition -> name -> variant.
    """
    found = {}
    for key, value in cls.variants.items():
        if isinstance(value, dict):
            for name in value:
                found.setdefault(str(name), []).append(key)
        else:
            found[str(key)] = list(value[1])
    return found


def directives(entries):
    """Pairs of what a directive says and its condition, however this release keeps them."""
    for key, value in entries.items():
        if isinstance(value, dict):  # dependencies
            for inner, dependency in value.items():
                yield (dependency.spec, inner if not isinstance(inner, str) else key)
        elif value and isinstance(value[0], tuple):  # conflicts
            for inner, _ in value:
                yield (as_spec(key), inner) if is_conflict_first() else (as_spec(inner), key)


def is_conflict_first():
    """Until 0.22 conflicts are kept as what must not be -> conditions, later the other way round."""
    return release() < (0, 22)


def as_spec(value):
    return spack.spec.Spec(value) if isinstance(value, str) else value


def release():
    return tuple(int(part) for part in re.findall(r"\d+", spack.spack_version.split(".dev")[0])[:2])


def satisfies(spec, condition):
    """Whether a spec does meet a condition; until 0.19 the looser question was the usual one."""
    if release() < (0, 20):
        return spec.satisfies(condition, strict=True)
    return spec.satisfies(condition)


def may_satisfy(spec, condition):
    """Whether a spec can be made more concrete so that it meets a condition."""
    return spec.satisfies(condition) if release() < (0, 20) else spec.intersects(condition)


def why_not_built(cls):
    """Why this Spack cannot build a package (`external`, `manual`, another `platform`), or nothing."""
    if not cls.has_code or install_only_raises(cls):
        return "external"
    if getattr(cls, "manual_download", False):
        return "manual"
    elsewhere = [str(wanted) for wanted in required_platforms(cls)]
    return "platform" if elsewhere and "linux" not in elsewhere else ""


def install_only_raises(cls):
    """`install` does nothing but raise an error, as packages do that stand for a vendor's software."""
    try:
        source = inspect.getsource(cls.install)
    except (AttributeError, OSError, TypeError):
        return False
    body = re.sub(r'^\s*(?:@.*\n\s*)*def .*?:\n|^\s*#.*\n|"""(?:.|\n)*?"""\s*', "", source)
    return body.strip().startswith("raise InstallError")


def required_platforms(cls):
    """The platforms that a package requires without a condition."""
    for condition, groups in getattr(cls, "requirements", {}).items():
        if str(condition).strip():
            continue
        for group in groups:
            for wanted in group[0]:
                if getattr(as_spec(wanted), "architecture", None) and as_spec(wanted).architecture.platform:
                    yield as_spec(wanted).architecture.platform


def refused(cls, variant, conditions):
    """The versions of a package that cannot be built with a variant, as its own conflicts say."""
    forbidden = list(directives(cls.conflicts))
    found = []
    for version in cls.versions:
        plain = spack.spec.Spec("{}@{}".format(cls.name, version))
        asked = spack.spec.Spec("{}@{}+{}".format(cls.name, version, variant))
        if not any(may_satisfy(plain, condition) for condition in conditions) or any(
            satisfies(asked, conflict) and satisfies(asked, condition)
            for conflict, condition in forbidden
        ):
            found.append(str(version))
    return found


def needs_architecture(cls, variant):
    """Whether a package conflicts with a GPU's variant where no architecture is named."""
    named = "{}+{} {}=none".format(cls.name, variant, GPU_VARIANTS[variant])
    with_none, plain = spack.spec.Spec(named), spack.spec.Spec("{}+{}".format(cls.name, variant))
    return any(
        satisfies(with_none, conflict)
        and satisfies(with_none, condition)
        and not (satisfies(plain, conflict) and satisfies(plain, condition))
        for conflict, condition in directives(cls.conflicts)
    )


def provided(cls):
    """What a package provides: until 0.22 what is provided -> conditions, later the other way round."""
    for key, value in cls.provided.items():
        for spec in [key] if release() < (0, 22) else value:
            yield spec


def interfaces(cls):
    """(versions of a package, versions of MPI's interface that they provide)."""
    for key, value in cls.provided.items():
        for other in value:
            spec, condition = (key, other) if release() < (0, 22) else (other, key)
            if as_spec(spec).name == "mpi":
                yield str(as_spec(condition).versions), str(as_spec(spec).versions)


def common(names, of):
    """What `of` says of each of the packages that are there."""
    found = [set(of(cls)) for cls in map(package, names) if cls is not None]
    return sorted(set.intersection(*found)) if found else []


def part(spec, name):
    """The versions that a spec wants of a dependency."""
    for node in spec.traverse(root=False):
        if node.name == name:
            return str(node.versions)
    return ""


def compiler_of(spec):
    """The compiler that `%gcc@12:` names; from 1.0 on it is a dependency."""
    compiler = getattr(spec, "compiler", None) if release() < (1, 0) else None
    if compiler is not None:
        return compiler.name, str(compiler.versions)
    return next(((node.name, str(node.versions)) for node in spec.traverse(root=False)), None)


def target_of(spec):
    """The targets that a spec names, at whichever of its nodes: `^cuda@:8 target=x86_64:` has them at cuda."""
    for node in spec.traverse():
        if node.architecture and node.architecture.target:
            return str(node.architecture.target)
    return ""


def cuda_compilers(cls):
    """(compiler, its versions, CUDA versions, targets) that do not go together."""
    for conflict, condition in directives(cls.conflicts):
        cuda, compiler = part(condition, "cuda"), compiler_of(conflict)
        if cuda and compiler is not None and compiler[0] != "cuda":
            yield (*compiler, cuda, target_of(condition) or target_of(conflict))


def architectures(variant, runtime):
    """(architecture, versions of the runtime that know it), for packages that take `variant`."""
    def of(cls):
        for dependency, condition in directives(cls.dependencies):
            chosen = condition.variants.get(variant) if dependency.name == runtime else None
            if chosen is not None:
                for value in chosen.value if isinstance(chosen.value, tuple) else (chosen.value,):
                    yield str(value), str(dependency.versions)
    return of


def values_of(variant):
    """The values that a variant may have."""
    def of(cls):
        for key, value in cls.variants.items():
            for name, definition in (value.items() if isinstance(value, dict) else [(key, value[0])]):
                if str(name) == variant:
                    yield from map(str, getattr(definition.values, "feature_values", definition.values) or ())
    return of


def compilers():
    """The compilers that this Spack has configured, as specs."""
    try:
        import spack.compilers
        found = spack.compilers.all_compilers()
        return sorted({"{}@{}".format(one.spec.name, str(one.spec.versions).lstrip("=")) for one in found})
    except (AttributeError, ImportError):
        import spack.compilers.config
        return sorted({"{}@{}".format(one.name, one.version) for one in spack.compilers.config.all_compilers()})


def externals():
    """The packages that this Spack's own configuration takes from the system, as specs."""
    found = {}
    for name, fields in (spack.config.get("packages") or {}).items():
        specs = [str(entry.get("spec", "")) for entry in fields.get("externals") or ()]
        if specs:
            found[name] = specs
    return found


def system():
    import spack.platforms
    host = spack.platforms.host()
    return str(host.operating_system("default_os"))


def targets():
    """The CPU targets that this Spack can build for."""
    try:
        from spack.vendor.archspec import cpu
    except ImportError:
        from archspec import cpu
    return sorted(cpu.TARGETS)


def of_package(cls):
    """[versions, {branch version: [url, branch]}, variants, what it provides, {GPU's variant:
    versions that do not take it}, whether `spack external find` looks for it, GPU's variants that
    need an architecture].
    """
    branches = {}
    for version, source in cls.versions.items():
        if "branch" in source:
            url = str(source.get("git") or getattr(cls, "git", ""))
            branches[str(version)] = [url, str(source["branch"])]
    own = variants(cls)
    refusals = {name: refused(cls, name, own[name]) for name in GPU_VARIANTS if name in own}
    return [
        [str(version) for version in cls.versions],
        branches,
        sorted(own),
        sorted({as_spec(spec).name for spec in provided(cls)}),
        {name: versions for name, versions in refusals.items() if versions},
        hasattr(cls, "executables") or hasattr(cls, "libraries"),
        [name for name in GPU_VARIANTS if name in own and needs_architecture(cls, name)],
    ]


def load(names, deadline):
    """name -> `of_package`, or None when the deadline comes first."""
    found = {}
    for name in names:
        if time.time() > deadline:
            return None
        cls = package(name)
        try:
            found[name] = of_package(cls) if cls is not None else None
        except Exception:
            found[name] = None  # one package that this Spack cannot read does not hide the others
    return found


def main(seconds, first):
    deadline = time.time() + float(seconds)
    there = REPOSITORY.all_package_names(include_virtuals=True)
    some = load(sorted(set(first.split(",")) & set(there)), float("inf"))
    everything = load(sorted(there), deadline)
    known = some if everything is None else everything
    mpis = [name for name, fields in known.items() if fields is not None and "mpi" in fields[3]]
    print(
        MARK
        + json.dumps(
            {
                "format": FORMAT,
                "release": spack.spack_version,
                "system": system(),
                "targets": targets(),
                "compilers": compilers(),
                "externals": externals(),
                "mpis": {name: why_not_built(package(name)) for name in mpis},
                "mpi_interfaces": {name: sorted(set(interfaces(package(name)))) for name in mpis},
                "cuda_archs": common(WITH_CUDA, architectures("cuda_arch", "cuda")),
                "cuda_arch_values": common(WITH_CUDA, values_of("cuda_arch")),
                "amdgpu_targets": common(WITH_ROCM, values_of("amdgpu_target")),
                "cuda_compilers": common(WITH_CUDA, cuda_compilers),
                "packages": known,
                "has_all_packages": everything is not None,
            }
        )
    )


main(*sys.argv[-2:])
