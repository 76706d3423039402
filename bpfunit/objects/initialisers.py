"""What maps are declared with: the programs that program arrays name in their initialisers."""

from __future__ import annotations

import io
import os
from pathlib import Path

_RELOCATIONS = ".rel.maps"


def programs_in_arrays(path: str | os.PathLike[str]) -> frozenset[str]:
    """Return the names of the programs that an object's program arrays are declared with.

    libbpf puts them into the arrays at the load, and fails where one of them was not loaded
    (``.values`` of a BTF-defined map, libbpf 0.6).
    """
    raw = Path(path).read_bytes()
    if _RELOCATIONS.encode() not in raw:
        return frozenset()
    # imported here: it costs a fifth of a second, and most objects never need it
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    try:
        file = ELFFile(io.BytesIO(raw))
        entries = file.get_section_by_name(_RELOCATIONS)
        if not isinstance(entries, RelocationSection):
            return frozenset()
        symbols = file.get_section(entries["sh_link"])
        if not isinstance(symbols, SymbolTableSection):
            return frozenset()
        named = [symbols.get_symbol(entry["r_info_sym"]) for entry in entries.iter_relocations()]
    except ELFError:
        return frozenset()  # libbpf opened it, and has the last word
    return frozenset(one.name for one in named if one["st_info"]["type"] == "STT_FUNC")
