"""Files of a corpus: read back as they were written, and refused by name where they are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bpfunit.explorer import CorpusError, Facts, Input, Step
from bpfunit.explorer import corpus as corpora
from bpfunit.explorer.corpus import Form, Variable
from bpfunit.explorer.facts import DELETE, RESULT, SECTION, MapFacts, Site, StubFacts
from bpfunit.progtypes.sock_addr import BpfSockAddr
from bpfunit.rewrite.helpers import helper_number

pytestmark = pytest.mark.host

CLOCK = helper_number("bpf_ktime_get_ns")
LIMITED = helper_number("bpf_sk_storage_get")


@pytest.fixture
def form() -> Form:
    facts = Facts(
        program="connect",
        section="cgroup/connect4",
        kernel="6.12",
        type="cgroup_sock_addr",
        sites=[Site(RESULT, 3, helper=CLOCK), Site(RESULT, 9, helper=LIMITED)],
        dead=frozenset(),
        places={},
        maps=[
            MapFacts("services", DELETE, 1, 4, 12, 12, 8),
            MapFacts("counts", DELETE, 5, 4, 4, 16, 8),  # on two CPUs
            MapFacts(".data", SECTION, 2, 4, 8, 8, 1, bytes(8)),
        ],
        stubs=[StubFacts(CLOCK, 0, True, 7)],
        words=[(4, 4)],
        contexts=[bytes(72)],
    )
    return Form(facts, BpfSockAddr, {"level": Variable(2, 4, 4)})


GIVEN = Input(
    (Step(bytes(4) + b"\x0a\0\0\1" + bytes(64)), Step(bytes(68) + b"\1\2\3\4")),
    (
        (0, b"\x0a\0\0\1", b"\7" + bytes(11)),
        (1, b"\0\0\0\2", b"\5\0\0\0\0\0\0\0" * 2),
        (2, bytes(4), b"\0\0\0\0\3\0\0\0"),
    ),
    ((0, (1 << 64) - 12),),
)


def test_an_input_comes_back_from_its_file(form: Form) -> None:
    name, text = form.file(GIVEN, "route_36_taken", ["route.h:36"])
    assert form.inputs({name: text}) == [(name, GIVEN)]
    assert form.file(GIVEN, "route_36_taken", [])[0] == name, "the name is what the input is"


def test_a_file_says_by_name_what_it_holds(form: Form) -> None:
    name, text = form.file(GIVEN, "route_36_taken", ["route.h:36"])
    assert name.startswith("route_36_taken-")
    whole = json.loads(text)
    assert whole["runs"][0] == {"context": {"user_ip4": "0a000001"}}
    assert whole["maps"] == {"services": {"0a000001": "07"}, "counts": {"00000002": "05"}}
    assert whole["globals"] == {"level": "03000000"}
    assert whole["answers"] == [{"helper": "bpf_ktime_get_ns", "call": 0, "gives": -12}]
    assert whole["takes"] == ["route.h:36"]


def test_an_answer_that_this_kernel_does_not_let_be_given_leaves_its_input_out(form: Form) -> None:
    text = changed(form, answers=[{"helper": "bpf_sk_storage_get", "call": 0, "gives": 0}])
    assert form.inputs({"one.json": text}) == [("one.json", None)]


def changed(form: Form, **parts: Any) -> str:
    return json.dumps({**json.loads(form.file(GIVEN, "one", [])[1]), **parts})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"format": 2}, "format 2, and this bpfunit reads 1"),
        ({"program": "bind"}, "an input of the program bind"),
        ({"maps": {"gone": {}}}, "the program has no map gone"),
        ({"maps": {"services": {"0a": ""}}}, "map services: 1 bytes of a key of 4"),
        ({"maps": {"services": {"0a000001": "00" * 13}}}, "13 bytes of a value of 12"),
        ({"globals": {"gone": "00"}}, "the program has no global variable gone"),
        ({"globals": {"level": "00"}}, "global variable level: 1 bytes of 4"),
        ({"runs": []}, "it has no runs"),
        ({"runs": [{"context": {"gone": "00000000"}}]}, "the context has no gone"),
        ({"runs": [{"context": {"word 72": "01000000"}}]}, "72 bytes and no word 72"),
        ({"runs": [{"packet": "no hex"}]}, "non-hexadecimal"),
        ({"runs": "text"}, "not of the form of an input"),
        (
            {"answers": [{"helper": "bpf_ktime_get_ns", "call": 1, "gives": 0}]},
            "the program has no call 1 of bpf_ktime_get_ns",
        ),
        ({"answers": [{"helper": "bpf_ktime_get_ns"}]}, "it lacks 'gives'"),
        ({"entries": {}}, "entries: no part of an input"),
    ],
)
def test_what_does_not_fit_is_told_with_the_file(form: Form, parts: Any, said: str) -> None:
    good = form.file(GIVEN, "good", [])
    files = dict([good, ("bad.json", changed(form, **parts))])
    with pytest.raises(CorpusError, match="1 of 2 files do not fit") as caught:
        form.inputs(files)
    assert "bad.json: " in str(caught.value)
    assert said in str(caught.value)
    assert good[0] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "no JSON"), ("[]", "it has no format"), ('{"a": 1}', "it has no format")],
)
def test_what_is_no_file_of_a_corpus_is_told(form: Form, text: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        form.inputs({"bad.json": text})


def test_files_are_added_and_never_changed(tmp_path: Path) -> None:
    assert corpora.read(tmp_path / "none", "p") == {}
    assert [path.name for path in corpora.write(tmp_path, "p", {"a.json": "1"})] == ["a.json"]
    assert corpora.write(tmp_path, "p", {"a.json": "2"}) == []
    corpora.write(tmp_path, "q", {"b.json": "3"})
    assert corpora.read(tmp_path, "p") == {"a.json": "1"}
    (tmp_path / "p" / "README").write_text("by hand")
    assert corpora.read(tmp_path, "p") == {"a.json": "1"}
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["README", "a.json"]


def test_a_file_in_the_directory_s_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text("")
    with pytest.raises(CorpusError, match="corpus is no directory"):
        corpora.read(tmp_path / "corpus", "p")
    (tmp_path / "p").write_text("")
    with pytest.raises(CorpusError, match="p is no directory"):
        corpora.read(tmp_path, "p")


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CorpusError, match="read the corpus"):
        corpora.read(tmp_path, "p")


def test_what_a_test_keeps_in_a_guest_reaches_the_host_with_its_report(tmp_path: Path) -> None:
    """What a worker wrote is gone here, as a guest's files are."""
    (tmp_path / "test_one.py").write_text(
        "import shutil\n"
        "from bpfunit.explorer import corpus\n"
        "def test_one():\n"
        "    corpus.keep('kept', 'guard', {'a.json': 'text'})\n"
        "    shutil.rmtree('kept')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "kept" / "guard" / "a.json").read_text() == "text"
