"""For `parallel.py` on a Spack before 0.22, whose `install` does not push what it has built.

A scope's mirrors.yaml is for newer releases, and these cannot read it: packages are taken from its binary mirrors,
without signatures, and from no other mirror; each is pushed as soon as it is built to those with `autopush`. A package
that cannot be pushed is installed all the same.
"""

import os

import llnl.util.tty as tty
import spack.binary_distribution as binaries
import spack.config
import spack.hooks
import spack.installer
import spack.util.spack_yaml as yaml


def mirrors_of(scope):
    """The mirrors of a scope, by name; none where there is no such file."""
    path = os.path.join(scope, "mirrors.yaml")
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return yaml.load(file)["mirrors"]


class Autopush(object):
    """A hook of Spack that pushes to one mirror."""

    def __init__(self, name, url):
        self._name, self._url = name, url

    def post_install(self, spec, *_):
        if spec.external or getattr(spec.package, "installed_from_binary_cache", False):
            return
        try:
            push(spec, self._url)
        except (Exception, SystemExit) as error:  # whatever it is, the package is there
            tty.warn("{0} was not pushed: {1}".format(spec.name, error))
        else:
            tty.msg("{0}: Pushed to build cache: '{1}'".format(spec.name, self._name))


def push(spec, url):
    if not hasattr(binaries, "PushOptions"):  # before 0.20
        binaries._build_tarball(spec, url, force=True, unsigned=True, allow_root=True)
        return
    before_0_21 = {"allow_root": True} if "allow_root" in binaries.PushOptions._fields else {}
    binaries.push_or_raise(spec, url, binaries.PushOptions(force=True, unsigned=True, **before_0_21))


def take_only_from(urls):
    """Let Spack look for built packages in these mirrors, whatever its configuration and its indices say."""
    mirrors = {"taken{0}".format(number): {"fetch": url, "push": url} for number, url in enumerate(urls)}
    try_to_take = spack.installer._try_install_from_binary_cache

    def take(package, explicit, unsigned=False, **more):
        try:
            with spack.config.override(spack.config.InternalConfigScope("taken", {"mirrors:": mirrors})):
                return try_to_take(package, explicit, unsigned=True, **more)
        except Exception as error:  # these releases trip over that themselves
            tty.warn("{0} was not taken, and is built: {1}".format(package.name, error))
            package.remove_prefix()
            return False

    spack.installer._try_install_from_binary_cache = take
    binaries.get_mirrors_for_spec = lambda spec, *_, **__: binaries.try_direct_fetch(spec)


def use(scope):
    """Let every install of this process take and push packages as the scope says."""
    mirrors = mirrors_of(scope)
    take_only_from([str(fields["url"]) for fields in mirrors.values() if fields.get("binary")])
    for name, fields in mirrors.items():
        if fields.get("autopush"):
            spack.hooks.post_install.hooks.append(("cic", Autopush(name, str(fields["url"]))))
