"""The channel between host and guest loses nothing: messages of every size, echoed.

``BPFUNIT_CHANNEL_MESSAGES=5000`` makes it the long run; consoles that lose wake-ups show it after
some thousands of messages.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import execnet
import pytest

from bpfunit.guest.spec import GuestSpec
from bpfunit.kernels import resolve

pytestmark = pytest.mark.host

MESSAGES = int(os.environ.get("BPFUNIT_CHANNEL_MESSAGES", "300"))
LARGEST = 256 << 10
IN_FLIGHT = 32
TIMEOUT_S = 120  # for one answer, on a machine with much else to do

ECHO = """
import subprocess

for message in channel:
    if message == "make noise":
        with open("/dev/stdout", "w") as out:
            out.write("noise" * 1000)
        subprocess.run(["/bin/echo", "noise"], check=True)
    channel.send(message)
"""


@pytest.fixture(params=["5.10", "7.3"])
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A channel to a guest that sends back what it gets."""
    group = execnet.Group()
    spec = GuestSpec(resolve(request.param), silence_timeout=TIMEOUT_S)
    try:
        gateway = group.makegateway(
            f"execmodel=main_thread_only//{spec.prepare(tmp_path / 'guest')}"
        )
        yield gateway.remote_exec(ECHO)
    finally:
        group.terminate(timeout=10)


def sizes(rng: random.Random, count: int) -> list[int]:
    """Sizes from one byte on, small and large equally often, powers of two and their neighbours."""
    edges = [size + step for size in (1 << n for n in range(1, 19)) for step in (-1, 0, 1)]
    edges = [size for size in edges if size <= LARGEST]
    others = [int(2 ** rng.uniform(0, 18)) for _ in range(max(0, count - len(edges)))]
    found = (edges + others)[:count]
    rng.shuffle(found)
    return found


def test_messages_of_every_size_come_back_as_they_were(channel: Any):
    rng = random.Random(20261122)
    waiting: list[bytes | str] = []

    def all_are_back() -> bool:
        answers = [channel.receive(TIMEOUT_S) for _ in waiting]
        return answers == waiting

    for number, size in enumerate(sizes(rng, MESSAGES)):
        waiting.append(rng.randbytes(size))
        channel.send(waiting[-1])
        if number % 100 == 50:  # what a test of the guest prints is no part of the channel
            waiting.append("make noise")
            channel.send(waiting[-1])
        # Bursts that fill the buffers, then silence until all is back: lost wake-ups hide in both.
        if len(waiting) >= IN_FLIGHT or rng.random() < 0.05:
            assert all_are_back(), f"message {number}"
            waiting.clear()
    assert all_are_back()
