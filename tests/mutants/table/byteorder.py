"""Mistakes in byte order that no little-endian machine shows: its instructions are the same.

Each swaps the bytes of a number always, where the hook brings it into network order, which on a
big-endian machine is to leave it alone.
"""

from __future__ import annotations

from ..mutant import (
    ADDRESS,
    CONNECT4,
    DNAT_TESTS,
    DNS_TESTS,
    MANAGE,
    MANAGEMENT_TESTS,
    PROGRAMS,
    RECEIVE,
    SEND,
    Mutant,
)

_MAPPED = DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped"
_JOINS = MANAGEMENT_TESTS + "joining_records_the_namespace_with_value_0"
_LEAVES = MANAGEMENT_TESTS + "leaving_forgets_the_namespace"
_ASKS = DNS_TESTS + "question_goes_to_the_proxy_on_the_same_port"
_ANSWERS = DNS_TESTS + "answer_comes_from_where_the_question_went"


def _swapped(name: str, file: str, what: str, guard: str, after: str = "") -> Mutant:
    """Return the mutant that swaps the bytes of what the hook brings into network order."""
    function, _, rest = what.partition("(")
    bits = {"bpf_htons": 16, "bpf_htonl": 32}[function]
    new = f"__builtin_bswap{bits}({rest}"
    return Mutant(name, file, what, new, guard, after=after, big_endian=True)


BYTE_ORDER = [
    _swapped("prefix-looked-for-swapped", ADDRESS, "bpf_htonl(0xffff)", _MAPPED, "is_v4_mapped"),
    _swapped("prefix-written-swapped", ADDRESS, "bpf_htonl(0xffff)", _MAPPED, "{0, 0, "),
    _swapped("control-address-swapped", MANAGE, "bpf_htonl(CONTROL_HOST)", _JOINS, "->addr.ip4"),
    _swapped("control-address6-swapped", MANAGE, "bpf_htonl(CONTROL_HOST)", _JOINS, "ip6[3]"),
    _swapped("join-port-swapped", MANAGE, "bpf_htons(CONTROL_PORT_JOIN)", _JOINS),
    _swapped("leave-port-swapped", MANAGE, "bpf_htons(CONTROL_PORT_LEAVE)", _LEAVES),
    _swapped("dns-port-swapped-in-connect", PROGRAMS, "bpf_htons(DNS_PORT)", _ASKS, CONNECT4),
    _swapped("dns-port-swapped-in-sendmsg", PROGRAMS, "bpf_htons(DNS_PORT)", _ASKS, SEND),
    _swapped("dns-port-swapped-in-recvmsg", PROGRAMS, "bpf_htons(DNS_PORT)", _ANSWERS, RECEIVE),
]
