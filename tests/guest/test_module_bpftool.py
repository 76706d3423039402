"""Any client of bpf(2) gains from the module: bpftool loads and runs the hook on its own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfunit.progtypes.sock_addr import SOCK_ADDR_SIZE, BpfSockAddr
from bpfunit.values.net import ip4, port

pytestmark = pytest.mark.guest

PINS = Path("/sys/fs/bpf/bpfunit-bpftool")


def bpftool(*arguments: object) -> str:
    done = subprocess.run(
        ["bpftool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"bpftool {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def pinned_hook(bpf_object_path: Any) -> Iterator[Path]:
    bpftool("prog", "loadall", bpf_object_path, PINS)
    yield PINS / "cgroup_connect4_prog"
    for pin in PINS.iterdir():
        pin.unlink()
    PINS.rmdir()


@pytest.fixture
def context() -> BpfSockAddr:
    return BpfSockAddr(
        user_family=socket.AF_INET,
        user_ip4=ip4("10.96.0.1"),
        user_port=port(80),
        family=socket.AF_INET,
        type=socket.SOCK_STREAM,
        protocol=socket.IPPROTO_TCP,
    )


def test_bpftool_runs_the_connect_hook(
    pinned_hook: Path, context: BpfSockAddr, tmp_path: Path
) -> None:
    request, answer = tmp_path / "in", tmp_path / "out"
    request.write_bytes(bytes(context))
    said = bpftool("prog", "run", "pinned", pinned_hook, "ctx_in", request, "ctx_out", answer,
                   "repeat", 10)  # fmt: skip
    assert "Return value: 1" in said
    assert answer.read_bytes()[:SOCK_ADDR_SIZE] == bytes(context), "an unmanaged namespace"


def test_bpftool_is_told_why_a_context_is_refused(
    pinned_hook: Path, context: BpfSockAddr, tmp_path: Path
) -> None:
    context.user_family = socket.AF_UNSPEC
    request = tmp_path / "in"
    request.write_bytes(bytes(context))
    with pytest.raises(AssertionError, match="Address family not supported"):
        bpftool("prog", "run", "pinned", pinned_hook, "ctx_in", request)
