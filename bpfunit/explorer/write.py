"""Inputs as tests: a pytest file in the words of the API, which asserts what the program did.

What is written stands between two marks, one pair for each program; everything else in the file is
its author's and is not touched.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpfunit.explorer import heads
from bpfunit.explorer.executor import Executor
from bpfunit.explorer.facts import FIXED, GROUP, PROGRAMS, SECTION, SOCKETS, STORAGE
from bpfunit.explorer.minimise import Minimiser, Wanted
from bpfunit.explorer.result import Exploration, condition
from bpfunit.explorer.search import Case, Edge, Search
from bpfunit.objects.logs import LogLine
from bpfunit.progtypes.cgroup_device import DeviceContext, DeviceProgram
from bpfunit.progtypes.sock_addr import BpfSockAddr, SockAddrProgram
from bpfunit.rewrite.helpers import helper_name
from bpfunit.values import records
from bpfunit.values.net import IP

_BEGIN = "# --- explored: {program}: written by `bpfunit explore`, which replaces it"
_END = "# --- end of explored: {program}"
_SOCKETS = {1: "socket.SOCK_STREAM", 2: "socket.SOCK_DGRAM", 3: "socket.SOCK_RAW"}


class WrittenTest(NamedTuple):
    """One test.

    Attributes:
        name: of the function.
        text: the function, without a line end behind.
        told: for people: the edge that it stands for.
        edge: the same as the jump's instruction in the program as the compiler made it, and
            whether the jump is taken.
    """

    name: str
    text: str
    told: str
    edge: tuple[int, bool]


# -- values as Python text


def leaves(ctype: Any, offset: int = 0, name: str = "") -> Iterator[tuple[int, int, str]]:
    """Yield offset, size and dotted name of the plain fields of a type, of a union's first one."""
    if isinstance(ctype, type) and issubclass(ctype, (ctypes.Structure, ctypes.Union)):
        for member in getattr(ctype, "_members_", {}):
            field = getattr(ctype, member)
            if isinstance(field, records.BitField):
                continue
            members: Any = ctype
            yield from leaves(
                members._members_[member], offset + field.offset, f"{name}.{member}".strip(".")
            )
            if issubclass(ctype, ctypes.Union):
                return
    elif isinstance(ctype, type) and issubclass(ctype, ctypes.Array):
        element: Any = ctype
        size = ctypes.sizeof(element._type_)
        for n in range(element._length_):
            yield from leaves(element._type_, offset + n * size, name)
    else:
        yield offset, ctypes.sizeof(ctype), name


def role_of(name: str) -> str:
    """Return what a field holds by its name: "addr", "port" or ""."""
    words = re.split(r"[._]", name.lower())
    if any(word in ("port", "dport", "sport", "lport", "rport") for word in words):
        return "port"
    if any(word in ("addr", "daddr", "saddr", "ip", "ip4", "ip6", "ipv4", "vip") for word in words):
        return "addr"
    return ""


def _shown(value: Any) -> dict[str, Any]:
    """Return the members of a record that say something, of those that overlap the first."""
    found: dict[str, Any] = {}
    covered = 0
    raw = bytes(value)
    for member in value._members_:
        field = getattr(type(value), member)
        one = getattr(value, member)
        if not records._nonzero(one):
            continue
        if isinstance(field, records.BitField):
            found[member] = one
            continue
        end = field.offset + field.size
        if field.offset < covered and not any(raw[covered:end]):
            continue
        found[member] = one
        covered = max(covered, end)
    return found


def literal(value: Any, name: str = "") -> str:
    """Return a value of a map as Python text, zero fields left out."""
    if isinstance(value, (ctypes.Structure, ctypes.Union)):
        if records.is_address(type(value)):
            return repr(records.read_address(bytes(value)))
        members: Any = value
        shown = _shown(value)
        if not shown and len(members._members_) == 1:
            shown = {m: getattr(value, m) for m in members._members_}
        return "{" + ", ".join(f'"{m}": {literal(one, m)}' for m, one in shown.items()) + "}"
    if isinstance(value, ctypes.Array):
        items = list(value)
        if items and isinstance(items[0], bytes):
            return heads.text_of(b"".join(items))
        while items and not records._nonzero(items[-1]):
            items.pop()
        return "[" + ", ".join(literal(item, name) for item in items) + "]"
    if isinstance(value, bool) or not isinstance(value, int):
        return repr(value)
    role = role_of(name)
    if role == "port" and 0 < value <= 0xFFFF:
        return f"port({int.from_bytes(value.to_bytes(2, sys.byteorder), 'big')})"
    if role == "addr" and 0 < value <= 0xFFFFFFFF:
        return f'ip4("{IP(value)}")'
    return hex(value) if value > 0xFFFF else str(value)


