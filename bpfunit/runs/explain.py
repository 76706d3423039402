"""What an object's runs did, as text for the report of a failing test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bpfunit.errors import BpfunitError
from bpfunit.objects.maps import Map
from bpfunit.runs.observation import Observation
from bpfunit.runs.result import Result

_RUNS = 5  # the last runs decide; what came before rarely does
_ENTRIES = 40
_CHAIN = 6


def describe(observation: Observation) -> str:
    """Return the maps that were set and the last runs of one object; "" when there was nothing."""
    lines = [*_maps(observation.maps.values()), *_runs(observation)]
    return "\n".join(lines)


def _maps(maps: Any) -> Iterator[str]:
    written = [(m, change) for m in maps for change in m.touched]
    if not written:
        return
    yield "maps as the test set them:"
    for m, change in written[-_ENTRIES:]:
        yield f"  {_change(m, *change)}"
    if len(written) > _ENTRIES:
        yield f"  (the last {_ENTRIES} of {len(written)} changes)"


def _change(m: Map, what: str, key: Any, value: Any) -> str:
    if what == "bulk":
        return f"{m.name}: {key} entries at once"
    if what == "push":
        return f"{m.name}.push({_shown(m.value_type, value)})"
    if what == "del":
        return f"del {m.name}[{key!r}]"
    return f"{m.name}[{_shown(m.key_type, key)}] = {_shown(m.value_type, value)}"


def _shown(ctype: Any, value: Any) -> str:
    """Show a value as its map's type where it was given as a dict, so that addresses read well."""
    if isinstance(value, (dict, list, tuple)) and ctype is not None:
        from bpfunit.values.records import coerce

        try:
            return repr(coerce("", ctype, value))
        except BpfunitError:
            pass  # per-CPU lists and the like: shown as they were given
    return repr(value)


def _runs(observation: Observation) -> Iterator[str]:
    journal = list(observation.journal)
    if not journal:
        return
    more = f" (the last {_RUNS} of {observation.runs})" if observation.runs > _RUNS else ""
    yield f"runs{more}:"
    for entry in journal[-_RUNS:]:
        if isinstance(entry, str):
            yield f"  refused: {entry}"
        else:
            yield from _run(entry)


def _run(result: Result) -> Iterator[str]:
    duration = f", {result.duration_ns} ns" if result.duration_ns is not None else ""
    yield (
        f"  {result.program} on {result.kernel} by {result.engine}: returned {result.retval}"
        f"{f' ({result.retval_note})' if result.retval_note else ''}"
        f"{f', errno {result.errno}' if result.errno else ''}{duration}"
    )
    yield from (f"    {line}" for line in result.describe())
    for name, value in (result.storages or {}).items():
        yield f"    storage {name}: {value!r}"
    yield from _explain_calls(result)
    for line in result.log:
        yield f"    log {line.map} ({line.ret}): {line}"
    for text in result.printk:
        yield f"    bpf_printk: {text}"
    if result.path is not None:
        yield from (f"    {line}" for line in str(result.path).splitlines())


def _explain_calls(result: Result) -> Iterator[str]:
    try:
        calls = result.all_calls
    except BpfunitError as error:
        yield f"    tail calls: {error}"
        return
    for call in calls[:_CHAIN]:
        came = f"entered {call.target}" if call.entered else "came back: empty slot or 33 calls"
        context = f" with {call.shown}" if call.ctx is not None else ""
        yield f"    tail call {call.map}[{call.index}]{context}: {came}"
    if len(calls) > _CHAIN:
        yield f"    … {len(calls)} tail calls in all"
