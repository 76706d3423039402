"""What the search knows of a program: its points of record, its maps, what its inputs are made of.

All of it is numbers, text and bytes, so that it crosses from the guest, where the program runs, to
wherever the search does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bpfunit.rewrite import insn as i

Order = Literal["little", "big"]

_U64, _U32 = (1 << 64) - 1, (1 << 32) - 1
BRANCH, KEY, RESULT, TAIL = "branch", "key", "result", "tail"
# enum map_kind of _native/explore.c
DELETE, ARRAY, SECTION, STORAGE, PROGRAMS, SOCKETS, GROUP = range(7)
FIXED = (PROGRAMS, SOCKETS, GROUP)  # an entry is there or not: nobody chooses its value


def signed(value: int, bits: int) -> int:
    """Return an unsigned number of ``bits`` as the signed one of the same bits."""
    return value - (1 << bits) if value >> bits - 1 else value


_COMPARISONS: dict[int, Callable[[int, int, int], bool]] = {
    0x10: lambda a, b, _n: a == b,
    0x20: lambda a, b, _n: a > b,
    0x30: lambda a, b, _n: a >= b,
    0x40: lambda a, b, _n: bool(a & b),
    0x50: lambda a, b, _n: a != b,
    0x60: lambda a, b, n: signed(a, n) > signed(b, n),
    0x70: lambda a, b, n: signed(a, n) >= signed(b, n),
    0xA0: lambda a, b, _n: a < b,
    0xB0: lambda a, b, _n: a <= b,
    0xC0: lambda a, b, n: signed(a, n) < signed(b, n),
    0xD0: lambda a, b, n: signed(a, n) <= signed(b, n),
}


class Site(NamedTuple):
    """A point of the program that leaves a record when it is passed.

    Attributes:
        kind: `BRANCH`, a conditional jump; `KEY`, in front of a call that takes a map's key;
            `RESULT`, behind a helper call; `TAIL`, in front of a tail call.
        insn: the instruction, a slot of the program as the compiler made it.
        block: its basic block, the same as in the coverage model.
        op: of a jump: the operation, the upper four bits of the opcode.
        narrow: of a jump: whether it compares 32 bits.
        imm: of a jump: the constant that it compares with; None for a register.
        helper: of a call: the helper's number.
        map: of a call with a key: the map, an index of `Facts.maps`; -1 where it is not known.
        key_size: bytes of the key in the record, 0 for none.
        slot: of a result: the stub that may answer in the helper's place, -1 for none.
        cost: instructions of the block.
    """

    kind: str
    insn: int
    block: int = -1
    op: int = 0
    narrow: bool = False
    imm: int | None = None
    helper: int = 0
    map: int = -1
    key_size: int = 0
    slot: int = -1
    cost: int = 0

    @property
    def bits(self) -> int:
        """How many bits a jump compares."""
        return 32 if self.narrow else 64

    def operands(self, a: int, b: int) -> tuple[int, int]:
        """Return what a jump compares, of the registers as they were recorded."""
        mask = _U32 if self.narrow else _U64
        return a & mask, (b if self.imm is None else self.imm) & mask

    def taken(self, a: int, b: int) -> bool:
        """Return whether a jump with these operands, see :meth:`operands`, is taken."""
        return _COMPARISONS[self.op](a, b, self.bits)


class MapFacts(NamedTuple):
    """A map that the program refers to.

    Attributes:
        kind: how it is put back, `DELETE` to `SOCKETS`.
        stride: bytes of a value as the system call has it: those of all CPUs.
        initial: of a data section: its bytes at the load.
    """

    name: str
    kind: int
    type: int
    key_size: int
    value_size: int
    stride: int
    max_entries: int
    initial: bytes = b""

    def whole(self, value: bytes) -> bytes:
        """Return a value, or the start of one, as the system call takes it: alike on each CPU."""
        value = value[: self.value_size].ljust(self.value_size, b"\0")
        if self.stride == self.value_size:
            return value
        each = (self.value_size + 7) // 8 * 8
        return value.ljust(each, b"\0") * (self.stride // each)


class StubFacts(NamedTuple):
    """A call that a stub may answer.

    Attributes:
        helper: the helper's number.
        number: which of the program's calls of this helper it is, from 0; -1 for all of them.
        always: whether it answers in every run: time, chance, cookies.
        value: the answer: of ``always`` the one to begin with, otherwise the failure.
    """

    helper: int
    number: int
    always: bool
    value: int


@dataclass
class Facts:
    """A program as the search sees it.

    Attributes:
        dead: edges (site, taken) that the verifier proved unreachable.
        places: of each branch site: file, line, column, the line's text.
        words: (offset, bytes) of the parts of the context that an input may choose.
        contexts: contexts to begin with: one for each kind of socket.
        packets: packets to begin with; empty for types without.
        pairs: (context, data) to begin with, where not each goes with each.
        order: the byte order of the kernel that runs it, "little" or "big".
    """

    program: str
    section: str
    kernel: str
    type: str
    sites: Sequence[Site]
    dead: frozenset[tuple[int, bool]]
    places: dict[int, tuple[str, int, int, str]]
    maps: Sequence[MapFacts]
    stubs: Sequence[StubFacts]
    words: Sequence[tuple[int, int]]
    contexts: Sequence[bytes]
    packets: Sequence[bytes] = ()
    pairs: Sequence[tuple[bytes, bytes]] = ()
    notes: list[str] = field(default_factory=list)
    order: Order = sys.byteorder

    def edges(self) -> list[tuple[int, bool]]:
        """Return the branch edges that the verifier left, in the order of the program."""
        return [
            (number, taken)
            for number, site in enumerate(self.sites)
            if site.kind == BRANCH
            for taken in (False, True)
            if (number, taken) not in self.dead
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return it as what any channel carries."""
        return {
            **vars(self),
            "sites": [list(site) for site in self.sites],
            "dead": sorted([list(edge) for edge in self.dead]),
            "places": [[n, *place] for n, place in self.places.items()],
            "maps": [list(one) for one in self.maps],
            "stubs": [list(one) for one in self.stubs],
            "words": [list(one) for one in self.words],
            "contexts": list(self.contexts),
            "packets": list(self.packets),
            "pairs": [list(pair) for pair in self.pairs],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Facts:
        """Make it of what :meth:`to_plain` gave."""
        return cls(
            **{
                **plain,
                "sites": [Site(*one) for one in plain["sites"]],
                "dead": frozenset((n, taken) for n, taken in plain["dead"]),
                "places": {n: (f, line, col, text) for n, f, line, col, text in plain["places"]},
                "words": [(offset, width) for offset, width in plain["words"]],
                "maps": [MapFacts(*one) for one in plain["maps"]],
                "stubs": [StubFacts(*one) for one in plain["stubs"]],
                "pairs": [(ctx, data) for ctx, data in plain["pairs"]],
            }
        )


# What a helper answers that no map, context or packet determines: it is always chosen.
CHOSEN: dict[int, int] = {
    5: 1_000_000_000,  # ktime_get_ns
    7: 0,  # get_prandom_u32
    8: 0,  # get_smp_processor_id
    14: 0x0000_0457_0000_0457,  # get_current_pid_tgid
    15: 0,  # get_current_uid_gid
    17: 1,  # get_cgroup_classid
    24: 0,  # get_route_realm
    34: 0x5EED,  # get_hash_recalc
    42: 0,  # get_numa_node_id
    46: 0x501,  # get_socket_cookie
    47: 0,  # get_socket_uid
    79: 0x601,  # skb_cgroup_id
    80: 0x602,  # get_current_cgroup_id
    83: 0x603,  # skb_ancestor_cgroup_id
    118: 4_294_937_296,  # jiffies64
    122: 0x701,  # get_netns_cookie
    123: 0x604,  # get_current_ancestor_cgroup_id
    125: 1_000_000_000,  # ktime_get_boot_ns
    128: 0x605,  # sk_cgroup_id
    129: 0x606,  # sk_ancestor_cgroup_id
    160: 1_000_000_000,  # ktime_get_coarse_ns
    208: 1_000_000_000,  # ktime_get_tai_ns
}
# Of these, what answers alike however often a run asks: all its calls share one stub.
CONSTANT = frozenset((8, 14, 15, 17, 24, 34, 42, 46, 47, 79, 80, 122, 128))
_ENOMEM, _EFAULT, _EINVAL, _ENOSPC = 12, 14, 22, 28
# Helpers that return a pointer which they may not have.
_NULLABLE = (95, 96, 107, 131, 136, 137, 138, 139, 140, 145, 156, 161, 210)
# Helpers that may fail for a reason that no input of ours brings about.
_FAILING = {
    # map_update_elem, sock_map_update, msg_pull_data, sock_hash_update, msg_push_data, msg_pop_data
    **dict.fromkeys((2, 53, 63, 70, 90, 91), _ENOMEM),
    59: _EINVAL,  # sock_ops_cb_flags_set
    **dict.fromkeys((143, 144), _ENOSPC),  # store_hdr_opt, reserve_hdr_opt
    **dict.fromkeys((9, 10, 11, 13, 18, 19, 26, 31, 32, 38, 39, 43, 44, 49, 50, 54, 57), _EFAULT),
    **dict.fromkeys((64, 65, 68, 69, 87, 88, 89, 106, 130, 142, 189, 190), _EFAULT),
}


def failure_of(helper: int) -> int | None:
    """Return what a helper answers when it fails, None for one whose failure is not stubbed."""
    if helper in _NULLABLE:
        return 0
    error = _FAILING.get(helper)
    return None if error is None else -error & _U64


def answers_pointer(helper: int) -> bool:
    """Return whether a helper returns a pointer, so that a stub can only answer NULL."""
    return helper in _NULLABLE


# Helpers whose answer may be chosen although they do more than answer: what they do is seen by no
# program but one that asks for it. setsockopt, bind.
ANSWERED = frozenset((49, 64))

# Helpers that take a map in r1 and a key's address in r2, and how many arguments they have.
KEYED = {1: 2, 2: 4, 3: 2, 195: 3}
LOOKUPS, UPDATE, DELETES = (1, 195), 2, 3
TAIL_CALL = i.HELPER_TAIL_CALL
