"""A corpus: what it keeps, that it grows by new edges alone, and that every kernel replays it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bpfunit
from bpfunit.explorer import Budget, CorpusError, Exploration
from bpfunit.explorer.result import REACHED

from ..objects import HOOK, compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

HERE = Path(__file__).parent
DNS = "bpf_restore_dns_recv"


def taken(found: Exploration) -> set[tuple[int, bool]]:
    return {(edge.insn, edge.taken) for edge in found.edges if edge.state == REACHED}


def names(corpus: Path, program: str) -> set[str]:
    return {path.name for path in (corpus / program).iterdir()}


def test_a_corpus_takes_the_edges_that_the_search_found_and_does_not_grow_twice(
    tmp_path: Path,
) -> None:
    found = bpfunit.explore(HOOK, DNS, budget=Budget(240), corpus=tmp_path)
    assert found.reached == found.alive
    kept = names(tmp_path, DNS)
    assert 1 < len(kept) < found.alive
    replayed = bpfunit.replay(HOOK, DNS, tmp_path)
    assert taken(replayed) == taken(found)
    assert replayed.found.runs < found.found.runs / 10
    again = bpfunit.explore(HOOK, DNS, seed=5, budget=Budget(240), corpus=tmp_path)
    assert taken(again) == taken(found)
    assert names(tmp_path, DNS) == kept
    assert again.found.runs < found.found.runs


def test_what_is_missing_of_a_corpus_is_found_again_and_the_rest_left_as_it_is(
    tmp_path: Path,
) -> None:
    bpfunit.explore(HOOK, DNS, budget=Budget(240), corpus=tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / DNS).iterdir()}
    gone = max(before)
    (tmp_path / DNS / gone).unlink()
    some = bpfunit.replay(HOOK, DNS, tmp_path)
    assert some.reached < some.alive
    bpfunit.explore(HOOK, DNS, budget=Budget(240), corpus=tmp_path)
    after = {path.name: path.read_text() for path in (tmp_path / DNS).iterdir()}
    assert {name: after[name] for name in before if name != gone} == {
        name: text for name, text in before.items() if name != gone
    }
    whole = bpfunit.replay(HOOK, DNS, tmp_path)
    assert whole.reached == whole.alive


@pytest.mark.parametrize("program", ["values", "twice", "parser", "marked"])
def test_globals_answers_packets_and_several_runs_come_back_from_their_files(
    tmp_path: Path, program: str
) -> None:
    path = compiled("explored")
    found = bpfunit.explore(path, program, budget=Budget(240, runs=8000), corpus=tmp_path)
    assert taken(bpfunit.replay(path, program, tmp_path)) == taken(found)


def test_files_say_by_name_what_an_input_is(tmp_path: Path) -> None:
    path = compiled("explored")
    bpfunit.explore(path, "values", budget=Budget(240, runs=8000), corpus=tmp_path)
    files = [json.loads(one.read_text()) for one in (tmp_path / "values").iterdir()]
    assert all(one["takes"] for one in files)
    assert any("verbosity" in one.get("globals", {}) for one in files)
    assert any("rules" in one.get("maps", {}) for one in files)
    assert all(one["runs"][0]["context"]["user_family"] == "02000000" for one in files)
    bpfunit.explore(path, "twice", budget=Budget(240, runs=2000), corpus=tmp_path)
    files = [json.loads(one.read_text()) for one in (tmp_path / "twice").iterdir()]
    failed = {"helper": "bpf_map_update_elem", "call": 0, "gives": -12}
    assert any(failed in one.get("answers", ()) for one in files)
    bpfunit.explore(path, "parser", budget=Budget(240, runs=2000), corpus=tmp_path)
    packets = [json.loads(one.read_text()) for one in (tmp_path / "parser").iterdir()]
    assert all(bytes.fromhex(one["runs"][0]["packet"]) for one in packets)


def test_a_file_of_another_program_stops_a_search_and_nothing_is_lost(tmp_path: Path) -> None:
    bpfunit.explore(HOOK, DNS, budget=Budget(240), corpus=tmp_path)
    foreign = tmp_path / DNS / "foreign.json"
    foreign.write_text('{"format": 1, "program": "other", "takes": [], "runs": [{}]}')
    before = {path: path.read_text() for path in (tmp_path / DNS).iterdir()}
    for run in (bpfunit.explore, bpfunit.replay):
        with pytest.raises(CorpusError, match=r"foreign\.json: an input of the program other"):
            run(HOOK, DNS, corpus=tmp_path)
    assert {path: path.read_text() for path in (tmp_path / DNS).iterdir()} == before


def test_a_corpus_without_inputs_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no inputs in"):
        bpfunit.replay(HOOK, DNS, tmp_path / "nowhere")


def test_a_corpus_of_one_kernel_replays_on_this_one() -> None:
    """The corpus of the connect hook, found on 6.12, which the tree has."""
    replayed = bpfunit.replay(HOOK, "cgroup_connect4_prog", HERE / "corpus")
    assert replayed.facts.notes == []
    assert replayed.reached == replayed.alive, "\n".join(replayed.report())
