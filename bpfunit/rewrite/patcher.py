"""Inserting and replacing instructions, with everything that points at them kept right.

Adjusted are 16-bit jump offsets (``JMP`` and ``JMP32``), the 32-bit offset of ``gotol``, calls of
subprograms, callback addresses, func_info and line_info. An inserted *snippet* is a list of
instructions whose own jumps are relative and stay within it, the slot behind its end included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bpfunit.rewrite.flow import Flow, RewriteError, function_target, jump_target
from bpfunit.rewrite.info import FuncInfo, LineInfo
from bpfunit.rewrite.insn import JMP32, Insn, goto

Snippet = Sequence[Insn]


@dataclass
class Patched:
    """A rewritten program.

    Attributes:
        origin: for each slot of `insns` the slot of the original program, or -1 if inserted.
    """

    insns: list[Insn]
    func_info: list[FuncInfo]
    line_info: list[LineInfo]
    origin: list[int]


@dataclass
class _Edits:
    """What is to happen at one slot."""

    entry: list[Insn] = field(default_factory=list)
    before: list[Insn] = field(default_factory=list)
    fall: list[Insn] = field(default_factory=list)
    taken: list[Insn] = field(default_factory=list)
    replacement: list[Insn] | None = None


@dataclass
class _Pending:
    """An emitted instruction whose distance to the original slot ``target`` is yet to be set."""

    position: int
    target: int


class Patcher:
    """Collects edits of one program, then applies them all at once.

    Edits at one point run in the order in which they were asked for. Slots are always those of the
    original program.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._insns = flow.insns
        self._edits: dict[int, _Edits] = {}

    def _at(self, index: int, operation: str) -> _Edits:
        if not 0 <= index < len(self._insns) or self._insns[index].code == 0:
            raise RewriteError(f"{operation}: slot {index} holds no instruction of its own")
        return self._edits.setdefault(index, _Edits())

    def on_entry(self, start: int, snippet: Snippet) -> None:
        """Run ``snippet`` when the function at slot ``start`` is called; loops pass it by."""
        if start not in self._flow.functions:
            raise RewriteError(f"insert on entry: no function starts at slot {start}")
        self._at(start, "insert on entry").entry.extend(snippet)

    def before(self, index: int, snippet: Snippet) -> None:
        """Run ``snippet`` before slot ``index``, however control came there."""
        self._at(index, "insert before").before.extend(snippet)

    def on_fallthrough(self, index: int, snippet: Snippet) -> None:
        """Run ``snippet`` after slot ``index`` unless it jumps; jumps to the next pass it by."""
        self._at(index, "insert on fall-through").fall.extend(snippet)

    def on_taken(self, index: int, snippet: Snippet) -> None:
        """Run ``snippet`` when the jump at slot ``index`` is taken.

        The snippet goes behind the function and jumps on to the original target from there.
        """
        if jump_target(self._insns, index) is None:
            raise RewriteError(f"insert on taken edge: slot {index} holds no jump")
        self._at(index, "insert on taken edge").taken.extend(snippet)

    def replace(self, index: int, snippet: Snippet) -> None:
        """Run ``snippet`` in place of the instruction at ``index``; jumps to it go to the snippet.

        Raises:
            RewriteError: another edit already replaces it, or it takes two slots.
        """
        edits = self._at(index, "replace")
        if edits.replacement is not None or self._insns[index].is_wide:
            raise RewriteError(f"replace: slot {index} is already replaced, or half of a pair")
        edits.replacement = list(snippet)

    def apply(
        self, func_info: Sequence[FuncInfo] = (), line_info: Sequence[LineInfo] = ()
    ) -> Patched:
        """Return the program with all edits made.

        Raises:
            RewriteError: a jump would have to reach further than its field can hold.
        """
        return _Layout(self._flow, self._edits).build(func_info, line_info)


