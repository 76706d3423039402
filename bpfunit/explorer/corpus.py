"""Inputs that are kept from run to run: a directory of small JSON files that people read.

``DIRECTORY/PROGRAM/NAME.json`` is one input. Maps, globals, helpers and members of the context
stand there by their names, and in bytes as memory has them, so that an input means the same on
every kernel and after a rebuild; zeroes at the end of a value are left out. A file's name ends in a
part of the hash of what the input is, so that the same input is the same file.

Files are added and never changed or removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from ctypes import Structure, sizeof
from pathlib import Path
from typing import Any, NamedTuple

from bpfunit.errors import BpfunitError
from bpfunit.explorer.facts import RESULT, SECTION, Facts
from bpfunit.explorer.wire import Input, Step
from bpfunit.rewrite.helpers import helper_name

FORMAT = 1
_U64 = (1 << 64) - 1
_SUFFIX = ".json"


class CorpusError(BpfunitError):
    """Files of a corpus that are none, or do not fit the program; each is named."""


class Kept(NamedTuple):
    """An input of a corpus.

    Attributes:
        name: of its file, without the directory.
        given: the input as this kernel takes it; None where it needs an answer in a helper's place
            that this kernel's verifier does not let be given.
    """

    name: str
    given: Input | None


class Variable(NamedTuple):
    """Where a global variable lies: the map, an index of `Facts.maps`, the offset, the bytes."""

    map: int
    offset: int
    size: int


def read(directory: str | os.PathLike[str], program: str) -> dict[str, str]:
    """Return the texts of a program's files by their names; none where there is no directory yet.

    Raises:
        CorpusError: ``directory`` is no directory, or a file of it cannot be read.
    """
    folder = Path(directory) / program
    for path in (Path(directory), folder):
        if path.exists() and not path.is_dir():
            raise CorpusError(f"read the corpus {directory}: {path} is no directory")
    try:
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(folder.glob(f"*{_SUFFIX}"))
        }
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"read the corpus {folder}: {error}") from error


def write(directory: str | os.PathLike[str], program: str, files: Mapping[str, str]) -> list[Path]:
    """Add files to a program's corpus, each whole or not at all; return the paths of new ones."""
    folder = Path(directory) / program
    added = []
    for name, text in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        if path.exists():
            continue
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
        added.append(path)
    return added


