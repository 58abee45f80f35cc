"""Opens a bundle: checks it, unpacks it, and makes of it what a build needs in place of servers."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from image_builder.build.stages import MAX_LOCK_BYTES
from image_builder.bundle import archive, images
from image_builder.bundle.manifest import (
    AGAIN,
    CONFIG,
    IMAGES,
    LOCK,
    MEDIA_TYPE,
    PACKAGES,
    STEP,
    BadBundle,
    Image,
    Manifest,
    require_for,
)
from image_builder.docker import base_image, buildx
from image_builder.docker.base_image import BaseFacts
from image_builder.errors import Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.host.files import UnreadableFile, read_bounded
from image_builder.host.process import Runner, run
from image_builder.observer import Observer
from image_builder.plan.identity import identity_of
from image_builder.plan.image_name import image_name
from image_builder.plan.inputs import Inputs
from image_builder.proof import keys
from image_builder.recipe.stages import BUNDLE_BUILT, BUNDLE_SPACK_SOURCES, LATEST_RECIPE
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.sources.git.trees import BadTree, Limits
from image_builder.sources.own_description import own_step
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.sources.source_tree import LIMITS
from image_builder.sources.step import StepRef, limits_of
from image_builder.sources.uploads import keep_upload
from image_builder.spack import lockfile

NO_SERVERS: Mapping[str, None] = dict.fromkeys(
    (
        "spack_cache_keys",
        "build_cache",
        "apt_mirror",
        "pip_index_url",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "ca_bundle",
    )
)
"""Settings of builds that a build without network does without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trust:
    """Says whose bundles are used: those that one of `keys` (public, in PEM) signed."""

    keys: tuple[str, ...] = ()
    allow_unsigned: bool = False

    def accept(self, text: bytes, signature: bytes | None) -> bool:
        """Return whether a key vouches for a manifest. Raises `BadBundle` where one has to."""
        if signature is None or not self.keys:
            if self.allow_unsigned:
                return False
            raise BadBundle(
                "Nobody has signed the bundle."
                if signature is None
                else "The bundle is signed, and no key is named that it could be compared with.",
                hint="Have it made with a key (proof_cfg['key']) and name its public key with "
                "--keys; or trust where it comes from, with --allow-unsigned.",
            )
        if not any(keys.opened(signature, MEDIA_TYPE, key) == text for key in self.keys):
            raise BadBundle(
                "The bundle's signature is of none of the named keys, or the bundle was edited.",
                hint="Name the public key of its maker with --keys.",
            )
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Holds what a build takes from an open bundle, whose folder has to stay as long."""

    inputs: Inputs
    settings: LibrarySettings


def open_bundle(
    path: Path,
    request: BuildRequest,
    settings: LibrarySettings,
    *,
    trust: Trust,
    folder: Path,
    observer: Observer,
    cancel: CancelToken,
    runner: Runner = run,
) -> Opened:
    """Check a bundle, unpack it below `folder`, and load its images.

    Raises `BadBundle` before anything of it is used.
    """
    if not buildx.sees_local_images(settings.build, runner):
        raise Misconfigured(
            "A bundle's images can be used by Docker's own builder only.",
            hint="Leave buildx_builder out of build_cfg for this.",
        )
    unpacked, scratch = folder / "bundle", folder / "scratch"
    for one in (unpacked, scratch):
        one.mkdir(parents=True)
    observer.line(f"Checking {path}")
    manifest, is_vouched_for = archive.read(
        path,
        unpacked,
        accept=trust.accept,
        require=functools.partial(_require_usable, request=request),
        cancel=cancel,
        min_free_bytes=settings.build.min_free_bytes,
    )
    unpacked_bundle = _Unpacked(
        manifest=manifest,
        request=request,
        settings=settings,
        files=unpacked,
        scratch=scratch,
        cancel=cancel,
        runner=runner,
    )
    step, lock = unpacked_bundle.step(), unpacked_bundle.lock()
    site = unpacked_bundle.site(may_share=is_vouched_for)
    _require_identity(manifest, request, step)
    for image in manifest.images:
        observer.line(f"Loading {image.reference}")
    return Opened(inputs=unpacked_bundle.inputs(step, lock), settings=site)


def _require_usable(manifest: Manifest, request: BuildRequest) -> None:
    require_for(manifest, request, recipe=LATEST_RECIPE)
    held = manifest.by_path
    wanted = {path: Path(path).name for image in manifest.images for path in images.blobs(image)}
    if any(path not in held or held[path].sha256 != digest for path, digest in wanted.items()):
        raise BadBundle("The bundle lacks a part of its base image.", hint=AGAIN)


def _require_identity(manifest: Manifest, request: BuildRequest, step: StepRef) -> None:
    """Raise `BadBundle` unless what the bundle holds has the identity that it names."""
    catalogue, runtime = manifest.catalogue, manifest.runtime
    identity = identity_of(
        request,
        step_tree=step.tree,
        base_digest=manifest.base.digest,
        packages_tree=catalogue.packages_tree,
        config_tree=catalogue.config_tree,
        recipe_version=manifest.recipe,
        branch_commits=manifest.branch_commits,
        runtime_digest=runtime.digest if runtime is not None else None,
    )
    if identity != manifest.identity:
        raise BadBundle("The bundle's identity is not that of what it holds.", hint=AGAIN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unpacked:
    """Turns the checked files of a bundle, below `files`, into what a build takes."""

    manifest: Manifest
    request: BuildRequest
    settings: LibrarySettings
    files: Path
    scratch: Path
    cancel: CancelToken
    runner: Runner

    def step(self) -> StepRef:
        """Return the step, from the request itself or from the folder in the bundle."""
        request, pinned = self.request, self.manifest.step
        if request.is_described:
            return own_step(request)
        if request.folder is not None and request.folder != pinned.tree:
            raise BadBundle("The bundle is for another folder than the request.", hint=AGAIN)
        return StepRef(
            workflow=request.workflow_name,
            step_id=request.step_name,
            version=request.version,
            tree=pinned.tree,
            commit=pinned.commit,
            path=self._folder(STEP, pinned.tree, limits_of(self.settings.repositories)),
            time_s=pinned.time_s,
        )

    def site(self, *, may_share: bool) -> LibrarySettings:
        """Return the site's settings with the bundle in place of everything on other machines.

        What it holds of built packages gets into a mount that later builds share, so somebody has
        to vouch for it.
        """
        manifest, settings = self.manifest, self.settings
        packages, config = (
            None if tree is None else str(self._folder(path, tree, LIMITS))
            for path, tree in (
                (PACKAGES, manifest.catalogue.packages_tree),
                (CONFIG, manifest.catalogue.config_tree),
            )
        )
        sources, built = self.files / BUNDLE_SPACK_SOURCES, self.files / BUNDLE_BUILT
        repositories = settings.repositories.model_copy(
            update={
                "software_repository": packages,
                "workflow_repository": manifest.workflow_repository
                or settings.repositories.workflow_repository,
            }
        )
        build = settings.build.model_copy(
            update={
                "base_image": {manifest.platform: manifest.base.reference},
                "spack_cfg": config,
                "spack_mirror": str(sources) if sources.is_dir() else None,
                "spack_cache": str(built) if may_share and built.is_dir() else "none",
                **NO_SERVERS,
            }
        )
        registry = settings.registry.model_copy(update={"url": None, "logins": {}})
        return settings.model_copy(
            update={"repositories": repositories, "build": build, "registry": registry}
        )

    def inputs(self, step: StepRef, lock: str | None) -> Inputs:
        """Load the images to build on, and return what the build is pinned to."""
        manifest, request = self.manifest, self.request
        name = image_name(request, prefix=self.settings.registry.images_prefix)
        has_sif = request.machine.container_engine == "singularity"
        return Inputs(
            step=step,
            catalogue=PinnedCatalogue(**manifest.catalogue.model_dump()),
            base=self._loaded(manifest.base),
            runtime=None if manifest.runtime is None else self._loaded(manifest.runtime),
            full_because=manifest.full_because,
            branch_commits=manifest.branch_commits,
            identity=manifest.identity,
            push=False,
            recipe_version=manifest.recipe,
            image_id=name.image_id,
            filename=name.filename if has_sif else None,
            warnings=(),
            bundle=self.files,
            lock=lock,
        )

    def _folder(self, path: str, tree: str, limits: Limits) -> Path:
        """Unpack a folder of the bundle, and return where it is; its tree is what it has to be."""
        if path not in self.manifest.by_path:
            raise BadBundle(f"The bundle lacks its {path}.", hint=AGAIN)
        try:
            with (self.files / path).open("rb") as packed:
                kept = keep_upload(packed, self.scratch / "trees", limits)
        except BadTree as error:
            raise BadBundle(f"The bundle's {path} cannot be used: {error}.", hint=AGAIN) from error
        if kept.tree != tree:
            raise BadBundle(f"The bundle's {path} is not what its manifest pins.", hint=AGAIN)
        return self.scratch / "trees" / tree

    def _loaded(self, image: Image) -> BaseFacts:
        """Load an image, and return what it holds itself, under the digest in the identity."""
        reference = images.load(
            image,
            self.files / IMAGES,
            self.scratch,
            platform=self.manifest.platform,
            runner=self.runner,
            cancel=self.cancel,
        )
        facts = base_image.probe_base(
            reference,
            f"sha256:{image.config}",
            self.manifest.platform,
            self.settings.build.tmp_folder / "cache" / "bases",
            cancel=self.cancel,
        )
        return dataclasses.replace(facts, digest=image.digest)

    def lock(self) -> str | None:
        """Return what Spack decided to install, if the step needs Spack."""
        if LOCK not in self.manifest.by_path:
            return None
        try:
            text = read_bounded(self.files / LOCK, MAX_LOCK_BYTES).decode("utf-8")
            lock = json.loads(text)
            lockfile.Graph(lock if isinstance(lock, dict) else {})
        except (UnreadableFile, ValueError, RecursionError) as error:
            raise BadBundle(f"The bundle's spack.lock is none: {error}.", hint=AGAIN) from None
        return text
