"""BPF objects as files: found in a tree, their programs listed; nothing is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfunit._sys import libbpf
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes.base import type_of_section
from bpfunit.progtypes.packet import PacketType
from bpfunit.progtypes.sock_addr import SOCK_ADDR

_ELF_MAGIC = b"\x7fELF"
_MACHINE = slice(18, 20)  # e_machine of the ELF header
_EM_BPF = {b"\x01": b"\xf7\x00", b"\x02": b"\x00\xf7"}  # 247 by EI_DATA, the byte order
_ORDER = slice(5, 6)
_LEFT_OUT = {"node_modules", "venv", "__pycache__"}


@dataclass(frozen=True)
class ProgramInfo:
    """A program of an object file.

    Attributes:
        name: of its function.
        section: its ELF section, ``cgroup/connect4``.
    """

    name: str
    section: str

    @property
    def crafted_from(self) -> str:
        """What its context is made from: ``address``, ``packet`` or ``other``."""
        found = type_of_section(self.section)
        if found is SOCK_ADDR:
            return "address"
        return "packet" if isinstance(found, PacketType) else "other"

    @property
    def address(self) -> str:
        """An address of the documentation ranges (RFC 5737, RFC 3849) of the hook's family."""
        return "[2001:db8::1]:80" if self.section.endswith("6") else "192.0.2.1:80"

    @property
    def verdict(self) -> str:
        """A verdict that a packet program may give, for people."""
        found = type_of_section(self.section)
        names = found.verdicts if found is not None else {}
        number = 2 if 2 in names else 1
        return f"{number}  # {names[number]}" if number in names else "0"


def is_bpf_object(path: Path) -> bool:
    """Tell whether a file is an ELF object for BPF."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return False
    return header.startswith(_ELF_MAGIC) and header[_MACHINE] == _EM_BPF.get(header[_ORDER])


def find_objects(root: Path) -> Iterator[Path]:
    """Yield the BPF objects below a directory, in order; hidden directories are left out."""
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = sorted(
            name for name in subdirectories if not name.startswith(".") and name not in _LEFT_OUT
        )
        for name in sorted(files):
            path = Path(directory, name)
            if name.endswith(".o") and is_bpf_object(path):
                yield path


def programs_of(path: Path) -> list[ProgramInfo]:
    """Return the programs of an object file, in its order; libbpf parses it, no kernel is asked.

    Raises:
        BpfunitError: the file is not a BPF object that libbpf understands.
    """
    lib = libbpf.lib()
    with libbpf.captured_log() as messages:
        try:
            handle = lib.bpf_object__open_file(os.fsencode(path), None)
        except SyscallError as error:
            said = "; ".join(str(message).strip() for message in messages) or error.strerror
            raise BpfunitError(
                f"read {path}: not a BPF object that libbpf understands ({said}); "
                "compile it with clang -target bpf -g -O2"
            ) from error
    try:
        return [
            ProgramInfo(
                lib.bpf_program__name(program).decode(),
                lib.bpf_program__section_name(program).decode(),
            )
            for program in libbpf.each("bpf_object__next_program", handle)
        ]
    finally:
        lib.bpf_object__close(handle)
