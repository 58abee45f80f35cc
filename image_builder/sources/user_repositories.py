"""Takes a step's folder from a git repository that a user names, and keeps it by its tree.

The repository is a stranger's, on a host that the operator allows. Of it one commit is fetched,
without history, into a folder that is removed at the end; what is in its folder passes the checks
of the workflow registry. No redirect is followed, and no submodule fetched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from image_builder.errors import (
    ErrorCode,
    FieldProblem,
    InvalidRequest,
    LimitReached,
    NotFound,
    Unavailable,
)
from image_builder.host import process
from image_builder.host.cancellation import CancelToken
from image_builder.host.files import bytes_of
from image_builder.host.process import ProcessFailed
from image_builder.host.secrets import Secret
from image_builder.request.build_request import LATEST, BuildRequest
from image_builder.sources.git import objects, trees
from image_builder.sources.git.objects import Damaged
from image_builder.sources.git.remote import Network, git_command, list_remote
from image_builder.sources.git.revisions import is_commit
from image_builder.sources.git.trees import Limits
from image_builder.sources.git.urls import BadGitUrl, GitUrl, parse_url
from image_builder.sources.step import StepRef, as_bad_description
from image_builder.sources.uploads import keep_entries

SCHEMES = ("https", "http")
TIMEOUT_S = 120.0
MEASURED_EVERY_S = 0.5
_REF = "refs/cic/step"
_LOG_IN = re.compile(r"could not read Username|Authentication failed|error: 40[13]", re.IGNORECASE)
_ELSEWHERE = re.compile(r"redirect", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credential:
    """Holds with what a user logs in to a host."""

    user: str
    secret: Secret


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchedStep:
    """Holds a step whose folder is kept, and how many bytes its files are."""

    step: StepRef
    size_bytes: int


def host_of(repository: str) -> str:
    """Return the host of a repository's URL, as `allowed_git_hosts` and credentials name it."""
    return (urlsplit(repository).hostname or "").lower()


def require_allowed(repository: str, network: Network) -> None:
    """Raise `InvalidRequest` for a repository that this site does not talk to."""
    allowed = sorted(host.lower() for host in network.hosts or ())
    if host_of(repository) not in allowed or urlsplit(repository).scheme not in network.schemes:
        hint = f"allowed are https:// and {', '.join(allowed)}" if allowed else "send the folder"
        problem = f"git does not talk to {host_of(repository)[:100]} here"
        raise InvalidRequest([FieldProblem("repository", problem, hint)])


def fetch_step(
    request: BuildRequest,
    root: Path,
    limits: Limits,
    network: Network,
    *,
    credential: Credential | None = None,
    cancel: CancelToken | None = None,
) -> FetchedStep:
    """Fetch the folder that a request's `repository`, `path` and `version` name, to below `root`.

    Raises `InvalidRequest` for a repository that cannot be read, `NotFound` for a version or folder
    that it does not have, `BadDescription` for content that a step may not have, and `Unavailable`
    for a host that does not answer.
    """
    assert request.repository is not None
    require_allowed(request.repository, network)
    hurried = dataclasses.replace(network, timeout_s=min(TIMEOUT_S, network.timeout_s))
    url = _url(request.repository, credential)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="aside-git-", dir=root) as name, _explained(url):
        guard = _SizeGuard(Path(name), limits.max_bytes, cancel)
        remote = _Remote(url, hurried, Path(name), guard)
        remote.fetch(remote.wanted(request.version))
        guard.measure()  # a quick fetch ends between two looks
        return remote.kept(request, root, limits)


class _SizeGuard(CancelToken):
    """Ends the work, too, when a folder has become too large."""

    def __init__(self, folder: Path, max_bytes: int, inner: CancelToken | None) -> None:
        super().__init__()
        self._folder, self._max_bytes, self._inner = folder, max_bytes, inner
        self._measured_at = float("-inf")

    def check(self) -> None:
        if self._inner is not None:
            self._inner.check()
        super().check()
        if time.monotonic() - self._measured_at < MEASURED_EVERY_S:
            return
        self.measure()

    def measure(self) -> None:
        """Raise `InvalidRequest` if the folder is too large now."""
        self._measured_at = time.monotonic()
        with contextlib.suppress(OSError):  # git renames what is measured
            if bytes_of(self._folder) <= self._max_bytes:
                return
            problem = f"is larger than {self._max_bytes // 1024**2} MiB"
            raise InvalidRequest(
                [FieldProblem("repository", problem, "keep data out of it, or send the folder")]
            )


