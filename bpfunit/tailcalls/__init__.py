"""Tail calls: spies, and the chain that a run made."""
