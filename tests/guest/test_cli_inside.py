"""``bpfunit run`` on the guest's side: what it answers, and how it says what went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfunit import port
from bpfunit.cli._inside import answer

from ..objects import WITHOUT_BTF, compiled, stripped

pytestmark = pytest.mark.guest

ROUTE_TYPES = {"routes": ["route_key", "route_value"]}


def ask(object_: Path, program: str, **options: Any) -> dict[str, Any]:
    """Ask as the command does, and require an answer that JSON can carry."""
    request = {
        "object": str(object_),
        "program": program,
        "dst": None,
        "src": None,
        "type": None,
        "proto": None,
        "data": None,
        "maps": [],
        "map_types": {},
        "types": [],
        "types_flags": [],
        "globals": {},
        "show_maps": [],
        "repeat": 1,
        "trace_tail_calls": False,
        "engine": None,
        **options,
    }
    found = answer(request)
    assert json.loads(json.dumps(found)) == found
    return found


def ask_redirect(**options: Any) -> dict[str, Any]:
    entry = ["routes", "10.96.0.1", {"addr": "10.244.0.5", "port": port(8080)}]
    return ask(
        compiled("api"),
        "redirect4",
        dst="10.96.0.1:80",
        maps=[entry],
        map_types=ROUTE_TYPES,
        **options,
    )


def test_the_answer_has_both_addresses() -> None:
    found = ask_redirect()
    assert found.get("error") is None
    assert (found["dst_before"], found["dst"]) == ("10.96.0.1:80", "10.244.0.5:8080")
    assert found["retval"] == 1
    assert found["engine"] in ("testrun", "live")


def test_storage_and_maps_are_plain_data() -> None:
    found = ask_redirect(show_maps=["routes"])
    assert found["storage"]["seen_storage"]["runs"] == 1
    [(key, value)] = found["maps"]["routes"]
    assert key == {"addr": "10.96.0.1"}
    assert (value["addr"], value["port"]) == ("10.244.0.5", port(8080))


def test_the_data_of_an_answer_is_the_programs_alone() -> None:
    """The module puts its result in front of what an sk_skb program leaves."""
    assert ask(compiled("skskb"), "decide", data=b"\x01w".hex())["data"] == b"\x01W".hex()


def test_a_packet_program_answers_with_the_packet() -> None:
    found = ask(compiled("native"), "drop_discard", data=bytes(64).hex())
    assert found["retval"] == 2
    assert found["data"] == bytes(64).hex()


def test_an_unknown_program_lists_those_of_the_object() -> None:
    error = ask(compiled("api"), "redirect5", dst="10.96.0.1:80")["error"]
    assert "redirect5" in error
    assert "redirect4" in error


def test_an_unknown_map_lists_those_of_the_object() -> None:
    error = ask(compiled("api"), "redirect4", maps=[["router", 1, 1]])["error"]
    assert "router" in error
    assert "routes" in error


def test_a_map_without_types_says_how_to_give_them() -> None:
    error = ask(compiled("api"), "redirect4", maps=[["routes", "10.96.0.1", 1]])["error"]
    assert "type is not known" in error


def test_an_address_for_a_packet_program_says_what_it_takes() -> None:
    error = ask(compiled("native"), "drop_discard", dst="10.96.0.1:80")["error"]
    assert "xdp" in error.lower()
    assert "give it a packet" in error


@pytest.fixture(scope="module")
def other() -> Path:
    return compiled("other")


def test_a_program_that_no_test_run_exists_for_says_so(other: Path) -> None:
    assert "this kernel has no test run for the program's type" in ask(other, "sampled")["error"]
    error = ask(other, "sampled", dst="10.96.0.1:80")["error"]
    assert "an address is crafted for cgroup_sock_addr programs, this is perf_event" in error


def test_a_program_that_the_command_cannot_craft_a_call_for_says_so(other: Path) -> None:
    error = ask(other, "reads")["error"]
    assert "cgroup_sysctl programs want the name of a sysctl" in error
    assert 'run it in a test: obj.programs.reads.run("net/ipv4/tcp_mem", write="1 2 3")' in error


def test_an_object_without_btf_says_how_to_compile_it() -> None:
    plain = compiled("api", flags=WITHOUT_BTF)
    assert "-g" in ask(plain, "redirect4", dst="10.96.0.1:80")["error"]


def test_a_file_that_is_no_object_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "text.o").write_text("int main;")
    assert "is it a BPF object" in ask(tmp_path / "text.o", "main")["error"]


def test_good_program_runs_beside_one_that_is_refused() -> None:
    assert ask(compiled("choice"), "sound", dst="10.1.1.1:80")["retval"] == 1
    assert "unchecked" in ask(compiled("choice"), "unchecked", dst="10.1.1.1:80")["error"]


def test_program_that_is_loaded_on_request_runs() -> None:
    assert ask(compiled("choice"), "on_request", dst="10.1.1.1:80")["dst"] == "10.1.1.1:0"


def test_program_runs_into_the_array_that_its_object_fills() -> None:
    found = ask(compiled("slots"), "enter", dst="10.1.1.1:80")
    assert (found["retval"], found["dst"]) == (1, "10.1.1.1:0")


def test_types_come_from_a_header_with_flags() -> None:
    header = Path(__file__).parent / "bpf" / "sized.h"
    found = ask(
        stripped(compiled("sized")),
        "go",
        dst="10.0.0.1:80",
        types=[str(header)],
        types_flags=["-DPORTS=4"],
        map_types={"places": ["sized_key", "sized_value"]},
        maps=[["places", "10.0.0.1", {"address": "10.0.0.9", "ports": [0, port(99)]}]],
    )
    assert found["dst"] == "10.0.0.9:99"