class Form:
    """Turns inputs of one program into files and back.

    Args:
        facts: the program, as this kernel has it.
        context: the context's structure, None where it has none.
        variables: the global variables.
    """

    def __init__(
        self, facts: Facts, context: type[Structure] | None, variables: Mapping[str, Variable]
    ) -> None:
        self._facts, self._variables = facts, variables
        self._maps = {one.name: number for number, one in enumerate(facts.maps)}
        self._names = dict(_words(context)) if context is not None else {}
        self._offsets = {name: offset for offset, name in self._names.items()}

    # -- to text

    def file(self, given: Input, label: str, takes: Sequence[str]) -> tuple[str, str]:
        """Return the name and the text of an input's file.

        Args:
            given: the input.
            label: a word for people, in front of the name.
            takes: for people: the edges for which it is kept.
        """
        body: dict[str, Any] = {"runs": [self._run(step) for step in given.steps]}
        maps: dict[str, dict[str, str]] = {}
        variables: dict[str, str] = {}
        for number, key, value in given.entries:
            one = self._facts.maps[number]
            if one.kind == SECTION:
                variables |= self._changed(number, value)
            else:
                maps.setdefault(one.name, {})[key.hex()] = _trimmed(value[: one.value_size])
        if maps:
            body["maps"] = maps
        if variables:
            body["globals"] = variables
        if given.stubs:
            body["answers"] = [self._answer(slot, value) for slot, value in given.stubs]
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:10]
        whole = {"format": FORMAT, "program": self._facts.program, "takes": list(takes), **body}
        return f"{label}-{digest}{_SUFFIX}", json.dumps(whole, indent=1) + "\n"

    def _run(self, step: Step) -> dict[str, Any]:
        words = {
            self._names.get(offset, f"word {offset}"): step.ctx[offset : offset + 4].hex()
            for offset in range(0, len(step.ctx), 4)
            if any(step.ctx[offset : offset + 4])
        }
        return {
            **({"context": words} if words else {}),
            **({"packet": step.data.hex(" ", -4)} if step.data else {}),
        }

    def _changed(self, number: int, value: bytes) -> dict[str, str]:
        initial = self._facts.maps[number].initial
        return {
            name: value[place.offset : place.offset + place.size].hex(" ", -4)
            for name, place in self._variables.items()
            if place.map == number
            and value[place.offset : place.offset + place.size]
            != initial[place.offset : place.offset + place.size]
        }

    def _answer(self, slot: int, value: int) -> dict[str, Any]:
        stub = self._facts.stubs[slot]
        shown = value - (1 << 64) if value >> 63 else value
        which = {"call": stub.number} if stub.number >= 0 else {}  # none for all of them
        return {"helper": helper_name(stub.helper), **which, "gives": shown}

    # -- from text

    def inputs(self, files: Mapping[str, str]) -> list[Kept]:
        """Return the inputs of files, by name.

        Raises:
            CorpusError: some are no inputs of this program; it names them all.
        """
        found, wrong = [], []
        for name, text in files.items():
            try:
                found.append(Kept(name, self._input(text)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wrong.append(f"{name}: {_told(error)}")
        if wrong:
            listed = "\n  ".join(wrong)
            raise CorpusError(
                f"read the corpus of {self._facts.program}: {len(wrong)} of {len(files)} files do"
                f" not fit the program:\n  {listed}\n  each is to be an input as `bpfunit explore"
                " --corpus` writes it for this program; correct it, or move it away. Nothing was"
                " changed"
            )
        return found

    def _input(self, text: str) -> Input | None:
        whole = json.loads(text)
        if not isinstance(whole, dict) or "format" not in whole:
            raise ValueError("no file of a corpus: it has no format")
        if whole["format"] != FORMAT:
            raise ValueError(f"format {whole['format']}, and this bpfunit reads {FORMAT}")
        if whole.get("program") != self._facts.program:
            raise ValueError(f"an input of the program {whole.get('program')}")
        unknown = sorted(set(whole) - {"format", "program", "takes", *_PARTS})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no part of an input")
        if not whole.get("runs"):
            raise ValueError("it has no runs")
        given = Input(tuple(self._step(one) for one in whole["runs"]))
        for name, entries in whole.get("maps", {}).items():
            number = _known(self._maps, name, "map")
            for key, value in entries.items():
                given = given.with_entry(number, *self._entry(number, key, value))
        for name, value in whole.get("globals", {}).items():
            given = self._with_global(given, name, bytes.fromhex(value))
        for answer in whole.get("answers", ()):
            slot = self._slot(answer["helper"], answer.get("call", 0))
            if slot is None:
                return None
            given = given.with_stub(slot, int(answer["gives"]) & _U64)
        return given

    def _step(self, run: Mapping[str, Any]) -> Step:
        size = len(self._facts.contexts[0])
        context = bytearray(size)
        for name, value in run.get("context", {}).items():
            offset = self._offsets.get(name)
            if offset is None:
                if not name.startswith("word "):
                    raise ValueError(f"the context has no {name}")
                offset = int(name.removeprefix("word "))
            raw = bytes.fromhex(value)
            if not 0 <= offset <= size - len(raw):
                raise ValueError(f"the context has {size} bytes and no {name}")
            context[offset : offset + len(raw)] = raw
        return Step(bytes(context), bytes.fromhex(run.get("packet", "")))

    def _entry(self, number: int, key: str, value: str) -> tuple[bytes, bytes]:
        one = self._facts.maps[number]
        raw_key, raw = bytes.fromhex(key), bytes.fromhex(value)
        if len(raw_key) != one.key_size:
            raise ValueError(f"map {one.name}: {len(raw_key)} bytes of a key of {one.key_size}")
        if len(raw) > one.value_size:
            raise ValueError(f"map {one.name}: {len(raw)} bytes of a value of {one.value_size}")
        return raw_key, one.whole(raw)

    def _with_global(self, given: Input, name: str, raw: bytes) -> Input:
        place = _known(self._variables, name, "global variable")
        if len(raw) != place.size:
            raise ValueError(f"global variable {name}: {len(raw)} bytes of {place.size}")
        key = bytes(4)
        whole = next((v for m, k, v in given.entries if (m, k) == (place.map, key)), None)
        changed = bytearray(whole or self._facts.maps[place.map].initial)
        changed[place.offset : place.offset + place.size] = raw
        return given.with_entry(place.map, key, bytes(changed))

    def _slot(self, helper: str, call: int) -> int | None:
        for slot, stub in enumerate(self._facts.stubs):
            if helper_name(stub.helper) == helper and stub.number in (call, -1):
                return slot
        calls = [one for one in self._facts.sites if one.kind == RESULT]
        if sum(helper_name(one.helper) == helper for one in calls) > call:
            return None
        raise ValueError(f"the program has no call {call} of {helper}")


_PARTS = ("runs", "maps", "globals", "answers")


def _known(names: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in names:
        raise ValueError(f"the program has no {what} {name}")
    return names[name]


def _trimmed(value: bytes) -> str:
    return value.rstrip(b"\0").hex(" ", -4)


def _told(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if not isinstance(error, ValueError):
        return f"not of the form of an input: {error}"
    return str(error)


def _words(context: type[Structure]) -> Iterator[tuple[int, str]]:
    """Yield offset and name of each word of 4 bytes of a context."""
    for name, *_ in context._fields_:
        field = getattr(context, name)
        first = field.offset & ~3
        size = field.size & 0xFFFF  # a bit field has its bits above
        for offset in range(first, min(field.offset + size, sizeof(context)), 4):
            yield offset, name if size <= 4 else f"{name}[{(offset - first) // 4}]"


# -- what a guest has for the host

_unsent: list[tuple[str, str, dict[str, str]]] = []


def keep(directory: str | os.PathLike[str], program: str, files: Mapping[str, str]) -> None:
    """Add files to a corpus; in a guest, whose files go with it, the test's report takes them."""
    if write(directory, program, files):
        _unsent.append((str(Path(directory).resolve()), program, dict(files)))


def take_unsent() -> list[tuple[str, str, dict[str, str]]]:
    """Return what was kept since the last time: directory, program and files."""
    found = list(_unsent)
    _unsent.clear()
    return found
