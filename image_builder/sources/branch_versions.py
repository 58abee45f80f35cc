"""Spack versions that are branches: which they are, and which commits they mean today.

A package version such as `exageostat@master` has the same hash in Spack whatever its branch holds,
so the commit behind it is part of what makes a build. What a package says about its versions is
read from the syntax of its `package.py`, in the catalogue; that file is never run. Packages that
only Spack itself has are not looked at.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from image_builder.host.cancellation import CancelToken
from image_builder.sources.git.remote import RemoteCommits

HEAD = "HEAD"
MAX_LOOKUPS_AT_ONCE = 8
MAX_PACKAGES = 500
MAX_PACKAGE_BYTES = 1024**2

_NAMED = re.compile(
    r"(?:^|[\s^%])(?:[A-Za-z0-9_-]+\.)*(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)"
    r"(?:@=?(?P<version>[A-Za-z0-9_.:,=/-]+))?"
)
_FIXED = frozenset({"tag", "commit", "sha256", "sha512", "sha1", "md5", "url"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchRef:
    """A version of a package that is a branch (`HEAD`: the default one) of a git repository.

    `url` None: the package does not say plainly where its repository is.
    """

    package: str
    version: str
    branch: str
    url: str | None

    def __str__(self) -> str:
        return f"{self.package}@{self.version}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchCommits:
    """The commits behind branch versions, `exageostat@master -> hash`; None where it could not be
    had.
    """

    commits: Mapping[str, str | None]
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageVersions:
    """What a `package.py` says of its versions, and the specs that it depends on."""

    url: str | None = None
    branches: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    depends_on: tuple[str, ...] = ()


def branch_refs(
    specs: Iterable[object], package_text: Callable[[str], str | None]
) -> tuple[BranchRef, ...]:
    """The branch versions that an environment of these specs (texts, or a matrix of them) may
    install, by package.

    `package_text` gives a catalogue package's `package.py`, or None. Dependencies between the
    catalogue's packages are followed, also those under a condition: one commit too many makes a
    build anew, one too few a wrong image.
    """
    found: dict[tuple[str, str], BranchRef] = {}
    seen: set[tuple[str, str | None]] = set()
    texts: dict[str, PackageVersions | None] = {}
    waiting = [named for spec in _texts_in(list(specs)) for named in _named(spec)]
    while waiting and len(texts) < MAX_PACKAGES:
        name, version = waiting.pop()
        if (name, version) in seen:
            continue
        seen.add((name, version))
        if name not in texts:
            text = package_text(name)
            texts[name] = parse_package(text) if text is not None else None
            if (versions := texts[name]) is not None:
                waiting += [named for spec in versions.depends_on for named in _named(spec)]
        if (versions := texts[name]) is not None:
            found |= {(ref.package, ref.version): ref for ref in _chosen(name, version, versions)}
    return tuple(found[key] for key in sorted(found))


def branch_commits(
    refs: Iterable[BranchRef], remote: RemoteCommits, *, cancel: CancelToken | None = None
) -> BranchCommits:
    """What the branches mean now, asked all at once. What cannot be had is None, with a warning."""
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
            f"{ref} is a branch of {_place(ref)}, and its commit could not be had: this build is taken for "
            f"the same as an earlier one even if the branch has moved. Send force: true to build it anew."
            for ref, commit in zip(asked, commits, strict=True)
            if commit is None
        ),
    )


def parse_package(text: str) -> PackageVersions:
    """What a `package.py` says, as far as it is written plainly."""
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
    for call in _calls(body, "version"):
        version, words = _text(call.args[0]) if call.args else None, _keywords(call)
        if version is None:
            continue
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
        depends_on=tuple(
            spec
            for call in _calls(body, "depends_on")
            if call.args and (spec := _text(call.args[0])) is not None
        ),
    )


def _chosen(name: str, version: str | None, versions: PackageVersions) -> list[BranchRef]:
    """The branch versions that a spec may mean; without a version, all of them if there is nothing
    else.
    """
    if version is None:
        wanted = [] if versions.fixed else list(versions.branches)
    elif version.startswith("git."):
        branch = version[len("git.") :].partition("=")[0]
        is_commit = re.fullmatch(r"[0-9a-f]{40}", branch) is not None
        return (
            []
            if is_commit
            else [BranchRef(package=name, version=version, branch=branch, url=versions.url)]
        )
    else:
        asked = re.split("[,:]", version)
        wanted = [known for known in versions.branches if known in asked]
    return [
        BranchRef(
            package=name,
            version=one,
            branch=versions.branches[one][0],
            url=versions.branches[one][1],
        )
        for one in wanted
    ]


def _texts_in(value: object) -> Iterator[str]:
    """The texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(part)


def _named(spec: str) -> list[tuple[str, str | None]]:
    """The packages that a spec names, each with its version if it has one: `a@1 +x ^b@main` names
    two.
    """
    return [
        (match["name"].lower(), match["version"])
        for match in _NAMED.finditer(spec)
        if "=" not in spec[match.end() : match.end() + 1]
    ]


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
        "a repository that the package does not name plainly"
        if ref.url is None
        else "a git repository"
    )
