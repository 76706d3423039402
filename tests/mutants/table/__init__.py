"""The mutations of the C source of the hook and its neighbours: small mistakes one could make.

A mutant names the test that guards its line. One whose effect nobody can see says why.
"""

from __future__ import annotations

from .byteorder import BYTE_ORDER
from .control import ADDRESSES, MANAGEMENT
from .memory import LOGGING, MEMORY
from .neighbours import CONNECTIONS, MESSAGES
from .programs import PROGRAM_BODIES
from .traffic import TRAFFIC

__all__ = ["BYTE_ORDER", "MUTANTS"]

MUTANTS = [
    *ADDRESSES,
    *MANAGEMENT,
    *MEMORY,
    *TRAFFIC,
    *PROGRAM_BODIES,
    *LOGGING,
    *CONNECTIONS,
    *MESSAGES,
]