def nonzero(value: Any) -> Any:
    """Return a value of a map as plain Python without fields that are zero, as tests compare it.

    Structures become dictionaries, arrays lists without zeroes at their ends, addresses text.
    """
    if isinstance(value, (ctypes.Structure, ctypes.Union)):
        if records.is_address(type(value)):
            return str(records.read_address(bytes(value)))
        return {member: nonzero(one) for member, one in _shown(value).items()}
    if isinstance(value, ctypes.Array):
        items = list(value)
        while items and not records._nonzero(items[-1]):
            items.pop()
        return [nonzero(item) for item in items]
    if isinstance(value, list):
        return [nonzero(item) for item in value]
    return value


# -- tests


class Writer:
    """Writes the tests of one exploration; the executor is that of the search.

    Args:
        executor: the program, loaded.
        exploration: what was found.
        search: the search that found it.
    """

    def __init__(self, executor: Executor, exploration: Exploration, search: Search) -> None:
        self._executor, self._exploration = executor, exploration
        self._facts = exploration.facts
        self._object = executor.loaded
        self._program = self._object.programs[self._facts.program]
        self._head = heads.head_of(self._program)
        self._minimiser = Minimiser(search, self._role, _context_role)
        self._names: dict[str, int] = {}
        self._dialled: set[bytes] = set()
        self._roles: dict[tuple[int, str], dict[int, str]] = {}

    def _map(self, number: int) -> Any:
        return self._object.maps[self._facts.maps[number].name]

    def _role(self, number: int, part: str, offset: int) -> str:
        roles = self._roles.get((number, part))
        if roles is None:
            one = self._map(number)
            ctype = one.key_type if part == "key" else one.value_type
            fields = leaves(ctype) if ctype is not None else ()
            roles = {
                word: role_of(name)
                for start, size, name in fields
                for word in range(start & ~3, start + size, 4)
            }
            self._roles[number, part] = roles
        return roles.get(offset, "")

    def tests(self) -> list[WrittenTest]:
        """Return a test for each edge, in the order of the program, each input as small as can be.

        An edge begins with the smallest input so far that takes it, which is often its own.
        """
        found: list[WrittenTest] = []
        made: list[Case] = []
        for edge, first in sorted(self._exploration.found.first.items()):
            begin = min((one for one in made if edge in one.edges), key=_size, default=first)
            smallest = self.smallest(begin, [edge])
            made.append(smallest)
            found.append(self._test(smallest, edge))
        return found

    def smallest(self, case: Case, edges: Sequence[Edge]) -> Case:
        """Return a case made small while it takes its edges."""
        return self._minimiser.smallest(case, edges)

    def smallest_that(self, case: Case, wanted: Wanted) -> Case:
        """Return a case made small while what is wanted of it holds."""
        return self._minimiser.smallest_that(case, wanted)

    def body(self, case: Case) -> list[str]:
        """Return the lines of a test that runs a case and asserts what it did."""
        return list(self._body(case))

    def label(self, edge: Edge) -> str:
        """Return a word for an edge: ``route_36_taken``."""
        site = self._facts.sites[edge[0]]
        file, line, _, _ = self._facts.places.get(edge[0], ("insn", site.insn, 0, ""))
        stem = re.sub(r"\W+", "_", Path(file).name.partition(".")[0])
        return f"{stem}_{line}_{'taken' if edge[1] else 'not_taken'}"

    def edge(self, edge: Edge) -> str:
        """Return an edge in words; a path of this machine alone is left out of it."""
        site = self._facts.sites[edge[0]]
        file, line, _, text = self._facts.places.get(edge[0], ("", 0, 0, ""))
        path = Path(file)
        at = f"{path.name if path.is_absolute() else file}:{line}: {text}"
        at = at if file else f"instruction {site.insn}"
        return f"{at} ({condition(site)} {'taken' if edge[1] else 'not taken'})"

    def _test(self, case: Case, edge: Edge) -> WrittenTest:
        told = self.edge(edge)
        base = f"test_{self._facts.program}_{self.label(edge)}"
        count = self._names[base] = self._names.get(base, 0) + 1
        name = base if count == 1 else f"{base}_{count}"
        lines = [
            "@pytest.mark.characterisation",
            f"def {name}(bpf_load) -> None:",
            f'    """{_quoted(told)}"""',
            *(f"    {line}" for line in self._body(case)),
        ]
        insn = self._facts.sites[edge[0]].insn
        return WrittenTest(name, "\n".join(lines), told, (insn, edge[1]))

    def _body(self, case: Case) -> Iterator[str]:
        given = case.given
        self._dialled = set(self._addresses(case))
        stubs = ", ".join(self._stubs(case))
        yield f"obj = load(bpf_load{', ' if stubs else ''}{stubs})"
        if self._head is None:
            yield from self._lines(case)
            return
        lines = heads.socket_lines(given.steps[0].ctx)
        yield from lines
        for line in self._lines(case):
            yield f"    {line}" if lines else line

    def _lines(self, case: Case) -> Iterator[str]:
        """Yield the lines of a test behind the load, and the making of sockets if there is one."""
        given = case.given
        storages, spies = [], []
        for number, key, value in given.entries:
            one = self._facts.maps[number]
            if one.kind == SECTION:
                yield from self._globals(number, value)
            elif one.kind == STORAGE:
                storages.append((number, value))
            elif one.kind == GROUP:
                yield f"{self._entry(number, key)} = sock"
            elif one.kind == SOCKETS and self._connected(given.steps[0].ctx):
                yield f"{self._entry(number, key)} = peer"
            elif one.kind == SOCKETS:
                yield 'listener = socket.create_server(("127.0.0.1", 0))'
                yield f"{self._entry(number, key)} = listener"
            elif one.kind == PROGRAMS:
                spies.append((number, int.from_bytes(key, sys.byteorder)))
            else:
                yield f"{self._entry(number, key)} = {self._value(number, value)}"
        for number, index in spies:
            yield f"obj.maps.{self._facts.maps[number].name}.spy({index})"
        yield f"program = obj.programs.{self._facts.program}"
        shared = len(given.steps) > 1 or bool(storages)
        made_here = shared and self._head is None
        if made_here:
            yield f"sock = {self._socket(given.steps[0].ctx)}"
        for number, value in storages:
            name = self._facts.maps[number].name
            yield f"obj.maps.{name}[sock] = {self._value(number, value)}"
        for n, step in enumerate(given.steps):
            yield from self._step(case, n, step.ctx, step.data, shared=shared)
        yield from self._changes(case)
        if made_here:
            yield "sock.close()"

    def _connected(self, ctx: bytes) -> bool:
        return self._head is not None and heads.words_of(ctx)[0] in (heads.CLIENT, heads.SERVER)

    def _addresses(self, case: Case) -> Iterator[bytes]:
        """Yield the IPv4 addresses of a case's contexts, before and after."""
        if isinstance(self._program, SockAddrProgram):
            place = BpfSockAddr.user_ip4
            for step, out in zip(case.given.steps, case.outcome.steps, strict=True):
                for ctx in (step.ctx, out.ctx):
                    yield ctx[place.offset : place.offset + place.size]

    def _stubs(self, case: Case) -> Iterator[str]:
        for slot, answer in case.given.stubs:
            stub = self._facts.stubs[slot]
            value = answer - (1 << 64) if answer >> 63 else answer
            shown = str(value) if -0xFFFF < value < 0xFFFF else hex(value)
            site = f", site={stub.number}" if stub.number >= 0 else ""
            yield (
                f'faults.stub("{helper_name(stub.helper)}", returns={shown},'
                f" program=PROGRAM_{_upper(self._facts.program)}{site})"
            )

    def _globals(self, number: int, value: bytes) -> Iterator[str]:
        section, initial = self._facts.maps[number].name, self._facts.maps[number].initial
        for name, found in self._object.sections.variables.items():
            variable = found[0]
            start, end = variable.offset, variable.offset + variable.size
            if variable.section == section and value[start:end] != initial[start:end]:
                ctype = self._object.types.storage_by_id(variable.type_id)
                shown = literal(records.decode(ctype, value[start:end]))
                yield f'obj.globals["{name}"] = {shown}'

    def _entry(self, number: int, key: bytes) -> str:
        return f"obj.maps.{self._map(number).name}[{self._key(number, key)}]"

    def _key(self, number: int, key: bytes) -> str:
        """Return a key; a bare number that is an address which was dialled is an address."""
        value = self._map(number).decode_key(key)
        if isinstance(value, int) and key in self._dialled:
            return f'ip4("{IP(key)}")'
        return literal(value)

    def _value(self, number: int, value: bytes) -> str:
        return literal(self._map(number).decode_value(value[: self._facts.maps[number].stride]))

    def _socket(self, ctx: bytes) -> str:
        context = BpfSockAddr.from_buffer_copy(ctx)
        family = "AF_INET" if context.family == 2 else "AF_INET6"
        kind = _SOCKETS.get(context.type, str(context.type))
        return f"socket.socket(socket.{family}, {kind}, {context.protocol})"

    def _step(self, case: Case, n: int, ctx: bytes, data: bytes, *, shared: bool) -> Iterator[str]:
        out = case.outcome.steps[n]
        if isinstance(self._program, SockAddrProgram):
            yield from self._address_run(ctx, shared=shared)
        elif self._head is not None:
            arguments = [self._head.call(ctx, data, len(out.data) - len(data))]
            arguments += ["sock=sock"] if heads.words_of(ctx)[0] else []
            yield f"run = program.run({', '.join(filter(None, arguments))})"
        elif isinstance(self._program, DeviceProgram):
            node, access = DeviceContext.from_buffer_copy(ctx).words
            yield f'run = program.run("{node}", "{access}")'
        elif data:
            context = ""
            if any(ctx):
                context = f', ctx=bytes.fromhex("{ctx.hex()}")'
            yield f'run = program.run(bytes.fromhex("{data.hex()}"){context})'
        else:
            yield f'run = program.run(bytes.fromhex("{ctx.hex()}"))'
        retval = out.retval
        if self._program.program_type.signed and retval >> 31:
            retval -= 1 << 32
        yield f"assert run.retval == {retval}"
        if isinstance(self._program, SockAddrProgram):
            yield from self._address_after(ctx, out.ctx)
        elif self._head is not None:
            yield from self._head.told(out.ctx, out.data)
        elif data and out.data != data:
            yield f'assert run.data == bytes.fromhex("{out.data.hex()}")'
        elif data:
            yield "assert run.data == run.data_in"
        texts = [
            str(LogLine.from_record(self._executor.ring_names[ring], raw))
            for ring, raw in out.log
            if "log" in self._executor.ring_names[ring]
        ]
        if any("log" in name for name in self._executor.ring_names):
            yield f"assert run.log == {texts!r}"

    def _address_run(self, ctx: bytes, *, shared: bool) -> Iterator[str]:
        context = BpfSockAddr.from_buffer_copy(ctx)
        arguments = [f'"{context.user}"']
        if shared:
            arguments.append("sock=sock")
        elif context.type != self._program.craft().type:
            arguments.append(f"type={_SOCKETS.get(context.type, context.type)}")
        if any(context.msg_src_ip6) or context.msg_src_ip4:
            arguments.append(f'src="{context.source.host}"')
        yield f"run = program.run({', '.join(arguments)})"

    def _address_after(self, before: bytes, after: bytes) -> Iterator[str]:
        given, left = (BpfSockAddr.from_buffer_copy(raw) for raw in (before, after))
        if given.user == left.user:
            yield "assert run.untouched"
        else:
            yield f'assert run.dst == "{left.user}"'

    def _changes(self, case: Case) -> Iterator[str]:
        """Yield assertions of what the maps hold afterwards that they were not given."""
        given = {(m, k): v for m, k, v in case.given.entries}
        after = case.outcome.entries
        for (number, key), value in sorted(after.items()):
            one = self._facts.maps[number]
            before = given.get((number, key), bytes(one.stride) if one.kind != STORAGE else None)
            if one.kind in (SECTION, *FIXED) or (value == before and one.kind != STORAGE):
                continue
            if one.kind == STORAGE:
                told = nonzero(self._map(number).decode_value(value))
                yield f'assert nonzero(run.storage("{one.name}")) == {told!r}'
            else:
                told = nonzero(self._map(number).decode_value(value))
                yield f"assert nonzero({self._entry(number, key)}) == {told!r}"
        for number, key in sorted(given):
            one = self._facts.maps[number]
            if one.kind not in (SECTION, *FIXED, STORAGE) and (number, key) not in after:
                yield f"assert {self._key(number, key)} not in obj.maps.{one.name}"
        for number, one in enumerate(self._facts.maps):
            if one.kind == STORAGE and not any(m == number for m, _ in after):
                yield f'assert run.storage("{one.name}") is None'


