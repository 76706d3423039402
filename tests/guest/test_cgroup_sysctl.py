"""``cgroup_sysctl`` programs: crafted, held against real calls, many at once, and refusals."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfunit import ContextError, NotApplicableError, Object, engines
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.cgroup_sysctl import SysctlProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
DOMAIN = Path("/proc/sys/kernel/domainname")
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")


@pytest.fixture(params=["testrun", "live", "both"])
def obj(request: pytest.FixtureRequest, no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("sysctl"), engine=request.param)


@pytest.fixture(scope="module", autouse=True)
def observers() -> None:
    engines.get("live")  # its descriptors are no leak of the test that comes first


@pytest.fixture
def attached(no_bpf_leaks: None, bpf_load: Load) -> Iterator[Object]:
    """The process is in a cgroup with a program attached."""
    obj = bpf_load(compiled("sysctl"), engine="testrun")
    domain, memory = DOMAIN.read_bytes(), TCP_MEM.read_bytes()
    with (
        Cgroup() as cgroup,
        cgroup.attached(AttachType.CGROUP_SYSCTL, obj.programs.guard.fd),
        cgroup.entered(),
    ):
        yield obj
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
    assert result.engine == obj.programs.guard.engine(observe=True).name


@pytest.mark.parametrize(
    ("write", "verdict"), [("7 8 9", "deny"), ("10 20 30\n", "allow"), (b"99", "allow")]
)
def test_a_value_may_only_grow(obj: Object, write: bytes | str, verdict: str) -> None:
    before = TCP_MEM.read_bytes()
    TCP_MEM.write_text("10 20 30")
    try:
        result = obj.programs.guard.run("net/ipv4/tcp_mem", write=write)
        assert TCP_MEM.read_bytes() == b"10\t20\t30\n"  # nothing is written
    finally:
        TCP_MEM.write_bytes(before)
    assert (result.verdict, result.errno) == (verdict, errno.EPERM if verdict == "deny" else 0)
    assert result.current == b"10\t20\t30\n"
    assert result.new == (write.encode() if isinstance(write, str) else write)


def test_value_that_the_file_does_not_have_can_be_crafted(bpf_load: Load) -> None:
    arguments: dict[str, Any] = {"write": "9", "current": "10 20 30"}
    guard = bpf_load(compiled("sysctl")).programs.guard
    result = guard.run("net/ipv4/tcp_mem", **arguments)
    assert (result.current, result.errno) == (b"10 20 30\n", errno.EPERM)
    assert guard.run("fs/no/such/file", write="1").verdict == "allow"
    for engine in ("live", "both"):
        guard = bpf_load(compiled("sysctl"), engine=engine).programs.guard
        with pytest.raises(NotApplicableError, match="crafted was net/ipv4/tcp_mem with"):
            guard.run("net/ipv4/tcp_mem", **arguments)
        with pytest.raises(NotApplicableError, match="No such file"):
            guard.run("fs/no/such/file", write="1")


def test_a_real_write_ends_as_the_run_said(attached: Object) -> None:
    low, *rest = TCP_MEM.read_text().split()
    for value in (" ".join([low, *rest]), " ".join([str(int(low) - 1), *rest])):
        result = attached.programs.guard.run("net/ipv4/tcp_mem", write=value)
        failed = 0
        try:
            TCP_MEM.write_text(value)
        except OSError as error:
            failed = error.errno or 0
        assert result.errno == failed
    assert failed == errno.EPERM


def test_a_value_is_replaced(obj: Object) -> None:
    result = obj.programs.guard.run("kernel/domainname", write="evil.example\n")
    assert (result.verdict, result.new, result.replaced) == ("allow", b"example.org\n", True)
    assert not result.untouched
    assert f"write kernel/domainname at 0, current {result.current!r}" in result.describe()[0]
    assert "new b'example.org\\n' (changed), verdict allow" in result.describe()[1]
    nothing = obj.programs.guard.run("kernel/domainname", write=b"")
    assert (nothing.new, nothing.replaced) == (b"", False)


def test_a_real_write_sets_the_program_s_value(attached: Object) -> None:
    result = attached.programs.guard.run("kernel/domainname", write="evil.example\n")
    fd = os.open(DOMAIN, os.O_WRONLY)
    try:
        assert os.write(fd, b"evil.example\n") == len(result.new or b"")
    finally:
        os.close(fd)
    assert DOMAIN.read_bytes() == result.new


def test_what_the_kernel_could_not_read_is_empty(obj: Object) -> None:
    result = obj.programs.guard.run("net/ipv4/route/flush", write="1")
    assert (result.current, result.verdict) == (b"", "deny")


def test_many_calls_at_once(obj: Object) -> None:
    runs = obj.programs.guard.run_many(
        [
            "net/ipv4/tcp_mem",
            ("net/ipv4/tcp_mem", "1"),
            ("kernel/domainname", "x"),
            ("vm/swappiness", b"10"),
        ]
    ).raise_for_errors()
    assert [(run.verdict, run.errno, run.new) for run in runs] == [
        ("allow", 0, b""),
        ("deny", errno.EPERM, b"1"),
        ("allow", 0, b"example.org\n"),
        ("allow", 0, b"10"),
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


def test_random_calls_agree_on_both_engines(no_bpf_leaks: None, bpf_load: Load) -> None:
    """`BPFUNIT_CASES=12000` makes 3,000."""
    guard = bpf_load(compiled("sysctl"), engine="both").programs.guard
    chance = random.Random("sysctl")
    names = ["kernel/domainname", "net/ipv4/tcp_mem", "vm/swappiness", "net/ipv4/route/flush"]
    for _ in range(max(24, int(os.environ.get("BPFUNIT_CASES", "1200")) // 4)):
        name = chance.choice(names)
        options: dict[str, Any] = {"file_pos": chance.choice((0, 0, 0, 1, 5, 4000, (1 << 32) - 1))}
        if name.endswith("flush") or chance.random() < 0.7:
            size = chance.choice((0, 1, 2, 13, 64, 300, 4095, 4096))
            options["write"] = bytes(chance.choice(b"0123 \n\t-x") for _ in range(size))
        assert guard.run(name, **options).engine == "both"
