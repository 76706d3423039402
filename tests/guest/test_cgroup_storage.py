"""Programs with cgroup storage: crafted runs work on the value of the cgroup (5.18)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import Object, SyscallError, features

from ..objects import compiled

pytestmark = pytest.mark.guest

OLD = features.kernel_version() < (5, 18)


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Callable[..., Object]) -> Object:
    return bpf_load(compiled("cgstorage"), engine="testrun")


def test_runs_of_a_program_that_is_attached_count_in_its_value(obj: Object) -> None:
    limit = obj.programs.limit
    with bpfunit.attach(limit) as cgroup:
        number = cgroup.path.stat().st_ino
        assert obj.maps.connects[number] == 0
        if OLD:
            with pytest.raises(SyscallError) as refused:
                limit.run("10.0.0.1:80")
            assert refused.value.errno == errno.EOPNOTSUPP
            return
        assert limit.run("10.0.0.1:80").verdict == "allow"
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", 9))
        assert limit.run("10.0.0.1:80").errno == errno.EPERM
        assert obj.maps.connects[number] == 3
        obj.maps.connects[number] = 0
        assert limit.run("10.0.0.1:80").verdict == "allow"


def test_runs_of_a_program_that_is_attached_nowhere_begin_with_zeroes(obj: Object) -> None:
    if OLD:
        return  # refused, as the test above sees
    limit = obj.programs.limit
    assert [limit.run("10.0.0.1:80").verdict for _ in range(4)] == ["allow"] * 4
    assert limit.run("10.0.0.1:80", repeat=3).verdict == "deny"
    runs = limit.run_many(["10.0.0.1:80"] * 4).raise_for_errors()
    assert [run.verdict for run in runs] == ["allow"] * 4