class _Remote:
    """Fetches one commit of a repository into a bare one of its own."""

    def __init__(self, url: GitUrl, network: Network, folder: Path, guard: CancelToken) -> None:
        self._url, self._network, self._folder, self._guard = url, network, folder, guard

    def wanted(self, version: str) -> str:
        """Return the reference or commit that a version means there. Raises `NotFound`."""
        if is_commit(version):
            return version.lower()
        names = _names_of(version)
        known = list_remote(self._url, self._network, names, cancel=self._guard)
        found = next((name for name in names if name in known), None)
        if found is None:
            raise NotFound(
                f"There is no version {version!r} in the repository.",
                field="version",
                hint="Write a branch, a tag, or all 40 digits of a commit.",
            )
        return found

    def fetch(self, wanted: str) -> None:
        self._git("init", "--quiet", "--bare", "--template=")
        self._git(
            "fetch",
            "--progress",
            "--depth=1",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--",
            self._url.text,
            f"+{wanted}:{_REF}",
        )

    def kept(self, request: BuildRequest, root: Path, limits: Limits) -> FetchedStep:
        """Keep the request's folder of what was fetched, and return it as a step."""
        with contextlib.closing(objects.open_repository(self._folder)) as repo:
            with objects.reading():
                digest = (self._folder / _REF).read_text("ascii").strip()
                commit = objects.peel(repo, digest)
                tree = objects.tree_of_commit(repo, commit)
            for name in (request.path or "").split("/") if request.path else ():
                tree = self._inner(repo, tree, name, request.path or "")
            with as_bad_description():
                entries = objects.entries_below(repo, tree, limits, lambda _: True, self._guard)
                trees.check(entries, limits)
            keep_entries(entries, root, lambda entry: objects.blob_chunks(repo, entry.digest))
        kept = trees.tree_digest(entries)
        step = StepRef(
            workflow=request.workflow_name,
            step_id=request.step_name,
            version=request.version,
            tree=kept,
            commit=commit,
            path=(root / kept).absolute(),
        )
        return FetchedStep(step=step, size_bytes=trees.disk_bytes(entries))

    def _inner(self, repo: objects.Repo, tree: str, name: str, path: str) -> str:
        with objects.reading():
            items = {item.name: item for item in objects.tree_items(repo, tree)}
        item = items.get(name)
        if item is None or not item.is_folder:
            raise NotFound(
                f"There is no folder {trees.printable(path)!r} in that version of the repository.",
                field="path",
                hint="Write a folder of it, or leave path out for the whole repository.",
            )
        return item.digest

    def _git(self, *argv: str) -> None:
        environment: Mapping[str, str] = {"GIT_DIR": str(self._folder)}
        command = git_command(f"git {argv[0]}", argv, self._url, self._network, added=environment)
        process.run(command, cancel=self._guard)


@contextlib.contextmanager
def _explained(url: GitUrl) -> Iterator[None]:
    """Raise what git says in the block as what the user, or time, has to change."""
    try:
        yield
    except ProcessFailed as failure:
        raise InvalidRequest([_problem(url, failure.tail)]) from failure
    except LimitReached as error:
        raise Unavailable(
            f"{url.host} does not answer: {error.message}",
            code=ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
            hint="Try again later, or send the folder with the request.",
        ) from error
    except (Damaged, trees.Changed):
        hint = "check it with git fsck, or send the folder"
        raise InvalidRequest([FieldProblem("repository", "is damaged", hint)]) from None


def _problem(url: GitUrl, tail: Sequence[str]) -> FieldProblem:
    said = "\n".join(tail)
    if _LOG_IN.search(said):
        if url.header is not None:
            hint = "keep another one in your account"
            return FieldProblem("repository", f"{url.host} refuses your credential", hint)
        hint = f"keep a credential for {url.host} in your account"
        return FieldProblem("repository", f"{url.host} asks for a log-in", hint)
    if _ELSEWHERE.search(said):
        hint = "write the address that it has now"
        return FieldProblem("repository", "leads to another address", hint)
    lines = [line for line in tail if line.startswith(("fatal:", "error:"))]
    why = (lines or ["git says nothing"])[0].partition(":")[2].strip()[:200] or "git says nothing"
    return FieldProblem("repository", f"cannot be read: {why}", "try git ls-remote with it")


def _url(repository: str, credential: Credential | None) -> GitUrl:
    parts = urlsplit(repository)
    netloc = parts.netloc
    if credential is not None:
        word = quote(credential.secret.get_secret_value(), safe="")
        netloc = f"{quote(credential.user, safe='')}:{word}@{netloc}"
    try:
        return parse_url(urlunsplit((parts.scheme, netloc, parts.path, "", "")), SCHEMES)
    except BadGitUrl as error:
        hint = "write https://host/path"
        raise InvalidRequest([FieldProblem("repository", str(error), hint)]) from None


def _names_of(version: str) -> list[str]:
    """Return what a version may be called there, the first first; a tag goes before a branch."""
    if version == LATEST:
        return ["HEAD"]
    kind, _, name = version.partition("/")
    full = [f"refs/{version}"] if kind in ("heads", "tags") and name else []
    return [*full, f"refs/tags/{version}", f"refs/heads/{version}"]
