"""The report of a run as one HTML file: kernels × tests, logs, paths taken, links.

Knows nothing of pytest: the plugin fills a :class:`Run` and calls :func:`write_html`.
"""

from __future__ import annotations

from bpfunit.report._html import render_html, write_html
from bpfunit.report._model import KernelInfo, Link, Outcome, Run, Section, Status

__all__ = [
    "KernelInfo",
    "Link",
    "Outcome",
    "Run",
    "Section",
    "Status",
    "render_html",
    "write_html",
]
