"""Names the labels and annotations that images and artifacts carry.

Images of earlier versions are found by them, so a name that was given stays.
"""

from __future__ import annotations

TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
REVISION = "org.opencontainers.image.revision"
SOURCE = "org.opencontainers.image.source"

REQUEST = "cic.request"
IDENTITY = "cic.identity"
WORKFLOW = "cic.workflow"
STEP = "cic.step"
WORKFLOW_COMMIT = "cic.workflow.commit"
PLATFORM = "cic.platform"
TARGET = "cic.target"
MPI_NAME = "cic.mpi.name"
MPI_FAMILY = "cic.mpi.family"
MPI_VERSION = "cic.mpi.version"
GPU_RUNTIME = "cic.gpu.runtime"
GPU_VERSION = "cic.gpu.version"
GPU_ARCH = "cic.gpu.arch"
GPU_MIN_DRIVER = "cic.gpu.min_driver"
RECIPE = "cic.recipe"
SLIM = "cic.slim"

RECORD = "cic.record"
TAG = "cic.tag"
USED_AT = "cic.used_at"
"""Annotations of a SIF in a registry: its record, the tag meant, and when it was used last."""

SIGNATURE = "cic.signature"
"""Annotation of a package in a registry."""
