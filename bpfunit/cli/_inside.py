"""What ``bpfunit run`` does on the guest's side: plain data in, plain data out."""

from __future__ import annotations

import ctypes
import inspect
import os
import socket
from pathlib import Path
from typing import Any

import bpfunit
from bpfunit._sys import libc
from bpfunit.cli._values import with_addresses
from bpfunit.errors import BpfunitError
from bpfunit.progtypes.sock_addr import SockAddrResult
from bpfunit.values.records import is_address, read_address

_SOCKET_TYPES = {
    "stream": socket.SOCK_STREAM,
    "dgram": socket.SOCK_DGRAM,
    "raw": socket.SOCK_RAW,
}


def load_module(channel: Any) -> None:
    """Load the module that the host named in ``BPFUNIT_MODULE``, if it named one; send its path."""
    module = os.environ.get("BPFUNIT_MODULE", "")
    if module:
        libc.load_module(Path(module))
    channel.send(module)


def serve(channel: Any, request: dict[str, Any]) -> None:
    """Answer one request."""
    channel.send(answer(request))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load, fill the maps, run, and return what happened, or ``{"error": …}``.

    Args:
        request: the command line as plain data, as :func:`bpfunit.cli.run.run` makes it.
    """
    try:
        with _loaded(request) as obj:
            for name, key, value in request["maps"]:
                obj.maps[name][with_addresses(key)] = with_addresses(value)
            program = obj.programs[request["program"]]
            return _report(_run(program, _run_arguments(request)), request, obj)
    except BpfunitError as error:
        return {"error": str(error)}


def _loaded(request: dict[str, Any]) -> bpfunit.Object:
    """Load the program that was asked for, and no other that might be refused."""
    flags = request["types_flags"]
    options: dict[str, Any] = {
        "globals": with_addresses(request["globals"]),
        "map_types": {name: tuple(pair) for name, pair in request["map_types"].items()},
        "types": [bpfunit.load_types(path, flags) for path in request["types"]],
        "trace_tail_calls": request["trace_tail_calls"],
        "engine": request["engine"],
    }
    try:
        return bpfunit.load(request["object"], programs=[request["program"]], **options)
    except bpfunit.LoadError:
        # a program array of the object may name others, which then have to be there
        obj = bpfunit.load(request["object"], **options)
        if request["program"] in obj.programs:
            return obj
        obj.close()
        raise


def _run_arguments(request: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"repeat": request["repeat"]}
    for name in ("dst", "src", "proto"):
        if request[name] is not None:
            arguments[name] = request[name]
    if request["type"] is not None:
        arguments["type"] = _SOCKET_TYPES[request["type"]]
    if request["data"] is not None:
        arguments["data"] = bytes.fromhex(request["data"])
    return arguments


def _run(program: bpfunit.Program, arguments: dict[str, Any]) -> bpfunit.Result:
    taken = inspect.signature(program.run)
    if not arguments.keys() <= taken.parameters.keys():
        address = {"dst", "src"} & arguments.keys()
        asked = "an address is crafted for cgroup_sock_addr" if address else "that is for other"
        raise BpfunitError(
            f"run {program.name}: {asked} programs, this is"
            f" {program.program_type.name}; give it {program.program_type.takes}"
        )
    try:
        taken.bind(**arguments)
    except TypeError:
        of_type = program.program_type
        raise BpfunitError(
            f"run {program.name}: {of_type.name} programs want {of_type.takes}, which this command"
            " cannot be given; run it in a test:"
            f" obj.programs.{program.name}.run({of_type.example})"
        ) from None
    return program.run(**arguments)


def _report(result: bpfunit.Result, request: dict[str, Any], obj: bpfunit.Object) -> dict[str, Any]:
    report: dict[str, Any] = {
        "program": result.program,
        "kernel": result.kernel,
        "engine": result.engine,
        "retval": result.retval,
        "errno": result.errno,
        "duration_ns": result.duration_ns,
        "log": [str(line) for line in result.log],
        "printk": list(result.printk),
    }
    if isinstance(result, SockAddrResult):
        report["dst"] = str(result.dst)
        report["dst_before"] = str(result.ctx_in.user)
        if result.storages is not None:
            report["storage"] = {name: plain(value) for name, value in result.storages.items()}
        report["tail_calls"] = _tail_calls(result)
    if request["data"] is not None:
        report["data"] = getattr(result, "data", result.outcome.data).hex()
    report["maps"] = {
        name: [[plain(key), plain(value)] for key, value in obj.maps[name].snapshot().items()]
        for name in request["show_maps"]
    }
    return report


def _tail_calls(result: bpfunit.Result) -> list[dict[str, Any]] | str:
    try:
        return [
            {"map": call.map, "index": call.index, "target": str(call.target)}
            for call in result.tail_calls
        ]
    except BpfunitError as error:
        return str(error)


def plain(value: Any) -> Any:
    """Return a value as what JSON can say; addresses as people write them, bytes as hex."""
    if isinstance(value, (ctypes.Structure, ctypes.Union)):
        if is_address(type(value)):
            return str(read_address(bytes(value)))
        names = getattr(value, "_members_", None) or [field[0] for field in value._fields_]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, ctypes.Array):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
