"""Errors of starting guests."""

from __future__ import annotations

from bpfunit.errors import BpfunitError


class GuestError(BpfunitError):
    """A guest cannot be started on this machine as asked; the message says what to do."""
