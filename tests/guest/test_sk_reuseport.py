"""``sk_reuseport`` programs: crafted, held against real packets, many at once, and refusals."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bpfunit
from bpfunit import ContextError, Object, SyscallError
from bpfunit.progtypes.sk_reuseport import ReuseportProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
SO_ATTACH_REUSEPORT_EBPF = 52


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("reuseport"))


def enter(obj: Object, group: list[socket.socket]) -> None:
    for number, worker in enumerate(group):
        obj.maps.workers[number] = worker


@pytest.fixture
def workers(obj: Object) -> Iterator[list[socket.socket]]:
    with bpfunit.reuseport_group(3) as group:
        enter(obj, group)
        yield group


@pytest.mark.parametrize("number", [0, 1, 2])
def test_worker_is_selected_and_gets_a_real_datagram(
    obj: Object, workers: list[socket.socket], number: int
) -> None:
    payload = f"{number} hello".encode()
    result = obj.programs.choose.run(payload, sock=workers[0])
    assert (result.verdict, result.errno, result.retval) == ("select", 0, 1)
    assert result.selected(workers[number])
    assert result.selected(obj.maps.workers, number)
    assert not result.selected(workers[number - 1])
    assert not result.selected(obj.maps.workers, 3)
    assert result.describe()[0].startswith("verdict select, socket:[")
    workers[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, obj.programs.choose.fd)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(payload, workers[0].getsockname())
    workers[number].settimeout(5)
    assert workers[number].recv(100) == payload
    assert obj.maps.asked[0] == 2


def test_packet_that_nobody_gets(obj: Object, workers: list[socket.socket]) -> None:
    result = obj.programs.choose.run(b"X", sock=workers[0])
    assert (result.verdict, result.errno, result.retval) == ("drop", errno.ECONNREFUSED, 0)
    assert not result.selected(workers[0])


@pytest.mark.parametrize("data", [b"3", b""])
def test_packet_without_a_worker_goes_by_its_hash(
    obj: Object, workers: list[socket.socket], data: bytes
) -> None:
    result = obj.programs.choose.run(data, sock=workers[0], repeat=3)
    assert (result.verdict, result.errno, result.retval) == ("hash", 0, 1)
    assert obj.maps.asked[0] == 3


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=str)
@pytest.mark.parametrize("hash", [0, 1, 5])
def test_connections_go_by_hash(obj: Object, family: int, hash: int) -> None:
    with bpfunit.reuseport_group(2, family=family, type=socket.SOCK_STREAM) as listeners:
        enter(obj, listeners)
        result = obj.programs.choose.run(sock=listeners[0], hash=hash)
        assert result.selected(listeners[hash % 4])


def test_addresses_can_be_said(obj: Object) -> None:
    with bpfunit.reuseport_group(1, address=("0.0.0.0", 0)) as group:
        enter(obj, group)
        port = group[0].getsockname()[1]
        run = obj.programs.choose.run
        assert run(b"0", sock=group[0], src="10.0.0.9:7", dst=f"10.1.2.3:{port}").selected(group[0])
        with pytest.raises(SyscallError, match="of another address or port"):
            run(b"0", sock=group[0], dst=f"10.1.2.3:{port ^ 1}")
        with pytest.raises(ContextError, match=r"both are of IPv4, or both of IPv6"):
            run(b"0", sock=group[0], src="[::1]:7")
    assert obj.programs.choose.run(b"0").verdict == "hash"  # a socket of the run's own


@pytest.mark.needs(since="5.14")
def test_connection_migrates(bpf_load: Load) -> None:
    obj = bpf_load(compiled("reuseport", "MIGRATE"))
    with bpfunit.reuseport_group(3, type=socket.SOCK_STREAM) as listeners:
        enter(obj, listeners)
        with socket.create_connection(listeners[0].getsockname()) as client:
            server = next(s for s in map(accept, listeners) if s)
            with server:
                result = obj.programs.migrate.run(sock=listeners[2], migrating=server)
                assert result.selected(listeners[0])
                assert obj.programs.migrate.run(sock=listeners[2]).selected(listeners[1])
                with pytest.raises(SyscallError, match="not loaded for migration"):
                    obj.programs.choose.run(sock=listeners[2], migrating=server)
                with pytest.raises(SyscallError, match="of another address or port"):
                    obj.programs.migrate.run(sock=listeners[2], migrating=client)
                with pytest.raises(ContextError, match="comes without a packet"):
                    obj.programs.migrate.run(b"x", sock=listeners[2], migrating=server)


def accept(listener: socket.socket) -> socket.socket | None:
    listener.settimeout(0.2)
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None


def test_many_packets_in_one_call(obj: Object, workers: list[socket.socket]) -> None:
    runs = obj.programs.choose.run_many(
        [{"data": data, "sock": workers[0]} for data in (b"1", b"2", b"X", b"9")]
    ).raise_for_errors()
    assert [(run.verdict, run.errno) for run in runs] == [
        ("select", 0),
        ("select", 0),
        ("drop", errno.ECONNREFUSED),
        ("hash", 0),
    ]
    assert [run.selected(workers[1]) for run in runs] == [True, False, False, False]
    assert runs[1].selected(obj.maps.workers, 2)


def test_a_slip_says_what_can_be_written(obj: Object, workers: list[socket.socket]) -> None:
    choose = obj.programs.choose
    assert isinstance(choose, ReuseportProgram)
    slips: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("up to 4036 can be crafted", (bytes(5000),), {}),
        ("has more than 32 bits", (b"1",), {"hash": 1 << 32}),
        ("it has no port", (b"1",), {"src": "10.0.0.1"}),
        ("a packet's data, and a socket", ("text",), {}),
    ]
    for match, arguments, options in slips:
        with pytest.raises(ContextError, match=match):
            choose.run(*arguments, sock=workers[0], **options)
    with pytest.raises(ContextError, match="a packet's data, and a socket"):
        choose.run_many([b"1"])
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(SyscallError, match=r"take one of bpfunit\.reuseport_group") as refused,
    ):
        choose.run(sock=listener)
    assert refused.value.errno == errno.ENOENT
    assert struct.calcsize("=8I") == choose.program_type.headers[0]
