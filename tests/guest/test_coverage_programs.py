"""Probes leave every kind of program as it was: samples, and programs made at random."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bpfunit
from bpfunit import Object, Program, _native, faults
from bpfunit._sys import bpf
from bpfunit._sys.uapi import ProgType
from bpfunit.coverage import CoverageRecorder, Mode
from bpfunit.coverage.counts import conservation_errors
from bpfunit.coverage.model import Model, describe
from bpfunit.coverage.probes import count_probes, place_probes
from bpfunit.objects.verifier import VerifierError
from bpfunit.rewrite import Image, Patcher, ProgramCode, encode, insn
from bpfunit.rewrite.valuemap import ValueMap

from ..objects import HOOK, compiled
from .random_programs import random_program

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

PACKETS = 1000
RANDOM_PROGRAMS = 150
Load = Callable[..., Object]


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def recorder(request: pytest.FixtureRequest) -> Iterator[CoverageRecorder]:
    """A recorder of each mode in turn."""
    recorder = CoverageRecorder(request.param)
    yield recorder
    recorder.close()


def packets(count: int, seed: int) -> Iterator[bytes]:
    """Frames, most of them IPv4, whose fields take few values.

    None is shorter than its header says: the kernel's own test run of a socket buffer refuses that.
    """
    rng = random.Random(seed)
    for _ in range(count):
        body = bytearray(rng.randbytes(rng.choice((20, 21, 40, 90, 220))))
        if rng.random() < 0.8:
            body[2:4] = rng.choice((0, 60, 70, 100, 210, 300)).to_bytes(2, "big")
            body[8:10] = bytes([rng.choice((0, 64)), rng.choice((1, 2, 6, 17, 99))])
            if rng.random() < 0.3:
                body[12:16] = body[16:20]
        ethertype = b"\x08\x00" if rng.random() < 0.8 else b"\x08\x06"
        yield bytes(12) + ethertype + bytes(body)


def outcome(program: Program, packet: bytes) -> tuple[int, bytes]:
    result = program.run(data=packet)
    return result.retval, result.data


@pytest.mark.parametrize("name", ["classify", "mark", "longest_run", "crowded"])
def test_a_thousand_packets_end_the_same_with_probes_and_without(
    name: str, bpf_load: Load, recorder: CoverageRecorder
) -> None:
    plain = bpf_load(compiled("cover"), programs=[name]).programs[name]
    with recorder.recording():
        probed = bpf_load(compiled("cover"), programs=[name]).programs[name]
    assert recorder.refused == {}
    seen = set()
    for packet in packets(PACKETS, seed=len(name)):
        expected = outcome(plain, packet)
        assert outcome(probed, packet) == expected, packet.hex()
        seen.add(expected[0])
    assert len(seen) > 1, "the packets take one way only and so prove little"


def test_every_jump_of_every_sample_conserves_its_flow(bpf_load: Load) -> None:
    recorder = CoverageRecorder(Mode.COUNTERS)
    names = ["classify", "mark", "longest_run", "crowded"]
    with recorder.recording():
        programs = bpf_load(compiled("cover"), programs=names).programs
    for packet in packets(100, seed=3):
        for name in names:
            programs[name].run(data=packet, repeat=3)
    hits = recorder.take()
    for model in recorder.models():
        counts = [hits[model.key].get(number, 0) for number in range(len(model.probes))]
        assert counts[0] == 300  # the main function's entry
        assert conservation_errors(model, counts) == []
    recorder.close()


def test_a_callback_is_counted_once_for_each_call(
    bpf_load: Load, recorder: CoverageRecorder
) -> None:
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < (5, 17):
        with pytest.raises(VerifierError):
            bpf_load(compiled("cover"), programs=["sum_by_callback"])
        return
    with recorder.recording():
        obj = bpf_load(compiled("cover"), programs=["sum_by_callback"])
    assert obj.programs.sum_by_callback.run(data=bytes(64)).retval == sum(range(10))
    (model,) = recorder.models()
    callback = next(f for f in model.functions if f.name == "add_one")
    hits = recorder.take()[model.key]
    entry = next(
        n for n, p in enumerate(model.probes) if p.point == "entry" and p.block == callback.block
    )
    assert hits[entry] == (11 if recorder.mode is Mode.COUNTERS else 1)


def test_a_probe_saves_a_register_only_where_none_is_free(
    bpf_load: Load, recorder: CoverageRecorder
) -> None:
    with recorder.recording():
        bpf_load(compiled("cover"), programs=["crowded", "classify", "longest_run"])
    spills = {model.program: model.spills for model in recorder.models()}
    assert spills == {"crowded": 2, "classify": 0, "longest_run": 0}


def test_a_program_without_room_for_probes_runs_plain_and_is_reported(
    bpf_load: Load, recorder: CoverageRecorder
) -> None:
    with recorder.recording():
        obj = bpf_load(compiled("cover"), programs=["overcrowded", "mark"])
    assert obj.programs.overcrowded.run(data=bytes(14)).retval > 1000
    assert [model.program for model in recorder.models()] == ["mark"]
    assert "no room to save one in a stack of 512 bytes" in recorder.refused["overcrowded"]


def test_a_program_that_the_verifier_refuses_with_probes_runs_plain(
    bpf_load: Load, recorder: CoverageRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes are made wrong here, so that the verifier has something to refuse."""
    store_imm, atomic_add64 = insn.store_imm, insn.atomic_add64
    monkeypatch.setattr(
        insn, "store_imm", lambda size, base, _, value: store_imm(size, base, -9, value)
    )
    monkeypatch.setattr(insn, "atomic_add64", lambda base, _, src: atomic_add64(base, -9, src))
    with recorder.recording():
        obj = bpf_load(compiled("cover"), programs=["mark"])
    assert obj.programs.mark.run(data=bytes(300)).retval == 2
    assert recorder.models() == []
    assert "the verifier refuses it with probes: " in recorder.refused["mark"]


