"""Finds Spack versions that are branches, and the commits that they mean today.

A package version such as `exageostat@master` has the same hash in Spack whatever its branch contains, so the commit
behind it is part of what makes a build. What a package of the catalogue says about its versions is read from the
syntax of its `package.py`; that file is never run. For packages that only Spack itself has, the base image's Spack
says which versions are branches; if that is not known, a version with the name of a branch is taken for one, whose
commit stays unknown.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from image_builder.host.cancellation import CancelToken
from image_builder.sources.git.remote import RemoteCommits
from image_builder.sources.git.revisions import is_commit
from image_builder.sources.spec_lists import roots_in
from image_builder.spack import spec
from image_builder.spack.knowledge import Branches

HEAD = "HEAD"
MAX_LOOKUPS_AT_ONCE = 8
MAX_PACKAGES = 500
MAX_PACKAGE_BYTES = 1024**2

_NAMED = re.compile(
    r"(?:^|[\s^%])(?:[A-Za-z0-9_-]+\.)*(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)"
    r"(?:@=?(?P<version>[A-Za-z0-9_.:,=/-]+))?"
)
_LIKE_BRANCHES = frozenset({"main", "master", "develop", "trunk", "head", "stable", "dev", "devel"})
_READINGS = ((0, 23), (1, 2))
_RULES = ("require", "prefer", "variants", "providers")
_FIXED = frozenset({"tag", "commit", "sha256", "sha512", "sha1", "md5", "url"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchRef:
    """Names a version of a package that is a branch of a git repository.

    `branch` may be `HEAD`, the default one. `url` is None if the package does not say plainly where
    its repository is.
    """

    package: str
    version: str
    branch: str
    url: str | None

    def __str__(self) -> str:
        return f"{self.package}@{self.version}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchCommits:
    """Holds the commits behind branch versions, `exageostat@master -> hash`; None if not known."""

    commits: Mapping[str, str | None]
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageVersions:
    """Holds what a `package.py` says of its versions, and the specs that it depends on."""

    url: str | None = None
    branches: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    preferred: frozenset[str] = frozenset()
    depends_on: tuple[str, ...] = ()


KnownBranches = Callable[[str], Branches | None]
"""Returns the branch versions of a package that Spack itself has; None if they are not known."""


def no_branches(_package: str) -> Branches:
    """Return that no version of a package is a branch."""
    return Branches()


def unknown_branches(_package: str) -> None:
    """Return None: nothing is known of a package, and only names show what is a branch."""


def specs_of(body: Mapping[str, Any]) -> list[str]:
    """Return the packages that a `spack` section may install, each with its version: `foo@main`.

    Definitions and matrices are expanded, and `packages` is searched. Both ways to read a spec
    count: one commit too many causes a new build, one too few a wrong image.
    """
    named: dict[str, None] = {}
    for release in _READINGS:
        for root in roots_in(body, release):
            named |= dict.fromkeys(map(_text_of, root.nodes))
        for name, fields in (body.get("packages") or {}).items():
            for text in _texts_in([(fields or {}).get(key) for key in _RULES]):
                for node in spec.nodes(text, release):
                    own = dataclasses.replace(node, name=node.name or name)
                    named[_text_of(own)] = None
    for name, fields in (body.get("packages") or {}).items():
        named |= {f"{name}@{version}": None for version in (fields or {}).get("version") or ()}
    return [text for text in named if text and not text.startswith(("all@", "@"))]


def branch_refs(
    specs: Iterable[object],
    package_text: Callable[[str], str | None],
    known: KnownBranches = no_branches,
) -> tuple[BranchRef, ...]:
    """Return the branch versions that an environment of these specs may install, by package.

    `specs` are texts, or a matrix of them. `package_text` gives a catalogue package's `package.py`,
    or None; `known` gives the branches of Spack's own packages. Dependencies between the
    catalogue's packages are followed, also those under a condition.
    """
    by_version: dict[tuple[str, str], BranchRef] = {}
    seen: set[tuple[str, str | None]] = set()
    texts: dict[str, PackageVersions | None] = {}
    waiting = [named for text in _texts_in(list(specs)) for named in _named(text)]
    while waiting and len(texts) < MAX_PACKAGES:
        name, version = waiting.pop()
        if (name, version) in seen:
            continue
        seen.add((name, version))
        if name not in texts:
            text = package_text(name)
            texts[name] = parse_package(text) if text is not None else None
            if (versions := texts[name]) is not None:
                waiting += [named for text in versions.depends_on for named in _named(text)]
        if (versions := texts[name]) is not None:
            refs = _chosen(name, version, versions)
        else:
            refs = _spacks_own(name, version, known)
        by_version |= {(ref.package, ref.version): ref for ref in refs}
    return tuple(by_version[key] for key in sorted(by_version))


def branch_commits(
    refs: Iterable[BranchRef], remote: RemoteCommits, *, cancel: CancelToken | None = None
) -> BranchCommits:
    """Return the commits that the branches mean now; None with a warning where it is not known.

    All repositories are asked at once.
    """
    asked = tuple(refs)
    with ThreadPoolExecutor(MAX_LOOKUPS_AT_ONCE, thread_name_prefix="branch") as pool:
        commits = list(
            pool.map(
                lambda ref: remote.commit(ref.url, ref.branch, cancel=cancel) if ref.url else None,
                asked,
            )
        )
    return BranchCommits(
        commits={str(ref): commit for ref, commit in zip(asked, commits, strict=True)},
        warnings=tuple(
            f"{ref} is a branch of {_place(ref)}, and its commit is not known: this build counts as the "
            f"same as an earlier one even if the branch has moved. Send force: true to build it anew."
            for ref, commit in zip(asked, commits, strict=True)
            if commit is None
        ),
    )


def parse_package(text: str) -> PackageVersions:
    """Return what a `package.py` says of its versions, as far as it is written plainly."""
    try:
        if len(text) > MAX_PACKAGE_BYTES:
            return PackageVersions()
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return PackageVersions()
    body = [
        statement
        for node in module.body
        if isinstance(node, ast.ClassDef)
        for statement in _flat(node.body)
    ]
    urls = [value for statement in body if (value := _assigned(statement, "git")) is not None]
    package_url = urls[-1] if urls else None
    branches: dict[str, tuple[str, str | None]] = {}
    fixed: set[str] = set()
    preferred: set[str] = set()
    for call in _calls(body, "version"):
        version, words = _text(call.args[0]) if call.args else None, _keywords(call)
        if version is None:
            continue
        if _is_true(call, "preferred"):
            preferred.add(version)
        if words.keys() & _FIXED:
            fixed.add(version)
        elif "branch" in words or "git" in words or package_url is not None:
            is_plain = words.get("branch", HEAD) is not None and words.get("git", "") is not None
            branches[version] = (
                words.get("branch") or HEAD,
                (words.get("git") or package_url) if is_plain else None,
            )
    return PackageVersions(
        url=package_url,
        branches=branches,
        fixed=frozenset(fixed),
        preferred=frozenset(preferred),
        depends_on=tuple(
            spec
            for call in _calls(body, "depends_on")
            if call.args and (spec := _text(call.args[0])) is not None
        ),
    )


def _chosen(name: str, version: str | None, versions: PackageVersions) -> list[BranchRef]:
    """Return the branch versions that a spec may mean.

    Spack takes a preferred version, then a fixed one; branches only if there is no other.
    """
    if version is not None and version.startswith("git."):
        return _git_ref(name, version, versions.url)
    if version is None:
        candidates, has_other = list(versions.branches), bool(versions.fixed)
    else:
        candidates = [one for one in versions.branches if spec.version_satisfies(one, version)]
        has_other = any(spec.version_satisfies(one, version) for one in versions.fixed)
    asked = re.split("[,:]", version or "")
    wanted = [
        one
        for one in candidates
        if one in asked or f"={one}" in asked or one in versions.preferred or not has_other
    ]
    return [
        BranchRef(
            package=name,
            version=one,
            branch=versions.branches[one][0],
            url=versions.branches[one][1],
        )
        for one in wanted
    ]


def _git_ref(name: str, version: str, url: str | None) -> list[BranchRef]:
    """Return the branch of `git.main=1.2`, which is `main`; a commit is no branch."""
    branch = version.removeprefix("git.").partition("=")[0]
    if is_commit(branch):
        return []
    return [BranchRef(package=name, version=version, branch=branch, url=url)]


def _spacks_own(name: str, version: str | None, known: KnownBranches) -> list[BranchRef]:
    """Return the branches that a version of a package outside the catalogue may mean."""
    branches = known(name)
    if version is not None and version.startswith("git."):
        urls = {url for url, _ in branches.by_version.values()} if branches else set()
        return _git_ref(name, version, urls.pop() if len(urls) == 1 else None)
    asked = (version or "").removeprefix("=")
    if branches is None:
        guessed = [asked] if asked in _LIKE_BRANCHES else []
        return [BranchRef(package=name, version=one, branch=one, url=None) for one in guessed]
    return [
        BranchRef(package=name, version=one, branch=branch, url=url)
        for one, (url, branch) in branches.by_version.items()
        if one == asked or not (asked or branches.has_others)
    ]


def _texts_in(value: object) -> Iterator[str]:
    """The texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(part)


