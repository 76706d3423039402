"""``--bpf-reuse``: tests get objects of earlier ones, put back to what a fresh load gives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bpfunit.reuse import Pool

_POOL = pytest.StashKey[Pool]()
_SAID = pytest.StashKey[Counter[str]]()
_REWOUND, _FRESH = "rewound", "fresh"
_OUTPUT = "bpfunit_reuse"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("bpfunit")
    group.addoption(
        "--bpf-reuse",
        choices=("yes", "no"),
        default="yes",
        help="whether an object that a test is given by bpf_load may be one of an earlier test, put"
        " back to what a fresh load gives (yes, the default), or each is loaded anew",
    )
    group.addoption(
        "--bpf-reuse-report",
        action="store_true",
        default=False,
        help="say how many loads were served by objects of earlier tests, and why others were not",
    )


def pool(config: pytest.Config) -> Pool | None:
    """Return the objects that this process keeps, None where none are to be kept."""
    if config.getoption("--bpf-reuse") == "no":
        return None
    if _POOL not in config.stash:
        config.stash[_POOL] = Pool()
    return config.stash[_POOL]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Close what is kept, and tell the controller what became of the loads."""
    config = session.config
    kept = config.stash.get(_POOL, None)
    if kept is None:
        return
    kept.close()
    report = kept.report
    counts = Counter({_REWOUND: report.rewound, _FRESH: report.fresh})
    counts.update({f"not kept: {reason}": count for reason, count in report.reasons.items()})
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output[_OUTPUT] = dict(counts)
    else:
        config.stash.setdefault(_SAID, Counter()).update(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the guests said."""
    said = getattr(node, "workeroutput", {}).get(_OUTPUT)
    config = getattr(node, "config", None)
    if said and config is not None:
        config.stash.setdefault(_SAID, Counter()).update(said)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what became of the loads, where that is asked for."""
    config = terminalreporter.config
    if not config.getoption("--bpf-reuse-report"):
        return
    terminalreporter.section("loads of BPF objects")
    if config.getoption("--bpf-reuse") == "no":
        terminalreporter.write_line("all fresh: --bpf-reuse=no")
        return
    counts = config.stash.get(_SAID, Counter())
    rewound, fresh = counts.pop(_REWOUND, 0), counts.pop(_FRESH, 0)
    terminalreporter.write_line(f"{rewound} served by objects of earlier tests, {fresh} fresh")
    for reason, count in counts.most_common():
        terminalreporter.write_line(f"{count:6} {reason}")
