"""Which program types a stock kernel runs by ``BPF_PROG_TEST_RUN``."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm

from .conftest import Facts
from .stock import ENOTSUPP, FUNC, SLEEPABLE, btf_id, loaded, packet, refusal, run, stock

pytestmark = pytest.mark.guest

NETFILTER, NETFILTER_ATTACH = 32, 45  # since Linux 6.4
_TABLE = "Test runs"


class Loaded(NamedTuple):
    """What to load of one program type; ``attach_to`` is a function in the kernel's BTF."""

    name: str
    prog_type: int
    attach_type: int = 0
    flags: int = 0
    attach_to: str = ""


TYPES = [
    Loaded("socket filter", ProgType.SOCKET_FILTER),
    Loaded("TC (sched_cls)", ProgType.SCHED_CLS),
    Loaded("TC (sched_act)", ProgType.SCHED_ACT),
    Loaded("XDP", ProgType.XDP, AttachType.XDP),
    Loaded("cgroup_skb", ProgType.CGROUP_SKB),
    Loaded("lwt_in", ProgType.LWT_IN),
    Loaded("lwt_out", ProgType.LWT_OUT),
    Loaded("lwt_xmit", ProgType.LWT_XMIT),
    Loaded("lwt_seg6local", ProgType.LWT_SEG6LOCAL),
    Loaded("flow_dissector", ProgType.FLOW_DISSECTOR, AttachType.FLOW_DISSECTOR),
    Loaded("sk_lookup", ProgType.SK_LOOKUP, AttachType.SK_LOOKUP),
    Loaded("netfilter", NETFILTER, NETFILTER_ATTACH),
    Loaded("raw_tracepoint", ProgType.RAW_TRACEPOINT),
    Loaded("raw_tracepoint_writable", ProgType.RAW_TRACEPOINT_WRITABLE),
    Loaded("syscall", ProgType.SYSCALL, flags=SLEEPABLE),
    Loaded("fentry", ProgType.TRACING, AttachType.TRACE_FENTRY, attach_to="bpf_fentry_test1"),
    Loaded("fexit", ProgType.TRACING, AttachType.TRACE_FEXIT, attach_to="bpf_fentry_test1"),
    Loaded(
        "fmod_ret", ProgType.TRACING, AttachType.MODIFY_RETURN, attach_to="bpf_modify_return_test"
    ),
    Loaded("iterator", ProgType.TRACING, AttachType.TRACE_ITER, attach_to="bpf_iter_task"),
    Loaded("lsm", ProgType.LSM, AttachType.LSM_MAC, attach_to="bpf_lsm_file_open"),
    Loaded("cgroup_sock_addr", ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT),
    Loaded("cgroup_sock", ProgType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_CREATE),
    Loaded("cgroup_sockopt", ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
    Loaded("cgroup_device", ProgType.CGROUP_DEVICE, AttachType.CGROUP_DEVICE),
    Loaded("cgroup_sysctl", ProgType.CGROUP_SYSCTL, AttachType.CGROUP_SYSCTL),
    Loaded("sock_ops", ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    Loaded("sk_skb", ProgType.SK_SKB),
    Loaded("sk_msg", ProgType.SK_MSG, AttachType.SK_MSG_VERDICT),
    Loaded("sk_reuseport", ProgType.SK_REUSEPORT, AttachType.SK_REUSEPORT_SELECT),
    Loaded("kprobe", ProgType.KPROBE),
    Loaded("tracepoint", ProgType.TRACEPOINT),
    Loaded("perf_event", ProgType.PERF_EVENT),
    Loaded("lirc_mode2", ProgType.LIRC_MODE2, AttachType.LIRC_MODE2),
]


@pytest.mark.parametrize("one", TYPES, ids=lambda one: one.name)
def test_who_has_a_test_run(facts: Facts, one: Loaded):
    code = [asm.mov_imm(0, 0), asm.exit_()]
    if one.prog_type == ProgType.LIRC_MODE2:
        code = [asm.mov_imm(0, 1), asm.exit_()]
    target = btf_id(one.attach_to, FUNC) if one.attach_to else 0
    if one.attach_to and not target:
        facts.say(_TABLE, one.name, f"not loaded: no {one.attach_to}")
        return
    with stock():
        try:
            with loaded(code, one.prog_type, one.attach_type, flags=one.flags, btf=target) as fd:
                error, _ = run(fd, packet(64))
        except SyscallError as error_of_load:
            facts.say(_TABLE, one.name, f"not loaded: {refusal(error_of_load)}")
            return
    facts.say(_TABLE, one.name, "no" if error == ENOTSUPP else "yes")


def test_the_module_is_out_of_the_way():
    # the module runs programs on connect4, the kernel alone does not
    code = [asm.mov_imm(0, 1), asm.exit_()]
    with stock(), loaded(code, ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT) as fd:
        assert run(fd, packet(64))[0] == ENOTSUPP