def _named(text: str) -> list[tuple[str, str | None]]:
    """Return the packages that a spec names, each with its version if it has one.

    `a@1 +x ^b@main` names two.
    """
    try:
        nodes = spec.parse(text)
    except spec.SpecError:
        nodes = ()  # a recipe's own way to write, such as an f-string's rest
    if nodes:
        return [(node.name.lower(), node.version or None) for node in nodes if node.name]
    return [
        (match["name"].lower(), match["version"])
        for match in _NAMED.finditer(text[: spec.MAX_SPEC])
        if "=" not in text[match.end() : match.end() + 1]
    ]


def _text_of(node: spec.Node) -> str:
    """Return a node's package and version; a commit of its own (`commit=`) is the version."""
    commit = node.variants.get("commit", "")
    version = f"git.{commit}" if is_commit(commit) else node.version
    return f"{node.name}@{version}" if version else node.name


def _is_true(call: ast.Call, name: str) -> bool:
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is True
        for word in call.keywords
    )


def _flat(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Statements, with those inside `with when(…):` and `if`."""
    flat: list[ast.stmt] = []
    for statement in body:
        flat.append(statement)
        if isinstance(statement, ast.With):
            flat += _flat(statement.body)
        elif isinstance(statement, ast.If):
            flat += _flat([*statement.body, *statement.orelse])
    return flat


def _calls(body: Iterable[ast.stmt], function: str) -> list[ast.Call]:
    calls = [
        statement.value
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == function]


def _keywords(call: ast.Call) -> dict[str, str | None]:
    return {word.arg: _text(word.value) for word in call.keywords if word.arg is not None}


def _assigned(statement: ast.stmt, name: str) -> str | None:
    if isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name for target in statement.targets
    ):
        return _text(statement.value)
    return None


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _place(ref: BranchRef) -> str:
    return (
        "a repository that no recipe of the catalogue names plainly"
        if ref.url is None
        else "a git repository"
    )
