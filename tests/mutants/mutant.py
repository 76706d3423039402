"""What a mutant is, and the names that the tables of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Subject:
    """An object whose source is mutated.

    Attributes:
        name: of the object, without ``.bpf.o``.
        tests: the directory of its tests, from the project's root.
        option: the option by which they take another object.
        left_out: tests whose verdict would differ from run to run.
        suffix: of the object's file.
    """

    name: str
    tests: str
    option: str
    left_out: str = ""
    suffix: str = "bpf.o"

    @property
    def suite(self) -> list[str]:
        """The files of its tests, from the project's root."""
        files = sorted((ROOT / self.tests).glob("test_*.py"))
        return [str(file.relative_to(ROOT)) for file in files if file.name != self.left_out]


HOOK = Subject("hook", "tests/hook", "--bpf-object", left_out="test_model.py")
BIG_ENDIAN_HOOK = replace(HOOK, suffix="bpfeb.o")
NEIGHBOURS = Subject("mesh", "tests/mesh", "--mesh-object")


@dataclass(frozen=True)
class Mutant:
    """One edit of one file below ``bpf/``.

    Attributes:
        name: what goes wrong, in a few words joined by dashes.
        file: the file, relative to ``bpf/``.
        old: text that the edit replaces; its first occurrence behind ``after``.
        new: what it is replaced by.
        guard: the test that is expected to fail, ``file::test`` below the tests of the mutant's
            object; "" for an equivalent mutant.
        after: text in front of ``old``, to tell one occurrence from another.
        equivalent: why no test can see the difference; "" for the others.
        big_endian: whether it is a mistake on big-endian machines alone.
    """

    name: str
    file: str
    old: str
    new: str
    guard: str = ""
    after: str = ""
    equivalent: str = ""
    big_endian: bool = False

    @property
    def subject(self) -> Subject:
        """The object that the file is a part of."""
        if self.big_endian:
            return BIG_ENDIAN_HOOK
        return NEIGHBOURS if self.file.startswith("mesh") else HOOK


ADDRESS, MANAGE, STORAGE = "hook/address.h", "hook/manage.h", "hook/storage.h"
ROUTE, LOG, PROGRAMS = "hook/route.h", "hook/log.h", "hook.bpf.c"

FOLLOW, ENCODE, NEIGHBOUR_PROGRAMS = "mesh/follow.h", "mesh/encode.h", "mesh.bpf.c"

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

CONNECTING_TESTS = "test_connecting.py::test_"
CONNECTED_TESTS = "test_connected.py::test_"
ACCEPTED_TESTS = "test_accepted.py::test_"
CLOSED_TESTS = "test_closed.py::test_"
MESSAGE_TESTS = "test_first_message.py::test_"
