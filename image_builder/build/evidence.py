"""Writes down what a finished image is made of, and how it came about.

A document that cannot be made is a warning: the image is as good as without it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.build.context import BuildContext, Built
from image_builder.errors import CicError
from image_builder.plan.image_name import without_owner
from image_builder.proof import contents, provenance, sbom
from image_builder.proof.provenance import Resource
from image_builder.recipe.labels import canonical_request, public_address
from image_builder.sif import format
from image_builder.sif.tar_filter import Member, Window
from image_builder.spack import lockfile
from image_builder.spack.lockfile import Graph, UnreadableLock
from image_builder.store.record import PUSHED_AS, ImageRecord

TOOL = "container-image-service"


def documents(context: BuildContext, built: Built) -> dict[str, str | None]:
    """Return the documents about an image by their names, None for those that it does not have.

    An earlier image of the same identity may have had them.
    """
    return {
        sbom.FILE: built.sbom,
        **_signed(context, sbom.SIGNED_FILE, sbom.MEDIA_TYPE, built.sbom),
    }


def _signed(
    context: BuildContext, name: str, media_type: str, text: str | None
) -> dict[str, str | None]:
    """Return a document in an envelope with a signature, where the service has a key."""
    signer = context.signer
    if signer is None or text is None:
        return {name: None}
    return {name: signer.envelope(media_type, text.encode()).decode()}


@dataclasses.dataclass(frozen=True)
class SifEvidence:
    """Makes what a SIF says about itself: its bill of materials, and how it came about."""

    context: BuildContext
    built: Built
    lock: str | None

    def first(self) -> list[format.Object]:
        """Return the bill of materials."""
        if self.built.sbom is None:
            return []
        return [
            format.Object(
                data_type=format.DataType.SBOM,
                content=self.built.sbom.encode(),
                name=sbom.FILE,
                extra=format.SPDX_JSON,
            )
        ]

    def last(self, digests: format.Digests) -> list[format.Object]:
        """Return the statement about the SIF's other parts."""
        if not self.context.settings.proof.provenance:
            return []
        subjects = [
            Resource(name="squashfs", digest={"sha256": digests.squashfs}),
            *(
                Resource(name=name, digest={"sha256": digest})
                for name, digest in sorted(digests.objects.items())
            ),
        ]
        signer, name = self.context.signer, provenance.FILE
        if signer is not None:  # what is signed covers the whole file, this object aside
            name = provenance.SIGNED_FILE
            subjects.insert(0, Resource(name="head", digest={"sha256": digests.head}))
        origin_of_it = origin(self.context, self.built, self.lock)
        content = provenance.statement(origin_of_it, subjects).encode()
        if signer is not None:
            content = signer.envelope(provenance.MEDIA_TYPE, content)
        return [
            format.Object(
                data_type=format.DataType.GENERIC_JSON,
                content=content,
                name=name,
            )
        ]

    def seal(self, metadata: bytes) -> bytes | None:
        """Return the signature that `apptainer verify` reads, where the service has a key."""
        signer = self.context.signer
        return None if signer is None else signer.envelope(format.METADATA_TYPE, metadata)


def statements(
    context: BuildContext,
    built: Built,
    record: ImageRecord,
    *,
    lock: str | None,
    earlier: str | None,
) -> dict[str, str | None]:
    """Return the documents about how an image came about, when it is finished.

    Of an image that is used again, the `earlier` statement is about what was made now, too; if there
    is nothing new, there are no documents.
    """
    if not context.settings.proof.provenance:
        return {} if built.reused else {provenance.FILE: None, provenance.SIGNED_FILE: None}
    said = _statement(context, built, record, lock, earlier)
    if said == earlier:
        return {}
    signed = _signed(context, provenance.SIGNED_FILE, provenance.MEDIA_TYPE, said)
    return {provenance.FILE: said, **signed}


def _statement(
    context: BuildContext,
    built: Built,
    record: ImageRecord,
    lock: str | None,
    earlier: str | None,
) -> str:
    image_id = without_owner(context.inputs.image_id)  # several owners may share the image
    subjects = [provenance.of_digest(image_id, built.image)]
    pushed_as = record.details.get(PUSHED_AS)
    if pushed_as:
        name, digest = str(pushed_as).split("@", 1)
        subjects.append(provenance.of_digest(without_owner(name), digest))
    if record.sha256 is not None:
        name = without_owner(record.filename) if record.filename else image_id
        subjects.append(Resource(name=name, digest={"sha256": record.sha256}))
    if built.reused and earlier is not None:
        return provenance.with_subjects(earlier, subjects)
    log = Resource(
        name="log",
        digest={"sha256": context.observer.sha256},
        annotations={"lines": context.observer.lines},
    )
    run = provenance.Run(began_s=context.began_at, ended_s=time.time(), log=log)
    return provenance.statement(origin(context, built, lock), subjects, run)


