"""Objects kept from one test to the next: nothing of a test before is there, whatever it did."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit import Object, SyscallError, faults
from bpfunit._sys import bpf, uapi
from bpfunit.reuse import Pool
from bpfunit.reuse.rewind import memory_tells_entries

from ..objects import compiled

pytestmark = pytest.mark.guest

KEYS = range(12)
TABLES = ["hash", "sparse_hash", "percpu_hash", "sparse_percpu_hash", "lru", "percpu_lru"]
ARRAYS = ["array", "mapped_array", "percpu_array"]
QUEUES = ["queue", "stack"]
OUTER = ["array_of_maps", "hash_of_maps"]
REWINDS = int(os.environ.get("BPFUNIT_REWINDS", "200"))  # make test-long asks for 10,000
ROUNDS = max(10, REWINDS // 100)  # of random things done to an object
_MAP_FREEZE = 22  # enum bpf_cmd
_PR_SET_THP_DISABLE = 41  # linux/prctl.h


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """A socket that is open over several uses of an object."""
    with socket.socket() as opened:
        yield opened


def subject(*defines: str) -> Path:
    """Return the object with a map of every type that this kernel lets be put back."""
    return compiled("reuse", *defines, *([] if memory_tells_entries() else ["PLAIN"]))


@pytest.fixture
def path() -> Path:
    return subject()


def dial(program: Any, key: int, value: int, sock: socket.socket | None = None) -> Any:
    """Run a program with a number for the address and one for the port."""
    return program.run((socket.inet_ntoa(struct.pack("=I", key)), value), sock=sock)


# -- what can be seen of an object


def seen(obj: Object, sock: socket.socket) -> dict[str, Any]:
    """Tell everything that user space and the programs can find out, the order of keys apart.

    Dirties the object: how full a map can get is found by filling it.
    """
    told = {(key, sock_of): dial(obj.programs.tell, key, 0, sock_of).events for key in KEYS
            for sock_of in (sock, None)}  # fmt: skip
    view: dict[str, Any] = {"told": told}
    for name in [*TABLES, *ARRAYS, "prefixes", "one_inner", *OUTER, "next"]:
        one = obj.maps[name]
        view[name] = sorted((bytes(one.encode_key(k)), repr(v)) for k, v in one.items())
    for name in QUEUES:
        view[name] = obj.maps[name].snapshot_values()
    view["storage"] = obj.maps.storage.lookup(sock)
    view["globals"] = [
        obj.globals.counted, obj.globals.calls, list(obj.globals.scratch), obj.globals.step
    ]  # fmt: skip
    view["memory"] = {name: accounted(one) for name, one in obj.maps.items()}
    view["room"] = {name: room(obj, name) for name in [*TABLES[:4], "prefixes", *QUEUES]}
    if memory_tells_entries():
        view["evicted"] = {name: survivors(obj.maps[name]) for name in ("lru", "percpu_lru")}
    view["records"] = records_that_fit(obj)
    view["slots"] = spied(obj)
    view["stored"] = dial(obj.programs.dirty, 1, 1, sock).storage()
    return view


def accounted(one: Any) -> tuple[int, ...]:
    """Return what the kernel says of a map beside its number."""
    lines = Path(f"/proc/self/fdinfo/{one.descriptor}").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return tuple(int(said[name]) for name in ("memlock", "frozen", "max_entries") if name in said)


def room(obj: Object, name: str) -> int:
    """Return how many entries a map takes until it is full."""
    one = obj.maps[name]
    number = 0
    if one.max_entries > 100:  # all but a few at once
        number = one.max_entries - 3
        with unless_full():
            one.update_raw((ctypes.c_uint32 * number)(*range(number)), bytes(4 * number))
    while number <= one.max_entries:
        before = number
        with unless_full():
            if name in QUEUES:
                one.push(number)
            else:
                one[{"length": 32, "address": number} if name == "prefixes" else number] = 1
            number += 1
        if number == before:
            break
    return number


@contextmanager
def unless_full() -> Iterator[None]:
    """Write into a map that may be full."""
    try:
        yield
    except SyscallError as error:
        if error.errno not in (errno.E2BIG, errno.ENOSPC):
            raise


def survivors(one: Any) -> list[int]:
    """Return which keys are left when more were written than there is room for."""
    for key in range(100, 100 + 5 * one.max_entries):
        one[key] = one.decode_value(bytes(one.value_stride))
    return sorted(one)


def records_that_fit(obj: Object) -> int:
    """Return how many records the ring buffer takes."""
    return len(obj.programs.dirty.run(("10.0.0.1", 1), repeat=300).events["ring"])


def spied(obj: Object) -> list[Any]:
    """Return what tail calls find in each slot."""
    found = []
    obj.maps.next.clear()
    for slot in range(4):
        with obj.maps.next.spy(slot):
            result = dial(obj.programs.dirty, slot, 1)
            found.append([(call.map, call.index, call.entered) for call in result.tail_calls])
    return found


# -- what tests do


class Dirt:
    """Does one random thing after another to an object."""

    def __init__(self, obj: Object, sock: socket.socket, chance: random.Random) -> None:
        self.obj, self.sock, self.chance = obj, sock, chance

    def leave(self, count: int) -> list[str]:
        """Do some things, and return their names."""
        ways = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("by_")]
        done = []
        for way in self.chance.choices(ways, k=count):
            way()
            done.append(way.__name__)
        return done

    def _value(self, one: Any) -> Any:
        raw = self.chance.randbytes(one.value_stride)
        return one.decode_value(raw)

    def by_program(self) -> None:
        sock = self.chance.choice([self.sock, None])
        dial(self.obj.programs.dirty, self.chance.choice(KEYS), self.chance.randrange(99), sock)

    def by_program_often(self) -> None:
        self.obj.programs.dirty.run(("10.0.0.1", 1), repeat=self.chance.randrange(1, 300))

    def by_bulk_runs(self) -> None:
        contexts = [self.obj.programs.dirty.craft(f"10.9.{n}.1:80") for n in range(20)]
        self.obj.programs.dirty.run_many(contexts, sock=self.sock)

    def by_writing(self) -> None:
        one = self.obj.maps[self.chance.choice([*TABLES[:1], *TABLES, *ARRAYS])]
        with unless_full():
            one[self.chance.randrange(4)] = self._value(one)

    def by_deleting(self) -> None:
        one = self.obj.maps[self.chance.choice(TABLES)]
        for key in list(one)[:2]:
            del one[key]

    def by_bulk(self) -> None:
        count = self.chance.choice([3, 900, 1900])
        keys = range(5000, 5000 + count)
        for name, among in (("sparse_hash", keys), ("hash", range(3)), ("lru", range(3))):
            one = self.obj.maps[name]
            one.clear()
            one.update((key, 1) for key in among)

    def by_prefix(self) -> None:
        length = self.chance.randrange(33)
        address = self.chance.randrange(1 << 32)
        with unless_full():
            self.obj.maps.prefixes[{"length": length, "address": address}] = 5

    def by_pushing(self) -> None:
        one = self.obj.maps[self.chance.choice(QUEUES)]
        one.push(self.chance.randrange(9), uapi.BPF_EXIST)

    def by_popping(self) -> None:
        one = self.obj.maps[self.chance.choice(QUEUES)]
        if one.snapshot_values():
            one.pop()

    def by_inner_map(self) -> None:
        self.obj.maps[self.chance.choice(OUTER)][self.chance.randrange(4)] = self.obj.maps.one_inner
        self.obj.maps.one_inner[self.chance.randrange(4)] = 1

    def by_slot(self) -> None:
        held = self.chance.choice([self.obj.programs.tell, self.obj.programs.dirty])
        self.obj.maps.next[self.chance.randrange(4)] = held

    def by_spy(self) -> None:
        self.obj.maps.next.spy(self.chance.randrange(4), returns=0)

    def by_global(self) -> None:
        self.obj.globals.counted = self.chance.randrange(1 << 32)
        self.obj.globals.calls = self.chance.randrange(1 << 32)
        self.obj.globals.scratch = [self.chance.randrange(9)] * self.chance.randrange(65)

    def by_storage(self) -> None:
        self.obj.maps.storage[self.sock] = self.chance.randrange(9)

    def by_other_socket(self) -> None:
        with socket.socket() as other:
            self.obj.maps.storage[other] = 1
            dial(self.obj.programs.dirty, 1, 1, other)

    def by_fault(self) -> None:
        with faults.full_map(self.obj.maps.sparse_hash):
            dial(self.obj.programs.dirty, 1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_done_nothing_of_it_is_seen(
    pool: Pool, path: Path, sock: socket.socket, seed: int
) -> None:
    with bpfunit.load(path) as obj:
        expected = seen(obj, sock)
    chance = random.Random(seed)
    for number in range(ROUNDS):
        obj = pool.load(path)
        done = Dirt(obj, sock, chance).leave(chance.randrange(1, 25))
        if chance.random() < 0.3:
            seen(obj, sock)  # which fills every map
        pool.give_back(obj)
        obj = pool.load(path)
        assert pool.report.rewound == 2 * number + 1, pool.report
        assert seen(obj, sock) == expected, f"round {number}: {done}"
        pool.give_back(obj)
    assert pool.report.fresh == 1


def test_two_fresh_loads_look_the_same(path: Path, sock: socket.socket) -> None:
    views = []
    for _ in range(2):
        with bpfunit.load(path) as obj:
            views.append(seen(obj, sock))
    assert views[0] == views[1]


def test_what_is_compared_sees_each_kind_of_dirt(path: Path, sock: socket.socket) -> None:
    """The property above could not fail if :func:`seen` were blind."""
    with bpfunit.load(path) as obj:
        expected = seen(obj, sock)
    unseen = []
    for name in sorted(name for name in vars(Dirt) if name.startswith("by_")):
        with bpfunit.load(path) as obj:
            dirt = Dirt(obj, sock, random.Random(name))
            if name in ("by_deleting", "by_popping"):
                dirt.by_program()
            getattr(dirt, name)()
            if seen(obj, sock) == expected:
                unseen.append(name)
    assert unseen == []


@pytest.mark.parametrize("test", ["first", "second", "third"])
def test_dirt_of_another_test_is_not_there(bpf_load: Any, path: Path, test: str) -> None:
    obj = bpf_load(path)
    assert obj.globals.counted == 7, f"{test} test"
    assert [len(obj.maps[name]) for name in TABLES] == [0] * len(TABLES)
    assert obj.maps.queue.snapshot_values() == []
    with socket.socket() as sock:
        dial(obj.programs.dirty, 1, 1, sock)
    obj.globals.counted = 1
    obj.maps.next.spy(1)


# -- whose it is


def test_the_same_object_serves_again_and_its_old_names_are_dead(pool: Pool, path: Path) -> None:
    old = pool.load(path)
    programs, maps, variables = old.programs.dirty, old.maps.hash, old.globals
    maps[1], variables.counted = 1, 2
    pool.give_back(old)
    new = pool.load(path)
    for use in (
        lambda: maps[1],
        lambda: maps.update({1: 1}),
        lambda: old.maps.queue.push(1),
        lambda: dial(programs, 1, 1),
        lambda: programs.run_many([programs.craft("10.0.0.1:80")]),
        lambda: variables.counted,
        lambda: setattr(variables, "counted", 1),
    ):
        with pytest.raises(SyscallError) as caught:
            use()
        assert caught.value.errno == errno.EBADF
    old.close()  # does nothing: the object is the next test's
    assert (len(new.maps.hash), new.globals.counted) == (0, 7)
    assert dial(new.programs.dirty, 1, 1).retval == 1
    pool.give_back(new)


def test_an_object_that_runs_first_in_a_later_test_shows_its_records(
    pool: Pool, path: Path
) -> None:
    pool.give_back(pool.load(path))
    obj = pool.load(path)
    assert pool.report.rewound == 1
    assert len(dial(obj.programs.tell, 1, 0).events["ring"]) == 1


def test_one_test_that_loads_twice_has_two(pool: Pool, path: Path) -> None:
    one, other = pool.load(path), pool.load(path)
    one.maps.hash[1] = 1
    assert len(other.maps.hash) == 0
    pool.give_back(one)
    pool.give_back(other)
    assert (pool.report.fresh, pool.report.rewound) == (2, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"globals": {"counted": 8}},
        {"globals": {"step": 4}},
        {"globals": {"step": True}},
        {"programs": ["dirty"]},
        {"max_entries": {"hash": 3}},
        {"map_types": {"hash": (ctypes.c_uint32, ctypes.c_int32)}},
        {"types": [compiled("sized")]},
        {"log_maps": {"ring": "prefix"}},
        {"trace_tail_calls": True},
    ],
    ids=str,
)
def test_another_option_is_another_load(pool: Pool, path: Path, options: dict[str, Any]) -> None:
    pool.give_back(pool.load(path))
    obj = pool.load(path, **options)
    assert pool.report.rewound == 0
    pool.give_back(obj)
    pool.give_back(pool.load(path, **options))
    assert pool.report.rewound == 1, pool.report


def test_another_content_of_the_file_is_another_load(
    pool: Pool, path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.bpf.o"
    copy.write_bytes(path.read_bytes())
    pool.give_back(pool.load(copy))
    copy.write_bytes(compiled("sized").read_bytes())
    obj = pool.load(copy)
    assert "places" in obj.maps
    pool.give_back(obj)


def test_few_objects_wait(path: Path) -> None:
    pool = Pool(room=2)
    for counted in range(4):
        pool.give_back(pool.load(path, globals={"counted": counted}))
    for counted in (3, 0):
        pool.give_back(pool.load(path, globals={"counted": counted}))
    assert (pool.report.rewound, pool.report.fresh) == (1, 5)
    pool.close()


# -- what cannot be kept


@pytest.mark.parametrize(
    ("define", "reason"),
    [
        ("PRINTS", "its programs print (bpf_printk)"),
        ("ASKS", "a program asks for the positions of a ring buffer"),
        ("TIMER", "its types have a bpf_timer"),
        ("BLOOM", "a map of type bloom_filter"),
    ],
)
def test_what_cannot_be_put_back_is_loaded_afresh(pool: Pool, define: str, reason: str) -> None:
    needs = {"BLOOM": (5, 16)}.get(define, (5, 10))
    if tuple(map(int, os.uname().release.split(".")[:2])) < needs:
        with pytest.raises(bpfunit.LoadError):
            pool.load(subject(define))
        return
    for _ in range(2):
        pool.give_back(pool.load(subject(define)))
    assert dict(pool.report.reasons) == {reason: 2}
    assert pool.report.rewound == 0


def test_lru_maps_are_put_back_where_the_kernel_counts_entries(pool: Pool) -> None:
    for _ in range(2):
        pool.give_back(pool.load(compiled("reuse")))
    if memory_tells_entries():
        assert pool.report.rewound == 1
    else:
        reason = "a map of type lru_hash, and a kernel before 6.4"
        assert dict(pool.report.reasons) == {reason: 2}


def freeze(one: Any) -> None:
    bpf.call_checked("freeze", _MAP_FREEZE, uapi.MapElemAttr(map_fd=one.descriptor))


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda obj: obj.maps.hash.fd, "the descriptor of a map was read"),
        (lambda obj: obj.maps.hash.id, "the number of a map was read"),
        (lambda obj: obj.programs.dirty.fd, "the descriptor of a program was read"),
        (lambda obj: obj.programs.dirty.id, "the number of a program was read"),
        (lambda obj: obj.close(), "the test closed it"),
        (lambda obj: freeze(obj.maps.hash), "map hash could not be put back: EPERM"),
    ],
    ids=["map fd", "map id", "program fd", "program id", "closed", "frozen"],
)
def test_what_became_of_it_nobody_knows(
    pool: Pool, path: Path, deed: Callable[[Object], object], reason: str
) -> None:
    obj = pool.load(path)
    deed(obj)
    pool.give_back(obj)
    assert dict(pool.report.reasons) == {reason: 1}
    obj = pool.load(path)
    assert pool.report.rewound == 0
    pool.give_back(obj)


def test_an_attached_program_is_not_kept(pool: Pool, path: Path) -> None:
    obj = pool.load(path)
    with bpfunit.attach(obj.programs.dirty):
        pass
    pool.give_back(obj)
    assert dict(pool.report.reasons) == {"the descriptor of a program was read": 1}


def test_a_map_in_someone_elses_map_is_not_kept(pool: Pool, path: Path) -> None:
    obj = pool.load(path)
    with bpfunit.load(path) as other:
        other.maps.array_of_maps[1] = obj.maps.one_inner
        pool.give_back(obj)
    assert dict(pool.report.reasons) == {"the descriptor of a map was read": 1}


def test_a_child_that_may_hold_a_socket(pool: Pool, path: Path, sock: socket.socket) -> None:
    obj = pool.load(path)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        theirs.recv(1)
        os._exit(0)
    dial(obj.programs.dirty, 1, 1, sock)
    pool.give_back(obj)
    ours.send(b".")
    os.waitpid(child, 0)
    ours.close()
    theirs.close()
    assert dict(pool.report.reasons) == {"socket storage, and a child process may hold a socket": 1}


def test_a_forked_child_leaves_the_objects_of_its_parent_alone(pool: Pool, path: Path) -> None:
    idle, obj = pool.load(path), pool.load(path)
    pool.give_back(idle)
    obj.maps.hash[1] = 1
    child = os.fork()
    if not child:
        other = pool.load(path)
        other.maps.hash[2] = 2
        pool.give_back(other)
        pool.give_back(obj)
        pool.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert dict(obj.maps.hash) == {1: 1}
    pool.give_back(obj)
    again = [pool.load(path), pool.load(path)]
    assert [dict(one.maps.hash) for one in again] == [{}, {}]
    assert pool.report.rewound == 2
    for one in again:
        pool.give_back(one)


def test_a_slot_that_the_object_fills_is_not_kept(pool: Pool) -> None:
    pool.give_back(pool.load(compiled("slots")))
    pool.give_back(pool.load(compiled("slots")))
    assert pool.report.rewound == 0
    assert sum(pool.report.reasons.values()) == 2


def test_a_load_called_directly_is_fresh(path: Path) -> None:
    with bpfunit.load(path) as one, bpfunit.load(path) as other:
        assert one.maps.hash.id != other.maps.hash.id


# -- for long


@pytest.fixture
def small_pages() -> Iterator[None]:
    """Keep pages of this process from being joined to huge ones, which fills gaps between them."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), ctypes.get_errno()
    yield
    assert not libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0), ctypes.get_errno()


