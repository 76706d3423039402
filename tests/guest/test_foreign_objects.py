"""Objects as the world ships them: stripped, linked, with everything in them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfunit import (
    BpfunitError,
    LoadError,
    NotFoundError,
    Object,
    SyscallError,
    VerifierError,
    ip4,
    port,
)
from bpfunit._sys import bpf
from bpfunit._sys.uapi import Cmd

from ..objects import CLANGS, NEWEST, compiled, linked_halves, stripped

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
HEADER = Path(__file__).parent / "bpf" / "sized.h"
PLACES = {"places": ("sized_key", "sized_value")}
RELEASE = os.uname().release


# -- types


def test_stripped_object_gets_its_types_from_a_header(bpf_load: Load) -> None:
    obj = bpf_load(stripped(compiled("sized")), types=HEADER, map_types=PLACES)
    obj.maps.places[ip4("10.0.0.1")] = {"address": ip4("10.0.0.9"), "ports": [0, port(99)]}
    assert obj.programs.go.run("10.0.0.1:80").dst == "10.0.0.9:99"


def test_stripped_object_gets_its_types_from_the_object_before(bpf_load: Load) -> None:
    obj = bpf_load(stripped(compiled("sized")), types=compiled("sized"), map_types=PLACES)
    assert obj.types.sized_value(kind=1).kind == 1


def test_stripped_object_without_types_says_what_would_give_them(bpf_load: Load) -> None:
    with pytest.raises(NotFoundError, match=r"(?s)no 'sized_key'.*--bpf-types FILE"):
        bpf_load(stripped(compiled("sized")), map_types=PLACES)


# -- globals


@pytest.fixture(params=CLANGS)
def variables(request: pytest.FixtureRequest, bpf_load: Load) -> Object:
    return bpf_load(
        compiled("variables", clang=request.param),
        globals={"__target": {"address": ip4("10.0.0.9")}, "step": 5},
    )


def test_section_of_static_variables_is_read(variables: Object) -> None:
    result = variables.programs.count.run("10.1.1.1:80")
    assert (result.retval, result.dst) == (1, "10.0.0.9:80")
    found = variables.globals
    assert (found.runs, found.sum, found.ceiling, found.step) == (1, 45, 3, 5)


def test_section_of_static_variables_is_written(variables: Object) -> None:
    variables.globals.runs = 3
    variables.globals.sum = 7
    assert variables.programs.count.run("10.1.1.1:80").retval == 0
    assert (variables.globals.runs, variables.globals.sum) == (4, 12)


def test_static_variable_is_set_before_the_load(bpf_load: Load) -> None:
    obj = bpf_load(compiled("variables"), globals={"runs": 1, "ceiling": 1})
    assert obj.programs.count.run("10.1.1.1:80").retval == 0


def test_name_with_two_underscores_is_a_variable_like_others(variables: Object) -> None:
    variables.programs.count.run("10.1.1.1:80")
    assert getattr(variables.globals, "__seen") == 1
    assert getattr(variables.globals, "__target").address == ip4("10.0.0.9")


def test_variables_of_one_name_are_not_taken_for_each_other(variables: Object) -> None:
    variables.programs.count.run("10.1.1.1:80")
    variables.programs.count_more.run("10.1.1.1:80")
    assert (variables.globals["first.calls"], variables.globals["second.calls"]) == (1, 10)
    variables.globals["second.calls"] = 30
    variables.programs.count_more.run("10.1.1.1:80")
    assert variables.globals.second_calls == 40


def test_array_of_megabytes_is_a_variable(variables: Object) -> None:
    variables.programs.count.run("10.1.1.1:80")
    variables.programs.count_more.run("10.1.1.1:80")
    table = variables.globals.table
    assert (len(table), table[0], table[len(table) - 1]) == (1 << 19, 10, 1)
    variables.globals.table = {5: 1 << 40}
    assert variables.globals.table[5] == 1 << 40


def test_section_with_a_lock_that_the_kernel_maps_for_nobody_is_read(bpf_load: Load) -> None:
    if kernel() < (6, 1):  # 5.10 takes a lock in no data section
        with pytest.raises(VerifierError, match=r"data\.guarded' is not a struct type"):
            bpf_load(compiled("guarded"))
        return
    obj = bpf_load(compiled("guarded"))
    obj.programs.count.run("10.1.1.1:80")
    obj.programs.count.run("10.1.1.1:80")
    assert obj.globals.guarded == 2
    assert obj.globals.beside == 10
    obj.globals.beside = 40
    obj.programs.count.run("10.1.1.1:80")
    assert obj.globals.beside == 43
    with pytest.raises(BpfunitError, match=r"its section \.data\.guarded holds .* locks"):
        obj.globals.guarded = 1


def test_list_of_globals_has_variables_only(variables: Object) -> None:
    assert {"runs", "__seen", "step", "table"} <= set(dir(variables.globals))
    assert "LICENSE" not in dir(variables.globals)
    assert not hasattr(variables.globals, "LICENSE")


def test_constant_of_the_kernel_is_seen(bpf_load: Load) -> None:
    obj = bpf_load(compiled("settings"))
    assert obj.programs.ask.run("10.1.1.1:80").retval == 1
    found = obj.globals
    assert found.version >> 8 == int(RELEASE.split(".")[0]) << 8 | int(RELEASE.split(".")[1])
    assert (found.ticks, found.inet, found.absent) == (250, True, False)
    assert found.version == found.LINUX_KERNEL_VERSION


def test_chosen_constant_of_the_kernel_counts(bpf_load: Load) -> None:
    chosen = {"LINUX_KERNEL_VERSION": 0x050A00, "CONFIG_HZ": 1000, "CONFIG_INET": False}
    obj = bpf_load(compiled("settings"), globals=chosen)
    obj.programs.ask.run("10.1.1.1:80")
    assert (obj.globals.version, obj.globals.ticks, obj.globals.inet) == (0x050A00, 1000, False)
    with pytest.raises(BpfunitError, match="constant"):
        obj.globals.CONFIG_HZ = 100


# -- maps


@pytest.fixture
def maptypes(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("maptypes"))


def test_queue_gives_the_oldest_and_a_stack_the_youngest(maptypes: Object) -> None:
    maptypes.programs.visit.run("10.1.1.1:80")
    maptypes.programs.visit.run("10.1.1.2:80")
    queue, stack = maptypes.maps.waiting, maptypes.maps.pile
    assert queue.peek() == ip4("10.1.1.1")
    assert (queue.pop(), queue.pop()) == (ip4("10.1.1.1"), ip4("10.1.1.2"))
    assert stack.pop() == ip4("10.1.1.2")
    with pytest.raises(IndexError, match="waiting: it is empty"):
        queue.pop()


def test_queue_that_is_full_says_so_or_loses_the_oldest(maptypes: Object) -> None:
    queue = maptypes.maps.waiting
    for value in (1, 2, 3):
        queue.push(value)
    with pytest.raises(SyscallError, match="max_entries is 3"):
        queue.push(4)
    queue.push(4, flags=2)
    assert queue.pop() == 2
    queue.clear()
    queue.push(9)
    assert queue.pop() == 9


def test_queue_has_no_keys_and_says_what_it_has(maptypes: Object) -> None:
    for use in (len, list, lambda m: m[0], lambda m: m.snapshot(), lambda m: m.get(1)):
        with pytest.raises(BpfunitError, match=r"queue has no keys.*push, pop and peek"):
            use(maptypes.maps.waiting)


def test_records_of_a_perf_event_array_are_events_of_the_run(maptypes: Object) -> None:
    for _ in range(2):
        result = maptypes.programs.visit.run("10.1.1.1:80")
        (record,) = result.events["samples"]
        sample = maptypes.types.sample.from_buffer_copy(record)
        assert (sample.address, sample.port) == (ip4("10.1.1.1"), port(80))
    assert "samples" not in maptypes.programs.visited.run("10.1.1.1:80").events


def test_array_of_maps_lists_the_slots_that_are_filled(maptypes: Object) -> None:
    assert list(maptypes.maps.by_index) == [1]
    assert dict(maptypes.maps.by_index) == maptypes.maps.by_index.snapshot()
    maptypes.maps.inner[ip4("10.1.1.1")] = ip4("10.0.0.7")
    assert maptypes.programs.visit.run("10.1.1.1:80").dst == "10.0.0.7:80"


def test_hash_of_maps_has_its_own_keys(maptypes: Object) -> None:
    maptypes.maps.inner[ip4("10.1.1.1")] = ip4("10.0.0.8")
    del maptypes.maps.by_index[1]
    maptypes.maps.by_tenant[{"id": 7, "zone": 1}] = maptypes.maps.inner
    assert [(key.id, key.zone) for key in maptypes.maps.by_tenant] == [(7, 1)]
    assert maptypes.programs.visit.run("10.1.1.1:80").dst == "10.0.0.8:80"


def test_program_array_lists_the_slots_that_are_filled(maptypes: Object) -> None:
    assert dict(maptypes.maps.next.items()) == {}
    maptypes.maps.next[2] = maptypes.programs.visited
    assert list(maptypes.maps.next) == [2]
    assert len(maptypes.maps.next) == 1


def test_array_that_the_kernel_does_not_show_lists_what_was_written(maptypes: Object) -> None:
    cgroups = maptypes.maps.cgroups
    assert dict(cgroups) == {}
    fd = os.open(_cgroup2(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        cgroups[1] = fd
        assert dict(cgroups) == {1: fd}
        del cgroups[1]
        assert list(cgroups) == []
    finally:
        os.close(fd)


def _cgroup2() -> str:
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(fields[1] for fields in lines if fields[2] == "cgroup2")


def test_sockmap_lists_the_sockets_that_are_in_it(maptypes: Object) -> None:
    assert dict(maptypes.maps.sockets.items()) == {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        maptypes.maps.sockets[3] = server
        assert list(maptypes.maps.sockets) == [3]


def test_map_that_is_called_as_a_method_is_found(maptypes: Object) -> None:
    maptypes.maps.items[1] = {"flag": 1, "_anonymous0": ip4("10.0.0.9")}  # type: ignore[index]
    assert maptypes.programs.visit.run("10.1.1.1:80").dst == "10.0.0.9:80"
    maptypes.maps.get[2] = {}  # type: ignore[index]
    maptypes.maps._items[3] = {}
    maptypes.maps["keys"][4] = {}
    assert [list(maptypes.maps[name]) for name in ("items", "get", "_items", "keys")] == [
        [1],
        [2],
        [3],
        [4],
    ]


def test_maps_stay_a_mapping_whatever_they_are_called(maptypes: Object) -> None:
    assert dict(maptypes.maps)["labels"] is maptypes.maps.labels
    assert "labels" in maptypes.maps
    assert dict(maptypes.maps.items()) == dict(maptypes.maps)
    assert maptypes.maps.get("labels") is maptypes.maps.labels


def test_absent_names_are_absent_as_in_every_mapping(maptypes: Object) -> None:
    assert "nope" not in maptypes.maps
    assert maptypes.programs.get("nope", 5) == 5
    assert maptypes.maps.get("nope") is None
    assert not hasattr(maptypes.programs, "nope")
    assert not hasattr(maptypes.types, "nope")
    assert not hasattr(maptypes.globals, "nope")


def test_fields_that_are_called_like_padding_are_fields(maptypes: Object) -> None:
    odd = maptypes.types.odd(_pad1=1, flag=1, _anonymous0=2, _pad=3)
    assert odd.asdict() == {"_pad1": 1, "flag": 1, "_anonymous0": 2, "_pad": 3, "half": 3}
    assert ctypes.sizeof(odd) == 12


def test_text_is_a_key_of_one_field(maptypes: Object) -> None:
    maptypes.maps.labels["mesh"] = 4
    assert maptypes.maps.labels["mesh"] == 4
    assert [key.text for key in maptypes.maps.labels] == [b"mesh"]


def test_map_that_user_space_may_not_read_says_so(maptypes: Object) -> None:
    maptypes.maps.unread[1] = 2
    with pytest.raises(SyscallError, match="BPF_F_WRONLY") as caught:
        _ = maptypes.maps.unread[1]
    assert caught.value.errno == errno.EPERM
    assert "guest" not in str(caught.value)


# -- pinned maps


class PinAttr(ctypes.Structure):
    """What ``BPF_OBJ_PIN`` takes: the address of a path, and a descriptor (Linux 4.4)."""

    _fields_ = [("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32)]


@pytest.mark.parametrize("turn", [1, 2])
def test_pinned_map_is_empty_in_every_load(bpf_load: Load, turn: int) -> None:
    for _ in range(2):
        obj = bpf_load(compiled("pins"))
        assert len(obj.maps.backends) == 0
        obj.maps.backends[turn] = {"address": 1}
    assert not Path("/sys/fs/bpf/backends").exists()


@pytest.mark.parametrize("turn", [1, 2])
def test_pinned_map_is_shared_on_purpose_within_a_test(bpf_load: Load, turn: int) -> None:
    root = Path("/sys/fs/bpf/shared/here")
    one = bpf_load(compiled("pins"), pin_root=root)
    assert len(one.maps.backends) == 0, "left over from the test before"
    one.maps.backends[ip4("10.1.1.1")] = {"address": ip4("10.0.0.9"), "port": turn}
    # the types of another object have other numbers than those the pinned map was made with
    two = bpf_load(compiled("pins", "OTHER"), pin_root=root)
    assert two.maps.backends[ip4("10.1.1.1")].port == turn
    assert two.programs.steer.run("10.1.1.1:80").dst == "10.0.0.9:80"


@pytest.fixture(scope="module")
def kept_pin() -> Iterator[Path]:
    path = Path("/sys/fs/bpf/of-the-module")
    path.mkdir()
    yield path
    path.rmdir()


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_what_a_test_pins_by_hand_goes_and_what_a_module_pins_stays(
    bpf_load: Load, kept_pin: Path, turn: int
) -> None:
    mine = Path("/sys/fs/bpf/by-hand")
    assert kept_pin.is_dir()
    assert not mine.exists(), "left over from the test before"
    (mine / "deeper").mkdir(parents=True)
    obj = bpf_load(compiled("pins"))
    for number, fd in enumerate((obj.maps.backends.fd, obj.programs.steer.fd)):
        name = ctypes.create_string_buffer(os.fsencode(mine / "deeper" / f"pin{number}"))
        attr = PinAttr(ctypes.addressof(name), fd)
        bpf.call_checked("pin by hand", Cmd.OBJ_PIN, attr)
    (mine / "link").symlink_to(mine / "deeper")
    assert len(list(mine.rglob("*"))) == 4


# -- programs


def test_good_program_is_loaded_without_the_bad_one_beside_it(bpf_load: Load) -> None:
    assert bpf_load(compiled("choice"), programs=["sound"]).programs.sound.run("10.1.1.1:80")
    with pytest.raises(VerifierError, match="unchecked"):
        bpf_load(compiled("choice"))


def test_program_that_loads_on_request_says_how_to_request_it(bpf_load: Load) -> None:
    obj = bpf_load(compiled("choice"), programs=["sound"])
    with pytest.raises(NotFoundError, match=r"SEC\(\"\?…\"\).*programs=\['on_req"):
        _ = obj.programs.on_request
    with pytest.raises(NotFoundError, match="unchecked is in the object and was not loaded"):
        _ = obj.programs["unchecked"]
    asked = bpf_load(compiled("choice"), programs=["on_request"])
    assert asked.programs.on_request.run("10.1.1.1:80").dst == "10.1.1.1:0"


def test_old_map_definitions_are_refused_with_the_remedy(bpf_load: Load) -> None:
    with pytest.raises(LoadError, match=r'SEC\("\.maps"\)') as caught:
        bpf_load(compiled("oldstyle", "OLD_MAPS"))
    assert "is it a BPF object" not in str(caught.value)


def test_old_section_names_are_refused_with_the_remedy(bpf_load: Load) -> None:
    with pytest.raises(LoadError, match=r'SEC\("cgroup/connect4"\)') as caught:
        bpf_load(compiled("oldstyle", "OLD_SECTION"))
    assert "is it a BPF object" not in str(caught.value)


def test_object_that_is_cut_off_names_the_error_of_libbpf(bpf_load: Load, tmp_path: Path) -> None:
    broken = tmp_path / "broken.o"
    broken.write_bytes(compiled("choice").read_bytes()[:100])
    with pytest.raises(LoadError, match=r"LIBELF|FORMAT"):
        bpf_load(broken)


def test_object_of_the_other_byte_order_says_how_to_compile_it(bpf_load: Load) -> None:
    other = "bpfeb" if sys.byteorder == "little" else "bpfel"
    with pytest.raises(LoadError, match=r"-target bpfel and bpfeb") as caught:
        bpf_load(compiled("unbounded", flags=["-target", other]))
    assert "is it a BPF object" not in str(caught.value)
    assert "unknown error" not in str(caught.value)


def test_object_linked_of_two_is_one_object(bpf_load: Load) -> None:
    obj = bpf_load(linked_halves())
    result = obj.programs.first.run("10.1.1.1:80")
    assert (result.retval, result.dst) == (1, "10.1.1.1:81")
    assert obj.programs.second.run("10.1.1.1:80").retval == 1
    assert obj.globals.calls == 1
    with pytest.raises(BpfunitError, match=r"own of .*2 static variables.*\.data\+"):
        _ = obj.globals.own


def test_struct_ops_with_some_of_the_kernels_members_loads(bpf_load: Load) -> None:
    obj = bpf_load(compiled("congestion"))
    assert obj.programs.beside.run("10.1.1.1:80").retval == 1
    assert {"plain_ssthresh", "plain_avoid"} <= set(obj.programs)
    assert "plain" in obj.maps


@pytest.mark.parametrize("clang", CLANGS)
def test_stripped_objects_of_every_compiler_run(bpf_load: Load, clang: str) -> None:
    obj = bpf_load(stripped(compiled("maptypes", clang=clang)))
    obj.maps.items[1] = {"flag": 1, "_anonymous0": ip4("10.0.0.9")}  # type: ignore[index]
    assert obj.programs.visit.run("10.1.1.1:80").dst == "10.0.0.9:80"


# -- what a kernel refuses


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in RELEASE.split(".")[:2])


@pytest.mark.skipif(int(NEWEST.partition("-")[2] or 0) < 18, reason="-mcpu=v4 needs clang 18")
def test_instructions_that_a_kernel_lacks_name_the_flag(bpf_load: Load) -> None:
    young = compiled("young", clang=NEWEST, flags=["-mcpu=v4"])
    if kernel() >= (6, 6):
        assert bpf_load(young).programs.go.run("10.1.1.1:80").retval == 1
        return
    with pytest.raises(VerifierError, match="compile it with -mcpu=v3"):
        bpf_load(young)


# the program that has one, and what it makes of its value
FOURTH = {
    "load_s8": -(1 << 7),
    "load_s16": -(1 << 15),
    "load_s32": -(1 << 31),
    "move_s8": -2,
    "move_s16": -2,
    "move_s32": -2,
    "move_s8_to_32_bits": 0xFFFFFFFE,
    "swap_16": 0x3412,
    "swap_64": -0x778899AABBCCDDEF,
    "far_jump": 5,
    "signed_division": -3,
    "signed_modulo": -1,
}


@pytest.mark.parametrize("name", FOURTH)
def test_each_instruction_of_the_fourth_version_runs_or_names_the_flag(
    bpf_load: Load, name: str
) -> None:
    path = compiled("fourth")
    # stable releases of 6.1 have got the far jump alone
    if kernel() >= (6, 6) or (name == "far_jump" and kernel() == (6, 1)):
        obj = bpf_load(path, programs=[name])
        obj.programs[name].run("10.1.1.1:80")
        assert obj.globals.result == FOURTH[name]
        return
    with pytest.raises(VerifierError, match="compile it with -mcpu=v3"):
        bpf_load(path, programs=[name])


def test_return_value_without_bounds_says_which_bounds(bpf_load: Load) -> None:
    if (5, 18) <= kernel() < (7, 2):
        assert bpf_load(compiled("unbounded")).programs.go
        return
    expected = r"-4095\.\.-1" if kernel() >= (7, 2) else "does not have the helper"
    with pytest.raises(VerifierError, match=expected):
        bpf_load(compiled("unbounded"))
