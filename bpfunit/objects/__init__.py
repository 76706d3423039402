"""Loaded objects: files, maps, globals, logs, what the verifier said."""
