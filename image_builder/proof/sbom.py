"""Writes what is in an image as a software bill of materials: SPDX 2.3, in JSON. Pure.

Equal images get equal bytes: the one time in it is that of the step's commit, and its namespace is
a digest of the rest. What is not known is `NOASSERTION`, as SPDX says it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.proof.contents import Contents
from image_builder.proof.debian import DebianPackage
from image_builder.proof.licences import UNSTATED, Licence, licence_as_stated
from image_builder.proof.spack_sources import source_of
from image_builder.proof.texts import plain
from image_builder.proof.wheels import Wheel
from image_builder.spack.lockfile import Graph, Node

FILE = "sbom.spdx.json"
"""The name of the document, in the store and in a SIF."""
SIGNED_FILE = "sbom.dsse.json"
"""The name of the document in an envelope with a signature, in the store."""
MEDIA_TYPE = "application/spdx+json"
PREDICATE_TYPE = "https://spdx.dev/Document"
"""What a statement is that repeats the document."""
NOASSERTION = "NOASSERTION"
DOCUMENT, IMAGE, BASE, STEP = (
    "SPDXRef-DOCUMENT",
    "SPDXRef-Image",
    "SPDXRef-BaseImage",
    "SPDXRef-Step",
)
RUNTIME_TYPES = frozenset({"link", "run"})
_URL = re.compile(
    r"(?:(?:git|hg|svn|bzr)\+)?(?:https?|ftp|ssh|git)://[A-Za-z0-9._~:/?@!$&()*+,;=%-]+\Z"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Says which image a document is about; `created_s` is in seconds since 1970."""

    image_id: str
    identity: str
    platform: str
    target: str
    recipe: str
    is_slim: bool
    workflow: str
    step_id: str
    tree: str
    commit: str | None
    source: str | None
    """The public address of the workflow registry."""
    base: str
    """The base image with its digest, as `FROM` names it."""
    base_digest: str | None
    created_s: int
    tool: str


def nodes_in_image(graph: Graph, contents: Contents, *, is_slim: bool) -> list[Node]:
    """Return the nodes of a lockfile that are in an image, in order of name.

    Those that Spack built have their prefix there. What was there before Spack is in a full image,
    and in a slim one if the environment's roots need it to run.
    """
    running = _running(graph) if is_slim else None
    return sorted(
        (
            node
            for node in graph
            if node.hash in contents.prefixes
            or (node.external and (running is None or node.hash in running))
        ),
        key=lambda node: (node.name, node.hash),
    )


def _running(graph: Graph) -> set[str]:
    """Return the hashes of what roots need to run; edges that say no type count."""
    seen: set[str] = set()
    waiting = [node.hash for node in graph.root_nodes()]
    while waiting:
        node_hash = waiting.pop()
        if node_hash not in seen:
            seen.add(node_hash)
            waiting += [
                edge.hash
                for edge in graph[node_hash].dependencies
                if not edge.types or edge.types & RUNTIME_TYPES
            ]
    return seen


def sbom(facts: ImageFacts, graph: Graph | None, contents: Contents) -> str:
    """Return the document about an image, which ends with a newline."""
    nodes = [] if graph is None else nodes_in_image(graph, contents, is_slim=facts.is_slim)
    packages = [_image(facts), _base(facts), _step(facts)]
    packages += [_node(node, contents) for node in nodes]
    packages += [_debian(package, contents) for package in contents.packages]
    packages += [_wheel(one) for one in contents.wheels]
    document: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": plain(facts.image_id),
        "comment": _comment(facts, graph, nodes, contents),
        "creationInfo": {
            "created": datetime.datetime.fromtimestamp(
                facts.created_s, datetime.timezone.utc
            ).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: {facts.tool}"],
        },
        "packages": sorted(packages, key=lambda one: str(one["SPDXID"])),
        "relationships": sorted(
            _relationships(nodes, contents), key=lambda one: tuple(one.values())
        ),
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["documentNamespace"] = f"https://spdx.org/spdxdocs/cic-{digest}"
    return json.dumps(document, sort_keys=True, indent=1) + "\n"


