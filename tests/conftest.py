"""What all tests share: tests of the project's own log messages, left out for foreign objects."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; make sure that tests can interrupt what they start."""
    # A shell without job control starts background commands with SIGINT ignored, and so would be
    # every process that a test starts and means to interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "own_messages: asserts the text of the project's own log messages; left out when"
        " --bpf-object names an object that was not built from bpf/",
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that shows tests which lean on those before them."""
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn from SEED"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of our own messages out when somebody else's object is under test."""
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)
    chosen = config.getoption("bpf_object", None)
    own = config.rootpath / "bpf" / "build"
    if chosen is None or own in Path(chosen).resolve().parents:
        return
    left_out = [item for item in items if item.get_closest_marker("own_messages")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
