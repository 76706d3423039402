"""Kernels to boot: the catalogue, fetching and verifying, and modules built for them.

Nothing here is installed on the host or changes its package state; all of it lives in the cache.
"""

from __future__ import annotations

from bpfunit.kernels._kmod import module_for, modules_for
from bpfunit.kernels._resolve import resolve, resolve_many
from bpfunit.kernels.catalogue import BuildRoot, Catalogue, Entry, Suite, load_catalogue
from bpfunit.kernels.errors import (
    CatalogueError,
    FetchError,
    KernelsError,
    ModuleBuildError,
    PinVanishedError,
    UnknownKernelError,
)
from bpfunit.kernels.kernel import Kernel

__all__ = [
    "BuildRoot",
    "Catalogue",
    "CatalogueError",
    "Entry",
    "FetchError",
    "Kernel",
    "KernelsError",
    "ModuleBuildError",
    "PinVanishedError",
    "Suite",
    "UnknownKernelError",
    "load_catalogue",
    "module_for",
    "modules_for",
    "resolve",
    "resolve_many",
]