def _comment(facts: ImageFacts, graph: Graph | None, nodes: list[Node], contents: Contents) -> str:
    words = [
        f"{'Slim' if facts.is_slim else 'Full'} image with identity {facts.identity}.",
        f"Debian packages: {len(contents.packages)}.",
        f"Python packages: {len(contents.wheels)}.",
    ]
    if graph is not None:
        total = sum(1 for _ in graph)
        words.append(f"Nodes of spack.lock: {len(nodes)} of {total} are in the image.")
    return " ".join(words)


def _package(
    spdx_id: str,
    name: str,
    version: str,
    *,
    location: str = "",
    licence: Licence = UNSTATED,
    **more: Any,
) -> dict[str, Any]:
    """Return a package of the document; keys without a value are left out."""
    is_told = bool(licence.stated) and licence.expression is None
    said = {
        "SPDXID": spdx_id,
        "name": plain(name) or "unnamed",
        "versionInfo": plain(version),
        "downloadLocation": location if _URL.match(location) else NOASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": NOASSERTION,
        "licenseDeclared": licence.expression or NOASSERTION,
        "licenseComments": plain(f"Stated as: {licence.stated}") if is_told else "",
        "copyrightText": NOASSERTION,
        **more,
    }
    if not _URL.match(str(said.get("homepage") or "")):
        said.pop("homepage", None)
    return {key: value for key, value in said.items() if value not in ("", None, [])}


def _image(facts: ImageFacts) -> dict[str, Any]:
    return _package(
        IMAGE,
        facts.image_id,
        facts.identity,
        primaryPackagePurpose="CONTAINER",
        comment=f"platform {facts.platform}; target {facts.target}; recipe {facts.recipe}",
    )


def _base(facts: ImageFacts) -> dict[str, Any]:
    algorithm, _, digest = (facts.base_digest or "").partition(":")
    is_digest = algorithm == "sha256" and re.fullmatch("[0-9a-f]{64}", digest)
    return _package(
        BASE,
        facts.base,
        facts.base_digest or "",
        primaryPackagePurpose="CONTAINER",
        checksums=[{"algorithm": "SHA256", "checksumValue": digest}] if is_digest else [],
    )


def _step(facts: ImageFacts) -> dict[str, Any]:
    location = f"git+{facts.source}@{facts.commit}" if facts.source and facts.commit else ""
    return _package(
        STEP,
        f"{facts.workflow}/{facts.step_id}",
        facts.commit or facts.tree,
        location=location,
        primaryPackagePurpose="SOURCE",
        comment=f"git tree {facts.tree}",
    )


def _node(node: Node, contents: Contents) -> dict[str, Any]:
    prefix = contents.prefixes.get(node.hash)
    if node.external:
        where, source = "external: the image had it before Spack", None
    else:
        assert prefix is not None, "what Spack built is in the image by its prefix"
        where = f"prefix {prefix.path}"
        source = source_of(node.version, prefix.document, prefix.recipe)
    licence = source.licence if source else ""
    several = " / ".join(source.conditional_licences) if source and not licence else ""
    return _package(
        _node_id(node),
        node.name,
        node.version,
        location=source.url if source else "",
        licence=licence_as_stated(licence or several),
        homepage=source.homepage if source else "",
        checksums=[
            {"algorithm": algorithm, "checksumValue": digest}
            for algorithm, digest in (source.checksums if source else ())
        ],
        comment=plain(
            f"hash {node.hash}; target {node.target}; {where}; variants {variants(node)}", most=4000
        ),
        externalRefs=[
            {
                "referenceCategory": "OTHER",
                "referenceType": "spack-hash",
                "referenceLocator": f"{node.name}@{_quoted(node.version)}/{node.hash}",
            }
        ],
    )


