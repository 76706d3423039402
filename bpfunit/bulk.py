"""Many runs in one call."""

from __future__ import annotations


class BulkResult: ...
