"""Runs of a program: one, many, and what was observed of each."""
