"""Starts QEMU, carries the worker's stream, notices every death.

Run as a directory, with the standard library alone: execnet starts one for every guest and takes it
for the Python worker. It answers execnet's handshake at once, so that guests boot side by side
while the controller goes on, and hands the stream to the guest when that is up.

In the directory of its guest it leaves ``console`` (the kernel's log) and ``status.json``::

    {"booted": seconds, 0 before it is up; "ended": "" | one of the names below, "detail": …}

Names: ``exit`` (the worker ended by itself), ``closed`` (the controller closed the stream),
``hang``, ``never-booted``, ``killed`` (QEMU died of a signal), ``qemu`` (QEMU ended by itself: a
panic, or it did not start). Which of those was a panic, the console tells; see ``outcome.py``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[0] = str(here.parent)  # the directory is a package, and nothing of bpfunit's
    import_module(f"{here.name}.watch").main()