@pytest.mark.parametrize("name", ["sized", "reuse"], ids=["one map", "every type"])
@pytest.mark.usefixtures("small_pages")
def test_rewinds_leave_nothing_behind(pool: Pool, name: str) -> None:
    def kernel() -> int:
        fields = Path("/proc/meminfo").read_text().split()
        return sum(int(fields[fields.index(f"{name}:") + 1]) for name in ("Slab", "Percpu"))

    def own() -> int:
        # without pages of files: more of the interpreter's own are read as time goes by
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("RssAnon:") + 1])

    def round_trip(number: int) -> None:
        obj = pool.load(subject() if name == "reuse" else compiled(name))
        if name == "reuse":
            obj.maps.hash[number % 4] = 1
            obj.globals.counted = number & 0xFF
            obj.maps.next.spy(number % 4)
        else:
            obj.maps.places.update_raw(
                bytes(obj.maps.places.key_size), b"1" * obj.maps.places.value_size
            )
        pool.give_back(obj)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    for number in range(100):
        round_trip(number)
    before = descriptors(), kernel(), own()
    for number in range(REWINDS):
        round_trip(number)
    after = descriptors(), kernel(), own()
    assert pool.report.fresh == 1
    assert after[0] == before[0]
    assert after[1] - before[1] < 4096, "KiB of the kernel's memory"
    assert after[2] - before[2] < 1024, "KiB of this process"
