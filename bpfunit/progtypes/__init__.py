"""Program types, one file each: what is crafted for it, how it runs, and what a run tells.

A new type is a file here (and one of the module's, where Linux cannot run the type): a subclass of
:class:`bpfunit.progtypes.base.ProgramType` that is registered, a subclass of
:class:`bpfunit.runs.program.Program` with the type's own ``run``, and, where a run tells more than
a return value and a context, subclasses of ``Result`` and ``BulkRun``. No list names the files.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules


def discover() -> None:
    """Import every file of this package, each of which registers its types."""
    for found in iter_modules(__path__, f"{__name__}."):
        import_module(found.name)