class _Layout:
    """One pass over the program that emits it anew, and a second that sets the distances."""

    def __init__(self, flow: Flow, edits: dict[int, _Edits]) -> None:
        self._flow = flow
        self._edits = edits
        self._out: list[Insn] = []
        self._origin: list[int] = []
        self._jump_position = [0] * len(flow.insns)  # where a jump to a slot has to go
        self._call_position: dict[int, int] = {}  # where a call of a function has to go
        self._jumps: list[_Pending] = []
        self._calls: list[_Pending] = []
        self._stubs: list[
            tuple[int, int]
        ] = []  # position of an out-of-line snippet, its jump's slot

    def build(self, func_info: Sequence[FuncInfo], line_info: Sequence[LineInfo]) -> Patched:
        for start in self._flow.functions:
            self._function(start, self._flow.function_end(start))
        for jump in self._jumps:
            self._set_jump(jump.position, self._jump_position[jump.target])
        for call in self._calls:
            insn = self._out[call.position]
            distance = self._call_position[call.target] - call.position - 1
            self._out[call.position] = insn._replace(imm=distance)
        return Patched(
            self._out,
            [f._replace(insn_off=self._call_position[f.insn_off]) for f in func_info],
            self._moved_lines(line_info),
            self._origin,
        )

    def _emit(self, snippet: Snippet) -> None:
        self._out.extend(snippet)
        self._origin.extend([-1] * len(snippet))

    def _function(self, start: int, end: int) -> None:
        self._call_position[start] = len(self._out)
        stubs: list[tuple[int, int, list[Insn]]] = []
        for index in range(start, end):
            edits = self._edits.get(index)
            if edits is None:
                self._jump_position[index] = len(self._out)
                self._original(index)
                continue
            self._emit(edits.entry)
            self._jump_position[index] = len(self._out)
            self._emit(edits.before)
            if edits.replacement is not None:
                self._emit(edits.replacement)
            elif edits.taken:
                stubs.append((len(self._out), index, edits.taken))
                self._out.append(self._flow.insns[index])
                self._origin.append(index)
            else:
                self._original(index)
            if edits.fall:
                self._emit_behind(index, edits.fall)
        for position, index, snippet in stubs:
            self._stub(position, index, snippet)

    def _emit_behind(self, index: int, snippet: Snippet) -> None:
        if self._flow.insns[index].is_wide:
            raise RewriteError(f"insert on fall-through: slot {index} is half of a pair")
        self._emit(snippet)

    def _original(self, index: int) -> None:
        position, insns = len(self._out), self._flow.insns
        self._out.append(insns[index])
        self._origin.append(index)
        if (target := jump_target(insns, index)) is not None:
            self._jumps.append(_Pending(position, target))
        elif (target := function_target(insns, index)) is not None:
            self._calls.append(_Pending(position, target))

    def _stub(self, position: int, index: int, snippet: Snippet) -> None:
        """Emit an out-of-line snippet and send the jump at ``position`` through it."""
        target = jump_target(self._flow.insns, index)
        assert target is not None
        place = len(self._out)
        self._stubs.append((place, index))
        self._emit(snippet)
        self._jumps.append(_Pending(len(self._out), target))
        self._emit([goto(0)])
        self._set_jump(position, place)

    def _set_jump(self, position: int, place: int) -> None:
        insn, distance = self._out[position], place - position - 1
        if insn.is_goto and insn.cls == JMP32:
            self._out[position] = insn._replace(imm=distance)
            return
        if not -0x8000 <= distance <= 0x7FFF:
            raise RewriteError(
                f"rewrite program: a jump would have to reach over {distance} instructions, "
                "its 16-bit field holds -32768 to 32767"
            )
        self._out[position] = insn._replace(off=distance)

    def _moved_lines(self, line_info: Sequence[LineInfo]) -> list[LineInfo]:
        """Move line_info along, and give each out-of-line snippet the line of its jump."""
        if not line_info:
            return []
        moved = []
        for record in line_info:
            start = record.insn_off
            place = self._call_position.get(start, self._jump_position[start])
            moved.append(record._replace(insn_off=place))
        current, position = line_info[0], 0
        line_of: dict[int, LineInfo] = {}
        for place, index in sorted(self._stubs, key=lambda stub: stub[1]):
            while position < len(line_info) and line_info[position].insn_off <= index:
                current = line_info[position]
                position += 1
            line_of[place] = current
        moved.extend(record._replace(insn_off=place) for place, record in line_of.items())
        return sorted(moved)
