"""``cgroup_sysctl`` programs: crafted, held against real calls, many at once, and refusals."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfunit import ContextError, Object
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.cgroup_sysctl import SysctlProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
DOMAIN = Path("/proc/sys/kernel/domainname")
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("sysctl"))


@pytest.fixture
def attached(obj: Object) -> Iterator[None]:
    """The process is in a cgroup with the program attached."""
    domain, memory = DOMAIN.read_bytes(), TCP_MEM.read_bytes()
    with (
        Cgroup() as cgroup,
        cgroup.attached(AttachType.CGROUP_SYSCTL, obj.programs.guard.fd),
        cgroup.entered(),
    ):
        yield
    DOMAIN.write_bytes(domain)
    TCP_MEM.write_bytes(memory)


def asked(obj: Object) -> dict[str, int]:
    return {bytes(k).rstrip(b"\0").decode(): v for k, v in obj.maps.asked.items()}


def test_a_read_is_allowed_and_counted(obj: Object) -> None:
    result = obj.programs.guard.run("net/ipv4/tcp_mem")
    assert (result.verdict, result.errno, result.retval) == ("allow", 0, 1)
    assert (result.new, result.replaced, result.untouched) == (None, False, True)
    assert result.current == TCP_MEM.read_bytes()
    obj.programs.guard.run("net.ipv4.tcp_mem", repeat=2)
    assert asked(obj) == {"net/ipv4/tcp_mem": 3}


@pytest.mark.parametrize(
    ("write", "verdict"), [("7 8 9", "deny"), ("10 20 30\n", "allow"), (b"99", "allow")]
)
def test_a_value_may_only_grow(obj: Object, write: bytes | str, verdict: str) -> None:
    result = obj.programs.guard.run("net/ipv4/tcp_mem", write=write, current="10 20 30")
    assert (result.verdict, result.errno) == (verdict, errno.EPERM if verdict == "deny" else 0)
    assert result.current == b"10 20 30\n"
    assert result.new == (write.encode() if isinstance(write, str) else write)


def test_a_real_write_ends_as_the_run_said(obj: Object, attached: None) -> None:
    low, *rest = TCP_MEM.read_text().split()
    for value in (" ".join([low, *rest]), " ".join([str(int(low) - 1), *rest])):
        result = obj.programs.guard.run("net/ipv4/tcp_mem", write=value)
        failed = 0
        try:
            TCP_MEM.write_text(value)
        except OSError as error:
            failed = error.errno or 0
        assert result.errno == failed
    assert failed == errno.EPERM


def test_a_value_is_replaced(obj: Object) -> None:
    result = obj.programs.guard.run("kernel/domainname", write="evil.example\n", current="(none)")
    assert (result.verdict, result.new, result.replaced) == ("allow", b"example.org\n", True)
    assert not result.untouched
    assert "write kernel/domainname at 0, current b'(none)\\n'" in result.describe()[0]
    assert "new b'example.org\\n' (changed), verdict allow" in result.describe()[1]
    nothing = obj.programs.guard.run("kernel/domainname", write=b"")
    assert (nothing.new, nothing.replaced) == (b"", False)


def test_a_real_write_sets_the_program_s_value(obj: Object, attached: None) -> None:
    result = obj.programs.guard.run("kernel/domainname", write="evil.example\n")
    fd = os.open(DOMAIN, os.O_WRONLY)
    try:
        assert os.write(fd, b"evil.example\n") == len(result.new or b"")
    finally:
        os.close(fd)
    assert DOMAIN.read_bytes() == result.new


def test_what_the_kernel_could_not_read_is_empty(obj: Object) -> None:
    result = obj.programs.guard.run("net/ipv4/route/flush", write="1")
    assert (result.current, result.verdict) == (b"", "deny")
    assert obj.programs.guard.run("fs/no/such/file", write="1").verdict == "allow"


def test_many_calls_at_once(obj: Object) -> None:
    runs = obj.programs.guard.run_many(
        [
            "net/ipv4/tcp_mem",
            ("net/ipv4/tcp_mem", "1", "2"),
            ("kernel/domainname", "x"),
            ("vm/swappiness", b"10"),
        ]
    ).raise_for_errors()
    assert [(run.verdict, run.errno, run.replaced_by) for run in runs] == [
        ("allow", 0, None),
        ("deny", errno.EPERM, None),
        ("allow", 0, b"example.org\n"),
        ("allow", 0, None),
    ]
    assert sum(asked(obj).values()) == 4


def test_a_slip_says_what_can_be_written(obj: Object) -> None:
    guard = obj.programs.guard
    assert isinstance(guard, SysctlProgram)
    slips: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ('write "net/ipv4/tcp_mem"', ("swappiness",), {}),
        ('write "net/ipv4/tcp_mem"', ("/proc/sys/vm/swappiness",), {}),
        ("more than 256 bytes", ("a/" + "b" * 300,), {}),
        ("up to 4096 bytes of a value", ("vm/swappiness",), {"write": bytes(4097)}),
        ("file_pos=-1 is no position", ("vm/swappiness",), {"file_pos": -1}),
        ("give it the name of a sysctl", (7,), {}),
    ]
    for match, arguments, options in slips:
        with pytest.raises(ContextError, match=match):
            guard.run(*arguments, **options)
    assert guard.run("vm/swappiness", file_pos=3).file_pos == 3
