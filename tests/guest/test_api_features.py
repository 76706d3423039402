"""Probes of the kernel against what its version is known to have."""

from __future__ import annotations

import pytest

from bpfunit import NotFoundError, features

pytestmark = pytest.mark.guest


@pytest.mark.parametrize(
    ("helper", "since"),
    [
        ("bpf_sk_storage_get", (5, 8, 0)),  # for cgroup_sock_addr
        ("bpf_get_retval", (5, 18, 0)),
        ("bpf_cgrp_storage_get", (6, 2, 0)),
    ],
)
def test_helper_is_there_from_its_version_on(helper: str, since: tuple[int, int, int]) -> None:
    has = features.has_helper(helper)
    assert has == (features.kernel_version() >= since)
    reason = features.missing(helper=helper)
    assert (reason is None) == has
    if reason is not None:
        assert f"no helper {helper} for cgroup_sock_addr" in reason


def test_helper_of_other_programs_is_not_one_of_this_type() -> None:
    assert features.has_helper("bpf_xdp_adjust_head", "xdp")
    assert not features.has_helper("bpf_xdp_adjust_head", "cgroup_sock_addr")
    assert not features.has_helper("bpf_no_such_helper")


def test_map_and_program_types_are_probed() -> None:
    assert features.has_map_type("ringbuf")
    assert features.has_prog_type("cgroup_sock_addr")
    assert features.has_map_type("user_ringbuf") == (features.kernel_version() >= (6, 1, 0))
    with pytest.raises(NotFoundError, match=r"no 'ringbuffer'; there is: .*ringbuf"):
        features.has_map_type("ringbuffer")


def test_kernel_types_and_functions_are_those_of_its_btf() -> None:
    assert features.has_type("struct sock")
    assert features.has_kfunc("bpf_prog_select_runtime") or features.kernel_version() < (6, 0, 0)
    assert not features.has_kfunc("no_such_function")


def test_module_is_loaded_in_a_guest_with_the_testrun_engine() -> None:
    assert features.module_loaded()
    assert features.module_version()
    assert features.missing(module=True, map_type="ringbuf") is None
