"""Reads the data files about MPIs and GPUs: names, families, products."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from image_builder.data import facts_of


@functools.cache
def mpi_facts() -> Mapping[str, Mapping[str, Any]]:
    """Return the data file about MPI: `implementations` and `aliases`."""
    return facts_of("mpi")


@functools.cache
def gpu_facts() -> Mapping[str, Mapping[str, Any]]:
    """Return the data file about GPUs.

    Its keys are `runtimes`, `aliases`, `vendors`, `products`, `generations` and `needs`.
    """
    return facts_of("gpus")


@functools.cache
def mpi_names() -> frozenset[str]:
    """Return what people call MPIs: packages and their aliases."""
    return frozenset(mpi_facts()["implementations"]) | frozenset(mpi_facts()["aliases"])


@functools.cache
def runtime_names() -> frozenset[str]:
    """Return what people call GPU runtimes: packages and their aliases."""
    return frozenset(gpu_facts()["runtimes"]) | frozenset(gpu_facts()["aliases"])
