"""Workflow steps: found in a git registry or in a local folder, read, and copied into a build.

A registry is a git repository that holds `<workflow>/<step>/eflows4hpc.yaml`. What lies in it was written by
strangers: a step is taken file by file from the repository's objects, never checked out, and nothing in it is run.
What a description says is `environment.parse_description`'s business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from image_builder import trees
from image_builder.errors import BadDescription, ErrorCode, Misconfigured, NotFound, Unavailable
from image_builder.gitmirror import Mirror, Repository, Snapshot
from image_builder.gitobjects import TreeItem
from image_builder.gitremote import BadGitUrl, Network, folder_url, parse_source
from image_builder.gitversions import LATEST, Ambiguous, Resolved, Versions
from image_builder.process import CancelToken
from image_builder.settings import RepositorySettings
from image_builder.targets import nearest
from image_builder.trees import BadTree, Entry, Limits

KEY = "workflow_repository in repositories_cfg"
DESCRIPTIONS = ("eflows4hpc.yaml", "eflows4hpc.yml")
REQUIREMENTS = "requirements.txt"
POST_INSTALL = "post_inst.sh"
MAX_TEXT_BYTES = 256 * 1024
NO_REFERENCES = Snapshot(fetched_at=0, head=None, branches={}, tags={})
"""Enough for a version that is a commit."""
MAX_SHEBANG_BYTES = 200
MAX_LISTED = 12

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRef:
    """One step, pinned. `tree` is the hash of its folder alone, as git computes it, also for a
    local `path`.

    `commit` is what the version named when it was looked up; None for a local path.
    """

    workflow: str
    step_id: str
    version: str
    tree: str
    commit: str | None = None
    path: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFiles:
    """What the planner reads of a step: its description, the `requirements.txt` and the script
    beside it.
    """

    description_file: str
    description: str
    requirements: str | None = None
    has_post_install: bool = False
    shebang: str | None = None
    warnings: tuple[str, ...] = ()


class WorkflowRegistry:
    """The registry that the settings name, through a mirror below `mirrors`. Threads may share it."""

    def __init__(
        self, settings: RepositorySettings, mirrors: Path, *, network: Network | None = None
    ) -> None:
        self._settings = settings
        self._limits = limits_of(settings)
        network = network or Network(
            schemes=settings.allowed_git_schemes,
            hosts=settings.allowed_git_hosts,
            timeout_s=settings.git_timeout_s,
        )
        try:
            source = parse_source(settings.workflow_repository, network.schemes)
        except BadGitUrl as error:
            raise Misconfigured(
                f"{KEY} cannot be used: {error}.", hint="Write the git URL of the registry."
            ) from None
        if source.inside:
            raise Misconfigured(
                f"{KEY} names a folder inside the repository; a registry is a whole one."
            )
        self._latest = source.ref or LATEST
        url = source.url or folder_url(source.folder or Path())
        self._mirror = Mirror(
            Repository(
                url=url,
                name="workflow registry",
                key=KEY,
                code=ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
            ),
            mirrors,
            network,
        )
        self._versions = Versions(self._mirror)
        self._files: dict[str, StepFiles] = {}

    def close(self) -> None:
        """End the processes that read the mirror."""
        self._mirror.close()

    def locate(
        self,
        workflow: str,
        step_id: str,
        version: str = LATEST,
        *,
        cancel: CancelToken | None = None,
    ) -> StepRef:
        """Find a step. What is not in the mirror is looked for once more after a fetch.

        Raises `NotFound` with the field that is wrong and what is there instead, `Unavailable` if
        the registry has to be asked and does not answer. A full commit that the mirror holds needs
        no registry.
        """
        asked_at = self._mirror.now()
        try:
            return self._locate(workflow, step_id, version, self._snapshot_for(version, cancel))
        except NotFound as missing:
            if _is_full_commit(version) and missing.field != "version":
                raise  # what a commit holds never changes
            snapshot = self._mirror.snapshot(not_before=asked_at, cancel=cancel)
            if _is_full_commit(version):
                self._mirror.fetch_commit(version.lower(), cancel=cancel)
            return self._locate(workflow, step_id, version, snapshot)

    def read(self, ref: StepRef) -> StepFiles:
        """The files of a located step that decide how it is built; from memory when asked again."""
        known = self._files.get(ref.tree)
        if known is None:
            self._require(ref, None)
            files = {item.name: item for item in self._mirror.items(ref.tree)}
            known = _step_files(
                files,
                lambda item: item.is_file,
                lambda item: self._mirror.file(item.digest, MAX_TEXT_BYTES),
            )
            if len(self._files) >= 1000:
                self._files.clear()
            self._files[ref.tree] = known
        return known

    def extract(self, ref: StepRef, destination: Path, cancel: CancelToken | None = None) -> None:
        """Write the step's folder, and nothing else, to `destination`, which must not exist or be
        empty.

        Raises `BadDescription` for a step that holds what is not taken: links out of it,
        submodules, too much. Nothing is left behind when it fails.
        """
        self._require(ref, cancel)
        with _as_bad_description():
            entries = self._mirror.entries(ref.tree, self._limits, cancel=cancel)
            trees.check(entries, self._limits)
            self._mirror.write(entries, destination, cancel)

    def workflows(self, version: str = LATEST) -> tuple[str, ...]:
        """The workflows that have a step with a description, by name."""
        commit = self._commit(version)
        return tuple(
            item.name
            for item in self._folders(self._mirror.tree_of(commit))
            if self._steps(item.digest)
        )

    def steps(self, workflow: str, version: str = LATEST) -> tuple[str, ...]:
        """The steps of a workflow that have a description; none for a workflow that does not exist."""
        item = self._mirror.item(self._mirror.tree_of(self._commit(version)), workflow)
        return self._steps(item.digest) if item is not None and item.is_folder else ()

    def versions(self) -> tuple[str, ...]:
        """What may be asked for: `latest`, the branches, the tags (the newest names first)."""
        snapshot = self._mirror.recent(self._settings.mirror_max_age_s)
        return (
            LATEST,
            *sorted(snapshot.branches),
            *sorted(snapshot.tags, key=_natural, reverse=True),
        )

    def _snapshot_for(self, version: str, cancel: CancelToken | None) -> Snapshot:
        if _is_full_commit(version) and self._mirror.holds(version.lower()):
            return NO_REFERENCES
        return self._mirror.recent(self._settings.mirror_max_age_s, cancel)

    def _commit(self, version: str) -> str:
        return self._resolve(version, self._snapshot_for(version, None)).commit

    def _resolve(self, version: str, snapshot: Snapshot) -> Resolved:
        try:
            resolved = self._versions.resolve(
                self._latest if version == LATEST else version, snapshot
            )
        except Ambiguous as error:
            raise NotFound(
                f"Several commits of the workflow registry begin with {version!r}.",
                field="version",
                hint=f"Write more of it: {error}",
            ) from None
        if resolved is not None:
            return resolved
        if version == LATEST:
            what = (
                "a default branch"
                if self._latest == LATEST
                else f"{self._latest!r}, which {KEY} names"
            )
            raise NotFound(
                f"The workflow registry does not have {what}.",
                field="version",
                hint=_hint(version, [*snapshot.branches, *snapshot.tags], "It has"),
            )
        raise NotFound(
            f"There is no version {version!r} in the workflow registry.",
            field="version",
            hint=_hint(version, [LATEST, *snapshot.branches, *snapshot.tags], "It has"),
        )

    def _locate(self, workflow: str, step_id: str, version: str, snapshot: Snapshot) -> StepRef:
        resolved = self._resolve(version, snapshot)
        root = self._mirror.tree_of(resolved.commit)
        at = f"version {version!r} of the workflow registry"
        workflow_item = self._mirror.item(root, workflow)
        if workflow_item is None or not workflow_item.is_folder:
            names = [item.name for item in self._folders(root) if self._steps(item.digest)]
            raise NotFound(
                f"There is no workflow {workflow!r} in {at}.",
                field="workflow",
                hint=_hint(workflow, names, "It has"),
            )
        step_item = self._mirror.item(workflow_item.digest, step_id)
        if step_item is None or not step_item.is_folder:
            raise NotFound(
                f"Workflow {workflow!r} has no step {step_id!r} in {at}.",
                field="step_id",
                hint=_hint(step_id, self._steps(workflow_item.digest), "It has"),
            )
        return StepRef(
            workflow=workflow,
            step_id=step_id,
            version=version,
            tree=step_item.digest,
            commit=resolved.commit,
            warnings=resolved.warnings,
        )

    def _folders(self, tree: str) -> list[TreeItem]:
        return [
            item
            for item in self._mirror.items(tree)
            if item.is_folder and not item.name.startswith(".")
        ]

    def _steps(self, tree: str) -> tuple[str, ...]:
        return tuple(
            step.name
            for step in self._folders(tree)
            if any(item.name in DESCRIPTIONS for item in self._mirror.items(step.digest))
        )

    def _require(self, ref: StepRef, cancel: CancelToken | None) -> None:
        """See that the mirror has a step that was located earlier: it may have been made anew
        since.
        """
        assert ref.commit is not None, "a local step has no place in the registry"
        if self._mirror.holds(ref.commit):
            return
        self._mirror.recent(self._settings.mirror_max_age_s, cancel)
        if not self._mirror.holds(ref.commit) and not self._mirror.fetch_commit(
            ref.commit, cancel=cancel
        ):
            raise Unavailable(
                f"Commit {ref.commit[:12]} is no longer in the workflow registry.",
                code=ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
                hint="It was taken away after the request was sent; send the request again.",
            )


def local_step(
    path: str | Path,
    *,
    workflow: str,
    step_id: str,
    version: str = LATEST,
    limits: Limits | None = None,
) -> StepRef:
    """A step in a folder of this machine, with the hash that git would give it. Git's own files do
    not count.

    Raises `NotFound` if there is no such folder, `BadDescription` if it holds what is not taken.
    """
    folder = Path(path).expanduser()
    entries = _local_entries(folder, limits or Limits())
    return StepRef(
        workflow=workflow,
        step_id=step_id,
        version=version,
        tree=trees.tree_digest(entries),
        path=folder.absolute(),
    )


def read_local(ref: StepRef) -> StepFiles:
    """The files of a local step that decide how it is built."""
    assert ref.path is not None
    return read_folder(ref.path)


def read_folder(folder: Path) -> StepFiles:
    """What the planner reads of a step that lies in `folder`."""
    names = (*DESCRIPTIONS, REQUIREMENTS, POST_INSTALL)
    present = {
        name: folder / name
        for name in names
        if (folder / name).is_symlink() or (folder / name).exists()
    }

    def read(path: Path) -> bytes | None:
        return path.read_bytes() if path.stat().st_size <= MAX_TEXT_BYTES else None

    return _step_files(present, lambda path: path.is_file() and not path.is_symlink(), read)


def copy_local(
    ref: StepRef,
    destination: Path,
    cancel: CancelToken | None = None,
    *,
    limits: Limits | None = None,
) -> None:
    """Copy a local step to `destination`, under the checks of `WorkflowRegistry.extract`.

    Raises `BadDescription` also if the step is not any more what it was when it was pinned.
    """
    assert ref.path is not None
    folder = ref.path
    entries = _local_entries(folder, limits or Limits())
    changed = BadDescription(
        "changed while it was read", file=str(folder), hint="Send the request again."
    )
    if trees.tree_digest(entries) != ref.tree:
        raise changed
    try:
        trees.write(
            entries, destination, lambda entry: trees.read_file(folder / entry.path), cancel
        )
    except (trees.Changed, FileNotFoundError):
        raise changed from None


def limits_of(settings: RepositorySettings) -> Limits:
    """How much a step may hold on this site."""
    return Limits(max_files=settings.step_max_files, max_bytes=settings.step_max_bytes)


def _local_entries(folder: Path, limits: Limits) -> list[Entry]:
    if not folder.is_dir():
        raise NotFound(
            f"There is no folder {trees.printable(str(folder))!r} on this machine.",
            field="path",
            hint=_hint(folder.name, _sibling_folders(folder), f"{folder.parent} has"),
        )
    with _as_bad_description():
        entries = trees.read_entries(folder, trees.walk(folder, limits=limits))
        trees.check(entries, limits)
    return entries


def _sibling_folders(folder: Path) -> list[str]:
    try:
        return [
            item.name
            for item in folder.parent.iterdir()
            if item.is_dir() and not item.name.startswith(".")
        ]
    except OSError:
        return []


@contextlib.contextmanager
def _as_bad_description() -> Iterator[None]:
    """What a folder must not hold, told as a step's fault."""
    try:
        yield
    except BadTree as error:
        hint = f"{error.hint[:1].upper()}{error.hint[1:]}." if error.hint else ""
        raise BadDescription(
            error.problem, file=error.path or "the step's folder", hint=hint
        ) from error


