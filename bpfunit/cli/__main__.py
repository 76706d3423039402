"""``python -m bpfunit.cli``: the command where its script is not on the path."""

from __future__ import annotations

from bpfunit.cli._app import main

if __name__ == "__main__":
    main()
