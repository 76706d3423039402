"""What can go wrong between naming a kernel and having it."""

from __future__ import annotations

from pathlib import Path

from bpfunit.errors import BpfunitError, NotFoundError


class KernelsError(BpfunitError):
    """Root of the errors of `bpfunit.kernels`."""


class CatalogueError(KernelsError):
    """The catalogue file cannot be read or says something that makes no sense."""


class UnknownKernelError(KernelsError, NotFoundError):
    """A kernel that is neither in the catalogue nor a path; the message lists what there is."""


class FetchError(KernelsError):
    """A kernel's packages could not be had from the archive, or were refused."""


class PinVanishedError(FetchError):
    """The pinned release is gone from the archive, and nothing may or can take its place."""


class RefusedKernelError(KernelsError):
    """A kernel that the catalogue lists and that cannot be run; the message says why."""


class ModuleBuildError(KernelsError):
    """The module does not build for a kernel, or cannot be built for it at all.

    Args:
        message: the operation and the deciding lines.
        log: the whole build log, or None when no build was started.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        self.log = log
        super().__init__(f"{message}\nthe whole log: {log}" if log else message)