def origin(context: BuildContext, built: Built, lock: str | None) -> provenance.Origin:
    """Return what an image was made of and by whom; equal for equal images."""
    byproducts = []
    if built.audit is not None:
        verdict = json.dumps(built.audit, sort_keys=True)
        byproducts.append(provenance.of_text(provenance.AUDIT, verdict, **built.audit))
    if lock is not None:
        byproducts.append(provenance.of_text(lockfile.FILE, lock))
    if built.sbom is not None:
        byproducts.append(provenance.of_text(sbom.FILE, built.sbom))
    return provenance.Origin(
        request=json.loads(canonical_request(context.request)),
        identity=context.identity,
        recipe=context.inputs.recipe_version,
        is_slim=built.is_slim,
        materials=_materials(context),
        builder_id=context.settings.proof.builder_id,
        byproducts=byproducts,
    )


def _materials(context: BuildContext) -> list[Resource]:
    """Return everything that a build was pinned to, with its commits and digests."""
    inputs, repositories = context.inputs, context.settings.repositories
    catalogue = inputs.catalogue
    packages = _public(repositories.software_repository)
    resources = [
        _tree("step", inputs.step.tree, inputs.step.commit, source_of(context)),
        provenance.of_digest("base image", inputs.base.digest, inputs.base.reference),
        _tree("catalogue", catalogue.packages_tree, catalogue.packages_commit, packages),
        _tree("Spack configuration", catalogue.config_tree, catalogue.config_commit, None),
    ]
    if inputs.runtime is not None:
        runtime = inputs.runtime
        resources.append(provenance.of_digest("runtime base", runtime.digest, runtime.reference))
    resources += [
        Resource(name=spec, digest={"gitCommit": commit})
        for spec, commit in sorted(inputs.branch_commits.items())
    ]
    return [one for one in resources if one.as_dict().get("digest")]


def _tree(name: str, tree: str | None, commit: str | None, source: str | None) -> Resource:
    return Resource(
        name=name,
        digest={"gitTree": tree, "gitCommit": commit},
        uri=f"git+{source}" if source else None,
    )


def source_of(context: BuildContext) -> str | None:
    """Return the public address that a step comes from, if it has one."""
    request = context.request
    if request.is_own or request.is_base or request.path is not None:
        return None
    return _public(context.settings.repositories.workflow_repository)


def _public(address: str | None) -> str | None:
    return public_address(address.partition("#")[0]) if address else None


@dataclasses.dataclass
class PackagesSeen:
    """Learns what is installed in an image while its files are read for the audit."""

    reader: contents.ContentsReader
    error: CicError | None = None
    is_whole: bool = False

    def see(self, member: Member, window: Window) -> None:
        if self.error is None:
            try:
                self.reader.see(member, window)
            except CicError as error:
                self.error = error

    def end(self) -> None:
        self.is_whole = True

    def contents(self) -> contents.Contents:
        """Return what is installed. Raises `CicError`."""
        if self.error is not None:
            raise self.error
        return self.reader.contents()


def packages_seen(context: BuildContext, lock: Mapping[str, Any]) -> list[PackagesSeen]:
    """Return what looks at an image's files for its bill of materials, if it is to have one."""
    if not context.settings.proof.sbom:
        return []
    try:
        return [PackagesSeen(contents.ContentsReader(_hashes(lock)))]
    except UnreadableLock:
        return []  # of which the bill of materials warns


def _hashes(lock: Mapping[str, Any]) -> list[str]:
    return [node.hash for node in Graph(lock)] if lock else []


def installed_in(
    context: BuildContext,
    image: str,
    lock: Mapping[str, Any],
    *,
    seen: Sequence[PackagesSeen] = (),
) -> contents.Contents | None:
    """Return what is installed in an image in the daemon; None where nothing is to tell it.

    What was `seen` of its files already is used; else they are read now.
    """
    if not context.settings.proof.sbom:
        return None
    context.cancel.check()
    try:
        with context.step("list what is installed"):
            known = next((one.contents() for one in seen if one.is_whole), None)
            return known or contents.read_contents(image, _hashes(lock), context.cancel)
    except (CicError, UnreadableLock) as error:
        context.cancel.check()
        context.warn(f"the image gets no bill of materials: {error}")
        return None


def bill_of_materials(
    context: BuildContext,
    installed: contents.Contents | None,
    lock: Mapping[str, Any],
    *,
    is_slim: bool,
) -> str | None:
    """Return the bill of materials of an image; None where it is not known what is installed."""
    if installed is None:
        return None
    try:
        graph = Graph(lock) if lock else None
        return sbom.sbom(_facts(context, is_slim=is_slim), graph, installed)
    except (CicError, UnreadableLock) as error:
        context.cancel.check()
        context.warn(f"the image gets no bill of materials: {error}")
        return None


def _facts(context: BuildContext, *, is_slim: bool) -> sbom.ImageFacts:
    inputs, request = context.inputs, context.request
    base = inputs.runtime if is_slim and inputs.runtime is not None else inputs.base
    return sbom.ImageFacts(
        image_id=context.documented_as,
        identity=context.identity,
        platform=context.platform,
        target=request.machine.target.name,
        recipe=inputs.recipe_version,
        is_slim=is_slim,
        workflow=request.workflow_name,
        step_id=request.step_name,
        tree=inputs.step.tree,
        commit=inputs.step.commit,
        source=source_of(context),
        base=base.reference,
        base_digest=base.digest,
        created_s=context.step_time_s,
        tool=TOOL,
    )