def _size(case: Case) -> tuple[int, ...]:
    """Return what makes an input long to read, the worst first."""
    given = case.given
    nonzero_bytes = sum(len(value) - value.count(0) for _, _, value in given.entries)
    return len(given.steps), len(given.entries), len(given.stubs), nonzero_bytes


def _context_role(offset: int) -> str:
    for name, role in (("user_ip4", "addr"), ("user_port", "port")):
        if getattr(BpfSockAddr, name).offset == offset & ~3:
            return role
    return ""


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _upper(name: str) -> str:
    return re.sub(r"\W", "_", name).upper()


# -- the file


def block(
    exploration: Exploration,
    tests: Sequence[WrittenTest],
    object_text: str,
    options: Mapping[str, Any],
) -> str:
    """Return what stands between the marks.

    Args:
        exploration: what was found.
        tests: the tests.
        object_text: the object as a Python expression.
        options: further arguments of :func:`bpfunit.load`, plain data.
    """
    facts = exploration.facts
    program = f"PROGRAM_{_upper(facts.program)}"
    defaults = {stub.helper: stub.value for stub in facts.stubs if stub.always}
    stubs = [
        f'        faults.stub("{helper_name(helper)}", returns={value}, program={program}),'
        for helper, value in sorted(defaults.items())
    ]
    head = f"""{_BEGIN.format(program=facts.program)}
# Characterisation: these tests say what the program did when they were written, not what it ought
# to do. A failure is a change of behaviour; when the change is meant, run the command again.
# {exploration.report()[0]}
import socket  # noqa: E402, F401
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from bpfunit import faults, ip, ip4, port, reuseport_group, tcp_pair  # noqa: E402, F401
from bpfunit.explorer import nonzero  # noqa: E402, F401

{program} = "{facts.program}"


def load(bpf_load, *stubs, program={program}):
    \"\"\"Load the program with time, chance and cookies answered; stubs of a test come first.\"\"\"
    answers = [
{chr(10).join(stubs)}
    ]
    options = {dict(options)!r}
    return bpf_load(
        {object_text}, programs=[program], instrument=[*stubs, *answers], **options
    )
"""
    bodies = "\n\n\n".join(test.text for test in tests)
    # each program has a loader of its own, so that several stand in one file
    own = f"load_{facts.program}"
    head = head.replace("def load(", f"def {own}(")
    bodies = bodies.replace("obj = load(", f"obj = {own}(")
    return f"{head}\n\n{bodies}\n\n\n{_END.format(program=facts.program)}\n"


def merged(existing: str, program: str, text: str) -> str:
    """Return a file's text with a program's block in it; nothing outside of the marks changes."""
    begin, end = _BEGIN.format(program=program), _END.format(program=program)
    start = existing.find(begin)
    stop = existing.find(end, start)
    if start >= 0 and stop >= 0:
        stop = existing.find("\n", stop)
        rest = existing[stop + 1 :] if stop >= 0 else ""
        return existing[:start] + text + rest
    if not existing:
        title = '"""Behaviour of BPF programs as it was found by `bpfunit explore`."""\n\n'
        return title + text
    return existing.rstrip("\n") + "\n\n\n" + text
