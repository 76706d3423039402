"""``python -m tests.mutants``: see :mod:`tests.mutants.run`."""

from __future__ import annotations

import sys

from .run import main

sys.exit(main())
