"""Where bpfunit keeps its data files and its cache."""

from __future__ import annotations

import os
from pathlib import Path


def vm_dir() -> Path:
    """Return the directory of the module's source and the kernel catalogue.

    In a checkout it is ``vm/`` beside the package, in an installed wheel ``bpfunit/_vm``.
    """
    package = Path(__file__).resolve().parent
    bundled = package / "_vm"
    return bundled if bundled.is_dir() else package.parent / "vm"


def cache_dir() -> Path:
    """Return the cache directory, ``$BPFUNIT_CACHE`` or ``bpfunit`` under the XDG cache."""
    if explicit := os.environ.get("BPFUNIT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bpfunit"


WRITABLE_CACHE = "point BPFUNIT_CACHE to a directory that you may write"


def nearest_directory(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there as far as this user sees."""
    # os.path.exists is False, not an error, for what lies in a directory closed to us
    return next(one for one in (path, *path.parents) if os.path.exists(one))  # noqa: PTH110


def closed_cache() -> str:
    """Return why this user cannot use the cache directory and what to do, "" where he can."""
    cache = cache_dir()
    there = nearest_directory(cache)
    if os.access(there, os.X_OK if there == cache else os.X_OK | os.W_OK):
        return ""
    return f"use the cache {cache}: {there} is closed to user {os.geteuid()}; {WRITABLE_CACHE}"


def chosen_libbpf() -> str:
    """Return the path of the libbpf that the user chose, "" for the one that the system finds.

    ``$BPFUNIT_LIBBPF`` names the file; one that ``$LD_LIBRARY_PATH`` leads to counts as chosen.
    """
    if explicit := os.environ.get("BPFUNIT_LIBBPF"):
        return explicit
    directories = os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    found = (Path(directory) / "libbpf.so.1" for directory in directories if directory)
    return next((str(path.absolute()) for path in found if path.is_file()), "")
