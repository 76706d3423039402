"""The exceptions of bpfunit, all under one root."""

from __future__ import annotations

import errno as _errno
import os

ENOTSUPP = 524  # include/linux/errno.h; libc has neither its name nor a text for it


class BpfunitError(Exception):
    """Root of every error that bpfunit raises on purpose."""


class NotFoundError(BpfunitError, KeyError, AttributeError):
    """A name that does not exist, with the names that do.

    A KeyError and an AttributeError, so that ``in``, ``get`` and ``hasattr`` do what they do
    everywhere.

    Args:
        operation: what was being looked up, for example ``"look up map"``.
        name: the name asked for.
        available: the names there are, in the order to list them.
        hint: what the reader can do about it, or "".
    """

    def __init__(self, operation: str, name: object, available: list[str], hint: str = "") -> None:
        self.name = str(name)
        self.available = available
        listing = ", ".join(available) if available else "(none)"
        message = f"{operation}: no {name!r}; there is: {listing}"
        self.message = f"{message}\n  {hint}" if hint else message
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message; a KeyError's would be quoted."""
        return self.message


class SyscallError(BpfunitError, OSError):
    """A system call that failed; ``errno`` and ``strerror`` are kept.

    Args:
        operation: what was attempted, for example ``"create map km_service"``.
        errno: the positive error number; 524 (ENOTSUPP) is named although libc has no text for it.
        hint: what the reader can do about it, or "".
    """

    def __init__(self, operation: str, errno: int, hint: str = "") -> None:
        name = "ENOTSUPP" if errno == ENOTSUPP else _errno.errorcode.get(errno, str(errno))
        text = "operation not supported by this kernel" if errno == ENOTSUPP else os.strerror(errno)
        described = f"{name} ({text.lower()})"
        if name == str(errno):  # none of the system's, of which libc says no more than that
            described = f"error {errno}"
        message = f"{operation}: {described}"
        OSError.__init__(self, errno, f"{message}; {hint}" if hint else message)
        self.operation = operation
        self.hint = hint

    def __str__(self) -> str:
        """Return the message without OSError's ``[Errno N]`` prefix, which says it twice."""
        return str(self.strerror)


class FieldError(BpfunitError, AttributeError):
    """A field name that the type does not have; the message lists the fields it has."""


class FieldValueError(BpfunitError, ValueError):
    """A value that does not fit its field; the message says the field, its type and its range."""
