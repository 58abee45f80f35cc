"""Finds workflow steps in a git registry, reads them, and copies them into a build.

A registry is a git repository that contains `<workflow>/<step>/eflows4hpc.yaml`. Its content is written by
strangers: a step is taken file by file from the repository's objects, never checked out, and nothing in it is run.
What a description says is `description.parse_description`'s business.
"""

from __future__ import annotations

import collections
import re
import threading
from pathlib import Path
from typing import Literal

from image_builder.errors import ErrorCode, Misconfigured, NotFound, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.request.build_request import LATEST
from image_builder.settings import RepositorySettings
from image_builder.sources.git import trees
from image_builder.sources.git.mirror import Mirror, Repository, Snapshot
from image_builder.sources.git.objects import TreeItem
from image_builder.sources.git.remote import Network
from image_builder.sources.git.revisions import Ambiguous, Resolved, Unlisted, Versions, is_commit
from image_builder.sources.git.urls import BadGitUrl, folder_url, parse_source
from image_builder.sources.step import (
    DESCRIPTIONS,
    MAX_TEXT_BYTES,
    StepFiles,
    StepFolder,
    StepRef,
    as_bad_description,
    limits_of,
    near_hint,
    step_files,
    text_or_none,
)

MISSES, MISS_WINDOW_S = 6, 60.0
"""So many names that are not in the mirror cost a fetch each within this time; further ones are
looked for in what was fetched within `mirror_max_age_s`.
"""
KEY = "workflow_repository in repositories_cfg"
BRANCH_KEY = "default_workflow_repository_branch in repositories_cfg"
NO_REFERENCES = Snapshot(fetched_at=0, head=None, branches={}, tags={})
"""A snapshot without references, which is enough for a version that is a commit."""


