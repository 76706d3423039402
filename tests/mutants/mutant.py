"""What a mutant is, and the names that the tables of them share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One edit of one file below ``bpf/``.

    Attributes:
        name: what goes wrong, in a few words joined by dashes.
        file: the file, relative to ``bpf/``.
        old: text that the edit replaces; its first occurrence behind ``after``.
        new: what it is replaced by.
        guard: the test that is expected to fail, ``file::test`` below ``tests/hook``; "" for an
            equivalent mutant.
        after: text in front of ``old``, to tell one occurrence from another.
        equivalent: why no test can see the difference; "" for the others.
    """

    name: str
    file: str
    old: str
    new: str
    guard: str = ""
    after: str = ""
    equivalent: str = ""


ADDRESS, MANAGE, STORAGE = "hook/address.h", "hook/manage.h", "hook/storage.h"
ROUTE, LOG, PROGRAMS = "hook/route.h", "hook/log.h", "hook.bpf.c"

CONNECT4, CONNECT6 = "int cgroup_connect4_prog", "int cgroup_connect6_prog"
SEND, RECEIVE = "int bpf_redirect_dns_send", "int bpf_restore_dns_recv"

TRAFFIC_TESTS = "test_traffic_control.py::test_"
MANAGEMENT_TESTS = "test_management.py::test_"
DNAT_TESTS = "test_dnat.py::test_"
MEMORY_TESTS = "test_original_destination.py::test_"
STATE_TESTS = "test_state.py::test_"
TAIL_TESTS = "test_tail_call.py::test_"
DNS_TESTS = "test_dns.py::test_"
BALANCING_TESTS = "test_load_balancing.py::test_"
OBSERVE_TESTS = "test_observe.py::test_"
PROTOCOL_TESTS = "test_protocol.py::test_"
LOGGING_TESTS = "test_log.py::test_"