def _step_files(
    present: Mapping[str, _T], is_file: Callable[[_T], bool], read: Callable[[_T], bytes | None]
) -> StepFiles:
    """The parts of a step from what is `present` in its folder; `read` gives None for what is too
    large.
    """

    def content(name: str) -> bytes:
        if not is_file(present[name]):
            raise BadDescription(
                "is not a regular file", file=name, hint="Put the file itself there, no link."
            )
        raw = read(present[name])
        if raw is None:
            raise BadDescription(
                f"is larger than {MAX_TEXT_BYTES // 1024} KiB", file=name, hint="Shorten it."
            )
        return raw

    names = [name for name in DESCRIPTIONS if name in present]
    if not names:
        raise BadDescription(
            "is missing in the step's folder",
            file=DESCRIPTIONS[0],
            hint="Add one with apt, pip or spack, for example:\nspack:\n  specs:\n  - openmpi",
        )
    script = content(POST_INSTALL) if POST_INSTALL in present else None
    return StepFiles(
        description_file=names[0],
        description=_text(content(names[0]), names[0]),
        requirements=_text(content(REQUIREMENTS), REQUIREMENTS)
        if REQUIREMENTS in present
        else None,
        has_post_install=script is not None,
        shebang=None if script is None else _shebang(script),
        warnings=(f"The step has {names[0]} and {names[1]}; {names[0]} is used.",)
        if len(names) > 1
        else (),
    )


def _text(raw: bytes, file: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDescription(
            "is not UTF-8 text",
            file=file,
            line=raw.count(b"\n", 0, error.start) + 1,
            hint="Save it as UTF-8.",
        ) from None


def _shebang(script: bytes) -> str | None:
    """The interpreter line of a script without its `#!`, if it has one."""
    first = script.split(b"\n", 1)[0].rstrip()
    if not first.startswith(b"#!") or len(first) > MAX_SHEBANG_BYTES:
        return None
    return first[2:].decode("utf-8", "replace").strip() or None


def _is_full_commit(version: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{40}", version) is not None


def _hint(name: str, known: Sequence[str], lead: str) -> str:
    """What to write instead of `name`: the nearest, or else what there is."""
    close = nearest(name, known)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not known:
        return f"{lead} none."
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"{lead} {', '.join(known[:MAX_LISTED])}{more}."


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which v10 comes after v9."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]
