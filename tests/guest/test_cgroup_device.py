"""``cgroup_device`` programs: crafted, by real calls, many at once, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import ContextError, NotApplicableError, Object, SyscallError, engines
from bpfunit.progtypes.cgroup_device import DeviceContext, DeviceProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]


@pytest.fixture(params=["testrun", "live", "both"])
def obj(request: pytest.FixtureRequest, no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("device"), engine=request.param)


@pytest.fixture(scope="module", autouse=True)
def observers() -> None:
    engines.get("live")  # its descriptors are no leak of the test that comes first


@pytest.mark.parametrize("access", ["r", "w", "rw", "m", ""])
def test_device_that_is_allowed_may_be_used_in_every_way(obj: Object, access: str) -> None:
    result = obj.programs.only_memory.run("c 1:3", access)
    assert (result.verdict, result.retval, result.errno) == ("allow", 1, 0)
    assert obj.maps.asked.snapshot() == {1: 1}


@pytest.mark.parametrize(
    ("device", "access"), [("b 8:0", "r"), ("c 1:1", "rw"), ("c 10:200", "m"), ("b 0:0", "m")]
)
def test_any_other_device_is_denied(obj: Object, device: str, access: str) -> None:
    result = obj.programs.only_memory.run(device, access)
    assert (result.verdict, result.retval, result.errno) == ("deny", 0, errno.EPERM)
    assert result.untouched


def test_access_that_no_call_asks_for_is_refused(obj: Object) -> None:
    for device, access in (("c 1:3", "rm"), ("c 0:0", "r"), ("c 0:0", "m")):
        with pytest.raises((SyscallError, NotApplicableError)) as refused:
            obj.programs.only_memory.run(device, access)
        if isinstance(refused.value, SyscallError):
            assert refused.value.errno == errno.EINVAL
            assert "no system call asks for" in str(refused.value)
    assert obj.maps.asked.snapshot() == {}


def test_many_devices_in_one_call(obj: Object) -> None:
    program = obj.programs.only_memory
    runs = program.run_many([("c 1:3", "r"), ("b 8:0", "w"), "c 1:5"]).raise_for_errors()
    assert [(run.verdict, run.errno) for run in runs] == [
        ("allow", 0),
        ("deny", errno.EPERM),
        ("allow", 0),
    ]
    assert obj.maps.asked.snapshot() == {1: 2, 8: 1}


def test_a_slip_in_a_device_says_how_it_is_written(bpf_load: Load) -> None:
    program = bpf_load(compiled("device")).programs.only_memory
    assert isinstance(program, DeviceProgram)
    with pytest.raises(ContextError, match='write its type and number, "c 1:3"'):
        program.run("/dev/null")
    with pytest.raises(ContextError, match='write "r", "w", "rw", "m" or ""'):
        program.run("c 1:3", "x")
    with pytest.raises(ContextError, match="numbers go up to 4095:1048575"):
        program.run("c 4096:0")
    with pytest.raises(SyscallError, match="longer than struct bpf_cgroup_dev_ctx"):
        program.run(ctx=bytes(program.craft("c 1:3")) + b"\1")


def test_program_of_someone_else_needs_no_attach_type(bpf_load: Load) -> None:
    fd = bpf_load(compiled("device")).programs.only_memory.fd
    assert DeviceProgram.from_fd(fd).run("c 1:3", "rw").verdict == "allow"
    with pytest.raises(bpfunit.BpfunitError, match="its type is cgroup_device"):
        bpfunit.SockAddrProgram.from_fd(fd)


def test_context_prints_as_people_write_devices() -> None:
    assert repr(DeviceContext(6 << 16 | 2, 1, 3)) == "DeviceContext(c 1:3, rw)"
