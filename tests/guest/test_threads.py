"""Threads that run programs and write maps at the same time: each gets what is its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

import bpfunit
from bpfunit import Object, ip4

from ..objects import compiled

pytestmark = pytest.mark.guest

ENGINES = ("testrun", "live", "both")
TURNS = 25  # runs of each thread
engines = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def load(bpf_load: Callable[..., Object]) -> Callable[[str], Object]:
    return lambda engine: bpf_load(compiled("threads"), engine=engine)


def strangeness(obj: Object, last: int) -> list[str]:
    """Run once to 10.1.1.LAST and return what the result says that is not of this run."""
    spied = obj.maps.next.contents
    result = obj.programs.tells.run(f"10.1.1.{last}:{last}")
    verdict = 1 - last % 2
    told = {
        "retval": (result.retval, verdict),
        "errno": (result.errno, 0 if verdict else 1),
        "dst": (str(result.dst), f"10.1.1.{last}:{last}"),
        "context": (str(result.ctx_in.user), f"10.1.1.{last}:{last}"),
        "records": (result.events, {"seen": [socket.inet_aton(f"10.1.1.{last}")]}),
        "printk": (result.printk, [f"to {0x0A010100 + last:x}"]),
        "storage": (result.storage(), ip4(f"10.1.1.{last}")),
        "tail calls": (
            [str(call.ctx.user) for call in result.tail_calls],
            [f"10.1.1.{last}:{last}"] if spied and verdict else [],
        ),
    }
    return [
        f"{name}: {found} not {right}" for name, (found, right) in told.items() if found != right
    ]


def all_at_once(objects: Sequence[Object], turns: int = TURNS) -> list[str]:
    """Have a thread for each of ``objects``, all run ``turns`` times; return what went wrong."""
    start, wrong = threading.Barrier(len(objects)), list[str]()

    def body(number: int, obj: Object) -> None:
        start.wait()
        for _ in range(turns):
            try:
                wrong.extend(strangeness(obj, number + 1))
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=body, args=pair) for pair in enumerate(objects)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@engines
def test_eight_threads_on_one_object_get_their_own_results(
    load: Callable[[str], Object], engine: str
):
    obj = load(engine)
    obj.maps.next.spy(0)
    assert all_at_once([obj] * 8) == []
    assert obj.maps.by_address.snapshot() == {ip4(f"10.1.1.{n}"): TURNS for n in range(1, 9)}


@engines
def test_four_threads_with_an_object_each_get_their_own_results(
    load: Callable[[str], Object], engine: str
):
    objects = [load(engine) for _ in range(4)]
    assert all_at_once(objects) == []
    for number, obj in enumerate(objects, 1):
        assert obj.maps.by_address.snapshot() == {ip4(f"10.1.1.{number}"): TURNS}


def test_threads_load_run_and_close_objects_of_their_own(no_bpf_leaks: None):
    def one(number: int) -> list[str]:
        with bpfunit.load(compiled("threads"), engine="testrun") as obj:
            return strangeness(obj, number)

    with ThreadPoolExecutor(4) as pool:
        assert [wrong for wrong in pool.map(one, range(1, 17)) if wrong] == []


@engines
def test_asyncio_hands_runs_to_threads(load: Callable[[str], Object], engine: str):
    obj = load(engine)

    async def together() -> list[list[str]]:
        runs = (asyncio.to_thread(strangeness, obj, n) for n in range(1, 41))
        return list(await asyncio.gather(*runs))

    assert [wrong for wrong in asyncio.run(together()) if wrong] == []


def test_one_thread_reads_and_writes_a_map_while_others_run(load: Callable[[str], Object]):
    obj = load("testrun")
    counts, wrong, done = obj.maps.by_address, list[object](), threading.Event()

    def write(number: int) -> None:
        key, value = ip4(f"10.2.2.{number}"), number << 40 | number
        while not done.is_set():
            counts[key] = value
            if counts[key] != value:
                wrong.append((number, counts[key]))

    writers = [threading.Thread(target=write, args=(n,)) for n in range(1, 5)]
    for writer in writers:
        writer.start()
    wrong += all_at_once([obj] * 4)
    done.set()
    for writer in writers:
        writer.join()
    assert wrong == []
    assert {counts[ip4(f"10.1.1.{n}")] for n in range(1, 5)} == {TURNS}


def test_unobserved_run_waits_for_nobody_and_an_observed_one_does(load: Callable[[str], Object]):
    obj = load("testrun")
    run = obj.programs.tells.run
    with ThreadPoolExecutor(2) as pool:
        with obj.observation.observing():
            observed = pool.submit(run, "10.1.1.2:80")
            assert pool.submit(run, "10.1.1.4:80", observe=False).result(timeout=60).retval == 1
            assert not observed.done()
        assert observed.result(timeout=60).retval == 1


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor: say --guest-cpus 2")
def test_unobserved_runs_are_in_the_kernel_at_the_same_time(load: Callable[[str], Object]):
    obj = load("testrun")
    program, rounds, calls = obj.programs.meets, 400, 2
    contexts = [program.craft("10.1.1.1:80")] * rounds

    def race(_: int) -> None:
        program.run_many(contexts, observe=False).raise_for_errors()

    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(race, range(calls)))
    assert obj.globals.total == rounds * calls
    assert obj.globals.together > 0, "no two runs were in the kernel at the same time"


@engines
def test_unobserved_run_says_its_outcome_and_refuses_the_rest(
    load: Callable[[str], Object], engine: str
):
    obj = load(engine)
    result = obj.programs.tells.run("10.1.1.2:80", observe=False)
    assert (result.retval, str(result.dst)) == (1, "10.1.1.2:80")
    assert result.storage() == ip4("10.1.1.2")
    assert result.engine == ("testrun" if engine == "both" else engine)
    for name in ("log", "events", "printk", "path", "tail_calls"):
        with pytest.raises(bpfunit.NotObservedError, match="observe=False"):
            getattr(result, name)
    many = obj.programs.tells.run_many(["10.1.1.2:80"], observe=False)
    with pytest.raises(bpfunit.NotObservedError, match="observe=False"):
        assert many[0].tail_calls


def test_blocks_of_attach_in_several_threads_wait_for_one_another(load: Callable[[str], Object]):
    obj = load("testrun")
    before = threading.Barrier(4)

    def one(number: int) -> bool:
        before.wait()
        with bpfunit.attach(obj.programs.tells), socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex((f"10.3.3.{number}", 9))
            return obj.maps.address.get(sock) == ip4(f"10.3.3.{number}")

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(1, 5)))