class WorkflowRegistry:
    """Reads the registry that the settings name, through a mirror. Threads may share it.

    The mirror is below the folder `mirrors`.
    """

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
        branch = settings.default_workflow_repository_branch
        if branch and source.ref and branch != source.ref:
            raise Misconfigured(
                f"{KEY} says that latest is {source.ref!r}, and {BRANCH_KEY} that it is {branch!r}.",
                hint="Leave one of them out.",
            )
        self._latest = branch or source.ref or LATEST
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
        self._missing = threading.Lock()
        self._missed_at: collections.deque[float] = collections.deque()
        self._files: dict[str, StepFiles] = {}

    @property
    def _latest_key(self) -> str:
        return BRANCH_KEY if self._settings.default_workflow_repository_branch else KEY

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
        """Return the step of this name and version, pinned; fetches once if the mirror lacks it.

        It does not fetch after too many unknown names of late (`MISSES`). Raises `NotFound` with
        the field that is wrong and what is there instead, `Unavailable` if the registry has to be
        asked and does not answer. A full commit that the mirror holds needs no registry.
        """
        asked_at = self._mirror.now()
        try:
            return self._locate(workflow, step_id, version, self._snapshot_for(version, cancel))
        except NotFound as missing:
            if is_commit(version) and missing.field != "version":
                raise  # what a commit holds never changes
            if not self._may_miss(asked_at):
                raise
            snapshot = self._mirror.snapshot(not_before=asked_at, cancel=cancel)
            if is_commit(version) and self._settings.allow_unlisted_commits:
                self._mirror.fetch_commit(version.lower(), cancel=cancel)
            return self._locate(workflow, step_id, version, snapshot)

    def _may_miss(self, moment: float) -> bool:
        """Whether one more unknown name may cost a fetch; counts it."""
        with self._missing:
            while self._missed_at and self._missed_at[0] <= moment - MISS_WINDOW_S:
                self._missed_at.popleft()
            if len(self._missed_at) >= MISSES:
                return False
            self._missed_at.append(moment)
            return True

    def read(self, ref: StepRef) -> StepFiles:
        """Return the files of a located step that decide how it is built; remembers them."""
        known = self._files.get(ref.tree)
        if known is None:
            self._require(ref, None)
            files = {item.name: item for item in self._mirror.items(ref.tree)}
            known = step_files(
                files,
                lambda item: item.is_file,
                lambda item: self._mirror.file(item.digest, MAX_TEXT_BYTES),
                self._folder_of(ref.tree),
            )
            if len(self._files) >= 1000:
                self._files.clear()
            self._files[ref.tree] = known
        return known

    def _folder_of(self, tree: str) -> StepFolder:
        def item(path: str) -> TreeItem | None:
            current: TreeItem | None = None
            digest = tree
            for name in path.split("/"):
                current = self._mirror.item(digest, name) if digest else None
                digest = current.digest if current is not None and current.is_folder else ""
            return current

        def kind_of(path: str) -> Literal["file", "folder"] | None:
            current = item(path)
            return None if current is None else "folder" if current.is_folder else "file"

        def read(path: str) -> str | None:
            current = item(path)
            if current is None or not current.is_file:
                return None
            return text_or_none(self._mirror.file(current.digest, MAX_TEXT_BYTES))

        return StepFolder(kind_of=kind_of, read=read)

    def time_of(self, ref: StepRef, cancel: CancelToken | None = None) -> int:
        """Return when a located step's commit was made, in seconds since 1970."""
        self._require(ref, cancel)
        assert ref.commit is not None
        return self._mirror.time_of(ref.commit)

    def extract(self, ref: StepRef, destination: Path, cancel: CancelToken | None = None) -> None:
        """Write the step's folder to `destination`, which must be missing or empty.

        Nothing else is written. Raises `BadDescription` for a step with content that is refused:
        links out of it, submodules, too much. Nothing is left behind when it fails.
        """
        self._require(ref, cancel)
        with as_bad_description():
            entries = self._mirror.entries(ref.tree, self._limits, cancel=cancel)
            trees.check(entries, self._limits)
            self._mirror.write(entries, destination, cancel)

    def workflows(self, version: str = LATEST) -> tuple[str, ...]:
        """Return the names of the workflows that have a step with a description."""
        commit = self._commit(version)
        return tuple(
            item.name
            for item in self._folders(self._mirror.tree_of(commit))
            if self._steps(item.digest)
        )

    def steps(self, workflow: str, version: str = LATEST) -> tuple[str, ...]:
        """Return the steps of a workflow that have a description; none for an unknown workflow."""
        item = self._mirror.item(self._mirror.tree_of(self._commit(version)), workflow)
        return self._steps(item.digest) if item is not None and item.is_folder else ()

    def versions(self) -> tuple[str, ...]:
        """Return the versions to ask for: `latest`, the branches, the tags (highest first)."""
        snapshot = self._mirror.recent(self._settings.mirror_max_age_s)
        return (
            LATEST,
            *sorted(snapshot.branches),
            *sorted(snapshot.tags, key=_natural, reverse=True),
        )

    def _snapshot_for(self, version: str, cancel: CancelToken | None) -> Snapshot:
        if is_commit(version) and self._mirror.holds(version.lower()):
            return NO_REFERENCES
        return self._mirror.recent(self._settings.mirror_max_age_s, cancel)

    def _commit(self, version: str) -> str:
        return self._resolve(version, self._snapshot_for(version, None)).commit

    def _resolve(self, version: str, snapshot: Snapshot) -> Resolved:
        try:
            resolved = self._versions.resolve(
                self._latest if version == LATEST else version,
                snapshot,
                allow_unlisted=version == LATEST or self._settings.allow_unlisted_commits,
            )
        except Unlisted as error:
            raise NotFound(
                str(error), field="version", hint="Push it to a branch of the registry first."
            ) from None
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
                else f"{self._latest!r}, which {self._latest_key} names"
            )
            raise NotFound(
                f"The workflow registry does not have {what}.",
                field="version",
                hint=near_hint(version, [*snapshot.branches, *snapshot.tags], "It has"),
            )
        raise NotFound(
            f"There is no version {version!r} in the workflow registry.",
            field="version",
            hint=near_hint(version, [LATEST, *snapshot.branches, *snapshot.tags], "It has"),
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
                hint=near_hint(workflow, names, "It has"),
            )
        step_item = self._mirror.item(workflow_item.digest, step_id)
        if step_item is None or not step_item.is_folder:
            raise NotFound(
                f"Workflow {workflow!r} has no step {step_id!r} in {at}.",
                field="step_id",
                hint=near_hint(step_id, self._steps(workflow_item.digest), "It has"),
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
        """Make sure that the mirror has a located step: it may have been rebuilt since."""
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


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which v10 comes after v9."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]