def variants(node: Node) -> str:
    """Return a node's variants in Spack's notation, in order of name."""
    words = []
    for name, value in sorted(node.parameters.items()):
        if isinstance(value, bool):
            words.append(f"{'+' if value else '~'}{name}")
        elif value not in (None, [], ""):
            listed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"{name}={listed}")
    return " ".join(words)


def _debian(package: DebianPackage, contents: Contents) -> dict[str, Any]:
    return _package(
        _debian_id(package),
        package.name,
        package.version,
        licence=contents.licences.get(package.name, UNSTATED),
        homepage=package.homepage,
        sourceInfo=f"built from {package.source} {package.source_version}",
        comment=f"maintained by {package.maintainer}" if package.maintainer else "",
        externalRefs=[
            _purl(
                f"pkg:deb/{contents.system or 'debian'}/{_quoted(package.name)}@{_quoted(package.version)}"
                f"?arch={package.architecture}"
            )
        ],
    )


def _wheel(one: Wheel) -> dict[str, Any]:
    record = f"; its RECORD has the SHA-256 {one.record_sha256}" if one.record_sha256 else ""
    return _package(
        _wheel_id(one),
        one.name,
        one.version,
        location=one.origin,
        licence=licence_as_stated(one.licence),
        homepage=one.homepage,
        comment=plain(f"installed as {one.folder}{record}", most=2000),
        externalRefs=[_purl(f"pkg:pypi/{_quoted(one.project)}@{_quoted(one.version)}")],
    )


def _purl(locator: str) -> dict[str, str]:
    return {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _relationships(nodes: list[Node], contents: Contents) -> Iterator[dict[str, str]]:
    """Yield who contains what, what needs what, and what the image was made from."""
    yield _relation(DOCUMENT, "DESCRIBES", IMAGE)
    yield _relation(IMAGE, "DESCENDANT_OF", BASE)
    yield _relation(IMAGE, "CONTAINS", STEP)
    ids = {node.hash: _node_id(node) for node in nodes}
    for node in nodes:
        yield _relation(IMAGE, "CONTAINS", ids[node.hash])
        for edge in node.dependencies:
            if edge.hash in ids:
                if not edge.types or edge.types & RUNTIME_TYPES:
                    yield _relation(ids[node.hash], "DEPENDS_ON", ids[edge.hash])
                else:
                    yield _relation(ids[edge.hash], "BUILD_DEPENDENCY_OF", ids[node.hash])
    for package in contents.packages:
        yield _relation(IMAGE, "CONTAINS", _debian_id(package))
    owners = _owners(nodes, contents)
    for one in contents.wheels:
        yield _relation(owners.get(one.folder, IMAGE), "CONTAINS", _wheel_id(one))


def _owners(nodes: list[Node], contents: Contents) -> dict[str, str]:
    """Return what brought a wheel, by the wheel's folder: a package of Spack or of Debian."""
    prefixes: Mapping[str, str] = {
        contents.prefixes[node.hash].path: _node_id(node)
        for node in nodes
        if node.hash in contents.prefixes
    }
    debian = {package.name: _debian_id(package) for package in contents.packages}
    owners = {
        folder: debian[name] for folder, name in contents.wheel_owners.items() if name in debian
    }
    for one in contents.wheels:
        parts = one.folder.split("/")
        for end in range(2, len(parts)):
            if (above := "/".join(parts[:end])) in prefixes:
                owners[one.folder] = prefixes[above]
    return owners


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _node_id(node: Node) -> str:
    return _id("Spack", node.name, node.hash)


def _debian_id(package: DebianPackage) -> str:
    return _id("Deb", package.name, package.architecture, package.version)


def _wheel_id(one: Wheel) -> str:
    return _id("Wheel", one.name, one.folder)


def _id(kind: str, name: str, *more: str) -> str:
    """Return an identifier of SPDX's few letters, which a digest keeps apart from all others."""
    digest = hashlib.sha256("\0".join((kind, name, *more)).encode()).hexdigest()[:16]
    return f"SPDXRef-{kind}-{re.sub('[^A-Za-z0-9.-]', '-', name)[:60]}-{digest}"
