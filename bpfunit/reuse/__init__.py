"""Loaded objects that are kept from one test to the next, put back to what a fresh load gives."""

from bpfunit.reuse.pool import Pool, Report

__all__ = ["Pool", "Report"]