def load_raw(name: str, image: bytes) -> Program:
    fd, log = bpf.prog_load(name, ProgType.SOCKET_FILTER, 0, image)
    assert fd >= 0, log[-2000:]
    return Program.from_fd(fd)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_random_programs_keep_their_meaning(mode: Mode) -> None:
    jumps = 0
    for seed in range(RANDOM_PROGRAMS):
        image = Image(encode(random_program(seed)))
        code = ProgramCode("random", "socket", ProgType.SOCKET_FILTER, 0, image)
        flow = code.flow()
        patcher = Patcher(flow)
        with ValueMap("cov", count_probes(flow) * mode.width) as values:
            placement = place_probes(flow, mode, values.fd, patcher)
            plain = load_raw("plain", image.insns)
            probed = load_raw("probed", Image.of(code.patch(patcher)).insns)
            try:
                for length in (14, 15, 60, 64, 1000):
                    expected = plain.run(data=bytes(length)).retval
                    assert probed.run(data=bytes(length)).retval == expected, f"seed {seed}"
            finally:
                os.close(plain.fd)
                os.close(probed.fd)
            if mode is Mode.COUNTERS:
                model = Model(
                    *("key", "random", "socket", "here", mode, placement.probes, frozenset()),
                    **describe(code, flow),
                )
                counts = memoryview(values.read()).cast("Q").tolist()
                assert counts[0] == 5
                assert conservation_errors(model, counts) == [], f"seed {seed}"
        jumps += sum(bool(block.taken) for block in flow.blocks)
    assert jumps > RANDOM_PROGRAMS


def test_verifier_errors_are_still_the_programs_own(bpf_load: Load) -> None:
    with CoverageRecorder().recording(), pytest.raises(bpfunit.VerifierError):
        bpf_load(compiled("rejected"))


def test_a_load_that_fails_leaves_later_ones_their_probes(
    bpf_load: Load, recorder: CoverageRecorder
) -> None:
    nowhere = faults.stub("bpf_map_lookup_elem", returns=0x1234)  # no pointer can be made up
    with recorder.recording():
        with pytest.raises(VerifierError):
            bpf_load(HOOK, instrument=[nowhere])
        assert recorder.refused == {}
        bpf_load(HOOK)
        programs = {model.program for model in recorder.models()}
    assert programs >= {"cgroup_connect4_prog", "cgroup_connect6_prog"}
    assert recorder.refused == {}


def test_a_run_looks_at_the_probes_of_objects_that_are_open(recorder: CoverageRecorder) -> None:
    """What was loaded before would cost each run of a long suite more."""

    def looked_at() -> int:
        return int(_native.Probed.from_address(recorder.memory()).count)

    def run_of(obj: Object) -> Any:
        return obj.programs.longest_run.run(data=bytes(300))

    with recorder.recording():
        first = bpfunit.load(compiled("cover"), programs=["longest_run", "classify"])
        assert looked_at() == 2
        second = bpfunit.load(compiled("cover"), programs=["mark", "longest_run"])
        assert looked_at() == 3
        assert "longest_run" in {step.program for step in run_of(first).path}
        first.close()
        assert looked_at() == 2
        assert "longest_run" in {step.program for step in run_of(second).path}
        second.programs.mark.run(data=bytes(300))
        second.close()
        assert looked_at() == 0
    hit = {key for key, counts in recorder.take().items() if counts}
    ran = {model.program for model in recorder.models() if model.key in hit}
    assert ran == {"mark", "longest_run"}, "what ran counts, though its object is closed"
