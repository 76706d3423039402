"""Unit tests for eBPF programs that Linux itself cannot unit-test."""
