"""Makes the `spack.yaml` of an environment from its description, the machine and the site."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from image_builder.errors import Misconfigured
from image_builder.recipe.demands import Demand, without_variant
from image_builder.recipe.release_rules import meetable, virtual_if_named
from image_builder.recipe.release_settings import fitting_package, fitting_section
from image_builder.recipe.view import view_of
from image_builder.request.build_request import Machine
from image_builder.request.mpi_gpu import Gpu, Mpi
from image_builder.sources.description import Description
from image_builder.spack import spec as spack_spec
from image_builder.spack.compiler_names import package_of
from image_builder.spack.releases import FIRST_WITH_GROUPS

STAGES = "/tmp/root/spack-stage"
"""Where existing post-install scripts look for the stages of packages."""
_UNUSED_SETTINGS = {
    "targets": "the machine decides",
    "force": "everything is concretized anew",
    "splice": "nothing that was built before is reused",
    "os_compatible": "nothing that was built before is reused",
    "concretization_cache": "the site decides",
}
"""Settings of `concretizer` that a description may have, and that mean nothing here."""


def dump(value: Any) -> str:
    """Return YAML that reads back as the same value, in the order of its keys."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=10_000,
        allow_unicode=True,
    )


def roots_of(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the plain specs under `specs` and in its groups.

    Matrices and definitions are Spack's to expand.
    """
    for entry in body.get("specs") or ():
        if isinstance(entry, str) and not entry.startswith("$"):
            yield entry
        elif isinstance(entry, dict):
            yield from roots_of(entry)


class _Dumper(yaml.SafeDumper):
    """Writes repeated values out, and indents lists as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


class Merge:
    """Merges one description and one machine into a `spack.yaml`.

    Not for conflicts between the two: `conflicts` refuses those.
    """

    def __init__(
        self,
        description: Description,
        machine: Machine,
        mpi: Mpi | None,
        gpu: Gpu | None,
        release: tuple[int, ...],
        site_packages: Mapping[str, Any],
        demands: Sequence[Demand] = (),
        required: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.description = description
        self.user: dict[str, Any] = copy.deepcopy(dict(description.spack or {}))
        self.file = description.file
        self.target = machine.target.name
        self.mpi, self.gpu, self.release = mpi, gpu, release
        self.site = site_packages
        self.required = required or {}
        self.packages: dict[str, dict[str, Any]] = {
            name: dict(fields or {}) for name, fields in (self.user.get("packages") or {}).items()
        }
        refusing = without_variant(demands, gpu.variant) if gpu is not None else {}
        self.without_gpu = tuple(refusing)
        self._refusing = refusing
        self.warnings: list[str] = []

    def body(self) -> dict[str, Any]:
        """Return the body of `spack.yaml`."""
        self._leave_out_unread()
        self._translate_compilers()
        self._require_everywhere()
        self._require_mpi()
        for name, wanted in self.required.items():
            self._require(name, f"target={self.target}", *wanted)
        self._without_gpu_where_asked()
        body: dict[str, Any] = {}
        if self.user.get("definitions"):
            body["definitions"] = self.user["definitions"]
        body["specs"] = self._specs()
        body["packages"] = {"all": self.packages.pop("all"), **self.packages}
        body["concretizer"] = self._concretizer()
        body["view"] = self._view()
        body["config"] = {"build_stage": [STAGES]}
        return body

    def _specs(self) -> list[Any]:
        entries = list(self.user.get("specs") or ())
        if self.release < FIRST_WITH_GROUPS:
            entries = [plain for entry in entries for plain in self._without_group(entry)]
        added = [part.spec for part in (self.mpi, self.gpu) if part is not None]
        return entries + [spec for spec in added if spec not in entries]

    def _without_group(self, entry: Any) -> list[Any]:
        """Return the specs of a group, for a release that has no groups."""
        if not isinstance(entry, dict) or "group" not in entry:
            return [entry]
        self.warnings.append(
            f"{self.file}: the base image's Spack has no groups: what is in {entry['group']} is "
            "concretized together with everything else."
        )
        matrix = {key: entry[key] for key in ("matrix", "exclude") if key in entry}
        return [*(entry.get("specs") or ()), *([matrix] if "matrix" in matrix else [])]

    def _rule(self, spec: str) -> Any:
        """Return a spec as a hard requirement.

        Before Spack 0.20 only groups are read; from 1.0 on only a plain one reaches externals.
        """
        return spec if self.release >= (0, 20) else {"one_of": [spec]}

    def _rules(self, name: str) -> list[Any]:
        """Return a package's own requirements, without the targets in plain ones.

        `conflicts` has found that they allow ours, and from Spack 1.0 on externals get the required
        target only where it is written once. Spack joins a list with the site's own list; the
        site's plain text would be lost, and is repeated here.
        """
        existing = (self.packages.get(name) or {}).get("require")
        if not existing:
            site = (self.site.get(name) or {}).get("require")
            existing = site if isinstance(site, str) else []
        rules = [existing] if isinstance(existing, str) else existing
        plain = [self._without_target(rule) for rule in rules]
        return [self._rule(rule) if isinstance(rule, str) else rule for rule in plain if rule]

    def _without_target(self, rule: Any) -> Any:
        """Return a rule without its targets, and without alternatives for other targets."""
        if isinstance(rule, str):
            return _without_target_words(rule)
        if "when" in rule:
            return rule
        if "spec" in rule:
            text = _without_target_words(rule["spec"])
            return {**rule, "spec": text} if text else None
        key = "one_of" if "one_of" in rule else "any_of"
        texts = [
            _without_target_words(text)
            for text in rule[key]
            if all(
                spack_spec.target_allows(asked, self.target)
                for asked in spack_spec.targets_of(spack_spec.nodes(text, self.release))
            )
        ]
        return {**rule, key: texts} if all(texts) else None

    def _require_everywhere(self) -> None:
        """Require the target of all packages, and of those whose own rules hide those of `all`."""
        wanted = [f"target={self.target}"]
        everywhere = self.packages.setdefault("all", {})
        everywhere["require"] = [*self._rules("all"), *map(self._rule, wanted)]
        if self.gpu is not None:
            self._prefer_gpu(everywhere)
        for name in dict.fromkeys([*self.packages, *self.site]):
            own = [
                *_texts((self.packages.get(name) or {}).get("require")),
                *_texts((self.site.get(name) or {}).get("require")),
            ]
            if name != "all" and own and not virtual_if_named(name, own):
                self._require(name, *wanted)

    def _require(self, name: str, *wanted: str) -> None:
        rules = self._rules(name)
        self.packages.setdefault(name, {})["require"] = rules + [
            rule for rule in map(self._rule, wanted) if rule not in rules
        ]

    def _prefer_gpu(self, everywhere: dict[str, Any]) -> None:
        """Require GPU variants where the release ignores packages without them, or prefer them."""
        assert self.gpu is not None
        settings = dict.fromkeys([f"+{self.gpu.variant}", self.gpu.settings])
        if self.release >= (0, 21):
            everywhere["require"] += list(settings)
        everywhere["variants"] = self._with_gpu(everywhere.get("variants"))
        for name in dict.fromkeys([*self.packages, *self.site]):
            fields = {**(self.site.get(name) or {}), **(self.packages.get(name) or {})}
            if name == "all":
                continue
            if fields.get("externals"):
                self._require(name, f"target={self.target}")
            own = (self.packages.get(name) or {}).get("variants")
            if own and name not in self._refusing:
                self.packages[name]["variants"] = self._with_gpu(own)

    def _with_gpu(self, variants: Any) -> list[str]:
        """Return preferred variants together with the GPU's.

        A package's own hide those of all packages, and Spack joins them to one spec, in which a key
        may occur once.
        """
        assert self.gpu is not None
        ours = {self.gpu.variant, self.gpu.arch_variant}
        kept: list[str] = []
        for text in [variants] if isinstance(variants, str) else variants or ():
            (root, *_) = spack_spec.nodes(text, self.release)
            words = [one.text for one in root.settings if one.key not in ours]
            kept += [text] if len(words) == len(root.settings) else [" ".join(words)]
        return [*filter(None, kept), self.gpu.settings]

    def _without_gpu_where_asked(self) -> None:
        """Keep a package without the GPU where the workflow wants that, in whatever form."""
        for name, path in self._refusing.items():
            assert self.gpu is not None
            self._require(name, f"target={self.target}", f"~{self.gpu.variant}")
            where = f"{self.file}, line {self.description.line('spack', *path)}"
            self.warnings.append(f"{where}: {name} is built without {self.gpu.name}, as it says.")

    def _require_mpi(self) -> None:
        if self.mpi is None:
            return
        everywhere = self.packages["all"]
        everywhere["providers"] = {**(everywhere.get("providers") or {}), "mpi": [self.mpi.name]}
        self._require("mpi", self.mpi.spec)

    def _leave_out_unread(self) -> None:
        """Leave out what this release's schema does not have, as Spack would stop at it."""
        for name, fields in self.packages.items():
            self.packages[name], dropped = fitting_package(name, fields, self.release)
            self._warn_unread([("packages", name, key) for key in dropped])
            if fields.get("require"):
                self._require_what_can_be_met(name, fields["require"])

    def _require_what_can_be_met(self, name: str, existing: Any) -> None:
        """Write a package's requirements as this release can meet them."""
        rules = [existing] if isinstance(existing, str) else existing
        meetable_rules, told = meetable(name, rules, self.release, self._is_our_mpi)
        if meetable_rules == rules:
            return
        self.packages[name]["require"] = meetable_rules
        for at, what in told:
            path = ("packages", name, "require", *(() if isinstance(existing, str) else (at,)))
            where = f"{self.file}, line {self.description.line('spack', *path)}"
            release = ".".join(map(str, self.release))
            self.warnings.append(f"{where}: packages: {name}: require: Spack {release} {what}.")

    def _is_our_mpi(self, text: str) -> bool:
        """Return whether a spec is of the machine's MPI, in its version."""
        node = spack_spec.nodes(text, self.release)[0]
        return (
            self.mpi is not None
            and node.name == self.mpi.name
            and not spack_spec.disjoint_versions(node.version, self.mpi.version)
        )

    def _warn_unread(self, paths: list[tuple[str, ...]]) -> None:
        for path in paths:
            where = f"{self.file}, line {self.description.line('spack', *path)}"
            release = ".".join(map(str, self.release))
            self.warnings.append(
                f"{where}: {': '.join(path)} is not used: Spack {release} does not read it there."
            )

    def _translate_compilers(self) -> None:
        """Translate `compiler: [gcc@8]`, which Spack does not read from 1.0 on.

        There, compilers are packages that provide languages.
        """
        if self.release < (1, 0):
            return
        for name, fields in list(self.packages.items()):
            wanted = [package_of(str(text)) for text in fields.pop("compiler", None) or ()]
            if not wanted:
                continue
            if name != "all":
                fields["prefer"] = [
                    *(fields.get("prefer") or ()),
                    *(f"%{compiler}" for compiler in wanted),
                ]
                continue
            for language in ("c", "cxx", "fortran"):
                own = self.packages.setdefault(language, {})
                own.setdefault("prefer", wanted)

    def _concretizer(self) -> dict[str, Any]:
        """Return the user's settings for any target, with reuse of installed packages off."""
        settings = dict(self.user.get("concretizer") or {})
        if settings.pop("reuse", False) is not False:
            self.warnings.append(
                f"{self.file}: concretizer: reuse is not used: an image does not depend on what was "
                "built before."
            )
        for key, why in _UNUSED_SETTINGS.items():
            if settings.pop(key, None):
                self.warnings.append(f"{self.file}: concretizer: {key} is not used: {why}.")
        settings, dropped = fitting_section("concretizer", settings, self.release)
        self._warn_unread([("concretizer", key) for key in dropped])
        return {
            "unify": True,
            **settings,
            "reuse": False,
            "targets": {"granularity": "microarchitectures", "host_compatible": False},
        }

    def _view(self) -> Any:
        view, warnings = view_of(self.description)
        self.warnings += warnings
        if not isinstance(view, dict):
            return view
        fitting: dict[str, Any] = {}
        for name, fields in view.items():
            fitting[name], dropped = fitting_section("view", fields, self.release)
            self._warn_unread([("view", name, key) for key in dropped])
        return fitting


def _texts(rules: Any) -> list[str]:
    """Return the specs in a `require`, whatever its form."""
    if isinstance(rules, str):
        return [rules]
    found: list[str] = []
    for rule in rules or ():
        if isinstance(rule, str):
            found.append(rule)
            continue
        group = [*rule.get("one_of", ()), *rule.get("any_of", ()), rule.get("spec")]
        found += [text for text in group if isinstance(text, str)]
    return found


def _without_target_words(rule: str) -> str:
    return " ".join(word for word in rule.split() if not word.startswith("target="))


def packages_of(text: str | None) -> Mapping[str, Any]:
    """Return the `packages` of a `packages.yaml`, which may be empty. Raises `Misconfigured`."""
    if text is None:
        return {}
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misconfigured(
            f"The site's packages.yaml is not valid YAML: {error}",
            hint="Correct it in the folder that spack_cfg in build_cfg names.",
        ) from None
    packages = loaded.get("packages") if isinstance(loaded, dict) else None
    if not isinstance(packages, dict):
        return {}
    # `name::` is Spack's way to say that an entry replaces those of other scopes.
    return {
        str(name).rstrip(":"): fields
        for name, fields in packages.items()
        if isinstance(fields, dict)
    }
