"""Concretizes the environment with the packages alone that a best solution may hold. For `spack python`, Spack 1.2.

Spack gives its solver every package that any value of a variant may need: 650 for fftw, lz4, bzip2 and openmpi. Here
they are followed through the defaults of variants, and through the values that the environment, the configuration or
a package that was reached sets. Any other value has a penalty. So a solution with these packages is that of the whole
problem if the penalties, and what Spack minimizes before them, are the least there can be: 0, or for a root's version
the best of those asked for. Of anything else, an error among it, this ends with status 3 and nothing written: Spack is
to look at all packages.
"""

import argparse
import contextlib
import functools
import io
import sys

import spack.cmd.concretize
import spack.config
import spack.environment
import spack.package_base
import spack.repo
import spack.solver.asp as asp
import spack.solver.input_analysis as analysis
from spack.spec import Spec

IN_FULL = 3
LEAST_PENALTY = 240
ROOT_VERSIONS = (270, "version badness (roots)")
PENALTIES = {(265, "variant penalty (roots)"), (LEAST_PENALTY, "variant penalty (non-roots)")}
"""Spack's criteria, (priority, name), of packages that are built; the higher come first."""
SETTINGS = ("require", "prefer", "conflict", "variants")


class NotProven(Exception):
    """Whether the solution is that of the whole problem is not known."""


class Possible:
    """The packages of a best solution, and which variants of them may be set to what is not their default."""

    def __init__(self, graph):
        self.graph = graph
        self.packages, self.waiting = set(), []
        self.free, self.free_of_all = {}, set()

    def configure(self, packages):
        """Take in what the configuration says of packages."""
        for name, fields in packages.items():
            for key in SETTINGS:
                for text in texts(fields.get(key)):
                    self.take(Spec(text), of=name)
        for name in ["compiler-wrapper", *spack.repo.PATH.packages_with_tags("runtime"), *self.graph.libc_pkgs]:
            self.add(name)

    def take(self, spec, of=""):
        """Take in a spec that is asked for, or set by a package or the configuration."""
        for node in spec.traverse():
            name = node.name or of
            for value in node.variants.values():
                if value.propagate or name == "all":
                    self.free_of_all.add(value.name)
            for package in () if name == "all" else self.real(name):
                new = set(node.variants) - self.free.setdefault(package, set())
                if new:
                    self.free[package] |= new
                    self.waiting.append(package)
                self.add(package)

    def real(self, name):
        if self.graph.is_virtual(name):
            return [spec.name for spec in self.graph.providers_for(name)]
        return [name]

    def add(self, name):
        if name not in self.packages and spack.repo.PATH.exists(name):
            self.packages.add(name)
            self.waiting.append(name)

    def follow(self):
        """Take in all that the packages need, until there is nothing new."""
        while self.waiting:
            name = self.waiting.pop()
            if name in self.packages and name not in self.graph.libc_pkgs:
                self.follow_one(name, spack.repo.PATH.get_pkg_class(name))

    def follow_one(self, name, cls):
        for when, dependencies in cls.dependencies.items():
            if self.may_hold(name, when):
                for dependency in dependencies.values():
                    self.take(dependency.spec)
        for when, requirements in cls.requirements.items():
            if self.may_hold(name, when):
                for specs, _, _ in requirements:
                    for spec in specs:
                        self.take(spec, of=name)

    def may_hold(self, name, when):
        """Whether a condition of a package may be met, judged by its variants."""
        for value in when.variants.values():
            if value.name in self.free_of_all or value.name in self.free.get(name, ()):
                continue
            known = defaults(name, value.name)
            if known and value.values and not known.intersection(map(str, value.values)):
                return False
        return True


class Fewer(analysis.StaticAnalysis):
    """Spack's own analysis, which goes nowhere that only penalties lead to."""

    possible = None

    def unreachable(self, *, pkg_name, when_spec):
        if super().unreachable(pkg_name=pkg_name, when_spec=when_spec):
            return True
        return (
            isinstance(when_spec, Spec)
            and pkg_name in self.possible.packages
            and not self.possible.may_hold(pkg_name, when_spec)
        )


def texts(value):
    """The specs in a setting: a text, a list of texts, or of mappings that hold such."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in ("spec", "one_of", "any_of"):
            yield from texts(value.get(key))
    elif value:
        for entry in value:
            yield from texts(entry)


@functools.lru_cache(maxsize=None)
def defaults(name, variant):
    """The default values of a package's variant, in all its definitions; empty where it has none such."""
    definitions = spack.repo.PATH.get_pkg_class(name).variant_definitions(variant)
    return {str(value) for _, one in definitions for value in one.make_default().values}


def least(result, setup):
    """Raise `NotProven` unless what comes before the penalties, and they, are the least there can be."""
    before = {(one.priority, one.name): one.value for one in result.criteria if one.priority >= LEAST_PENALTY}
    if not PENALTIES | {ROOT_VERSIONS} <= set(before):
        raise NotProven("these criteria are not known")
    if any(value for criterion, value in before.items() if criterion != ROOT_VERSIONS):
        raise NotProven("something has a penalty")
    if before[ROOT_VERSIONS]:
        for asked, found in result.specs_by_input.items():
            if not found.external and (asked.name != found.name or found.version != best_version(asked, setup)):
                raise NotProven("%s is not of the best version" % found.name)


def best_version(asked, setup):
    """The version that Spack would take of a package if it could choose freely among those asked for."""
    cls = spack.repo.PATH.get_pkg_class(asked.name)
    ordered = spack.package_base.sort_by_pkg_preference(setup.possible_versions[asked.name], pkg=cls)
    preferred = setup.versions_from_yaml.get(asked.name, ())
    return next((version for version in [*preferred, *ordered] if version.satisfies(asked.versions)), None)


def use(environment):
    """Let Spack's solver see fewer packages, and its solutions be proven."""
    graph, settings = analysis.create_graph_analyzer(), spack.config.get("concretizer")
    if not isinstance(graph, analysis.StaticAnalysis):
        raise NotProven("Spack's static analysis is off")
    if settings.get("timeout"):
        raise NotProven("Spack may stop before it has the best solution")
    if settings.get("reuse") is not False:
        raise NotProven("Spack may take what was concretized before")
    if environment.has_groups() or settings.get("unify") is not True:
        raise NotProven("more than one problem is to be solved")
    possible = Possible(graph)
    possible.configure(spack.config.get("packages"))
    for spec in environment.user_specs:
        possible.take(spec)
    possible.follow()
    Fewer.possible = possible  # from here on: what has been followed is all that there is
    analysis.StaticAnalysis = Fewer
    solve = asp.PyclingoDriver.solve

    def proven(self, setup, specs, **settings):
        found = solve(self, setup, specs, **settings)
        if not set(setup.pkgs) <= possible.packages:
            raise NotProven("Spack needs packages that were not followed")
        least(found[0], setup)
        return found

    asp.PyclingoDriver.solve = proven


def main():
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            use(spack.environment.active_environment())
            parser = argparse.ArgumentParser()
            spack.cmd.concretize.setup_parser(parser)
            spack.cmd.concretize.concretize(parser, parser.parse_args([], argparse.Namespace(subparser=parser)))
    except NotProven as reason:
        print("cic: %s: all packages are looked at" % reason, file=sys.stderr)
        sys.exit(IN_FULL)
    except Exception:  # Spack itself is to tell what is wrong
        sys.exit(IN_FULL)
    print(said.getvalue(), end="")


main()
