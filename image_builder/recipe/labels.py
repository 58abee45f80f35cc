"""Makes the OCI labels of an image, which Singularity keeps in the SIF.

Pure and without time stamps: equal inputs give equal labels. Nothing here is a secret, and nothing
names the place where the image was built.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

from image_builder.docker import label_names
from image_builder.recipe.environment import Environment
from image_builder.request import gpu_drivers
from image_builder.request.build_request import BuildRequest
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.sources.own_description import own_text
from image_builder.spack import spec as spack_spec
from image_builder.spack.lockfile import Graph, Node


def image_labels(
    request: BuildRequest,
    *,
    environment: Environment,
    identity: str,
    recipe: str,
    workflow_commit: str | None = None,
    workflow_source: str | None = None,
    lock: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the labels of an image of `request`; what is not known is left out.

    `workflow_source` is the registry's address, `recipe` the recipe's version. `lock` is the
    `spack.lock`, which says which MPI and GPU runtime were chosen in the end.
    """
    labels = {
        label_names.TITLE: f"{request.workflow_name}/{request.step_name}",
        label_names.VERSION: request.version,
        label_names.REVISION: workflow_commit,
        label_names.SOURCE: public_address(workflow_source) if workflow_source else None,
        label_names.REQUEST: canonical_request(request),
        label_names.IDENTITY: identity,
        label_names.WORKFLOW: request.workflow_name,
        label_names.STEP: request.step_name,
        label_names.WORKFLOW_COMMIT: workflow_commit,
        label_names.PLATFORM: request.machine.platform,
        label_names.TARGET: environment.target,
        label_names.RECIPE: recipe,
    }
    nodes = list(Graph(lock)) if lock else []
    labels |= _mpi_labels(environment.mpi, nodes) | _gpu_labels(
        environment.gpu, environment.gpu_arch, nodes
    )
    return {key: value for key, value in sorted(labels.items()) if value}


def canonical_request(request: BuildRequest) -> str:
    """Return what was asked for as one line of JSON.

    How to build it and where from are left out: users who bring the same share the image. Of a
    description there is the digest: the label is an argument of a process, which may not be long.
    """
    fields = request.image_fields()
    for name in ("description", "packages"):
        fields.pop(name, None)
    if request.is_described:
        fields["description"] = f"sha256:{hashlib.sha256(own_text(request).encode()).hexdigest()}"
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def public_address(address: str) -> str | None:
    """Return a git address without credentials, query and fragment, or None for a local path."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https", "ssh", "git") or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return urllib.parse.urlunsplit((parts.scheme, parts.hostname + port, parts.path, "", ""))


def _mpi_labels(spec: str | None, nodes: list[Node]) -> dict[str, str | None]:
    if not spec:
        return {}
    name, version = _name_and_version(spec, nodes)
    facts = mpi_facts()["implementations"].get(name, {})
    return {
        label_names.MPI_NAME: name,
        label_names.MPI_FAMILY: facts.get("family", name),
        label_names.MPI_VERSION: version,
    }


def _gpu_labels(spec: str | None, arch: str | None, nodes: list[Node]) -> dict[str, str | None]:
    if not spec:
        return {}
    name, version = _name_and_version(spec, nodes)
    runtime = next(
        (known for known, facts in gpu_facts()["runtimes"].items() if facts["package"] == name),
        name,
    )
    driver = gpu_drivers.minimal_driver(version) if runtime == "cuda" and version else None
    return {
        label_names.GPU_RUNTIME: runtime,
        label_names.GPU_VERSION: version,
        label_names.GPU_ARCH: arch,
        label_names.GPU_MIN_DRIVER: driver,
    }


def _name_and_version(spec: str, nodes: list[Node]) -> tuple[str, str | None]:
    """Return a spec's package and its version, the lockfile's or else the plain one asked for."""
    asked = spack_spec.nodes(spec)[0]
    locked = next((node.version for node in nodes if node.name == asked.name), None)
    plain = asked.version.lstrip("=")
    return asked.name, locked or (plain if plain.replace(".", "").isdigit() else None)
