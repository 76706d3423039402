"""The ``bpfunit`` command: the framework from a shell, without a test file."""

from __future__ import annotations

from bpfunit.cli._app import app, main

__all__ = ["app", "main"]
