"""What kernels do, measured: each test says some facts and holds them against the committed table.

``python -m tests.facts`` (``make facts``) measures them anew and writes ``docs/kernel-facts.md``.
"""
