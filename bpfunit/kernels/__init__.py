"""Kernels to boot: the catalogue, fetching and verifying, and modules built for them.

Nothing here is installed on the host or changes its package state; all of it lives in the cache.
"""

from __future__ import annotations

from bpfunit.kernels._cache import disk_usage
from bpfunit.kernels._cross import cross_libraries
from bpfunit.kernels._kmod import module_for, modules_for
from bpfunit.kernels._manage import PinChange, Status, inventory, remove, roots, update_pins
from bpfunit.kernels._resolve import resolve, resolve_many, strict_pins
from bpfunit.kernels.catalogue import BuildRoot, Catalogue, Entry, Suite, load_catalogue
from bpfunit.kernels.errors import (
    CatalogueError,
    FetchError,
    KernelsError,
    ModuleBuildError,
    PinVanishedError,
    RefusedKernelError,
    UnknownKernelError,
)
from bpfunit.kernels.kernel import Foreign, Kernel

__all__ = [
    "BuildRoot",
    "Catalogue",
    "CatalogueError",
    "Entry",
    "FetchError",
    "Foreign",
    "Kernel",
    "KernelsError",
    "ModuleBuildError",
    "PinChange",
    "PinVanishedError",
    "RefusedKernelError",
    "Status",
    "Suite",
    "UnknownKernelError",
    "cross_libraries",
    "disk_usage",
    "inventory",
    "load_catalogue",
    "module_for",
    "modules_for",
    "remove",
    "resolve",
    "resolve_many",
    "roots",
    "strict_pins",
    "update_pins",
]
