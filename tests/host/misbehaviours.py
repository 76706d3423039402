"""Ways in which a suite, its conftest or a plugin misbehaves, and the exit codes that are right.

Each is a suite of its own, run by workers that are processes of this machine; those that take a
kernel are in ``tests/e2e/test_misbehaviour_guests.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK, FAILED, INTERRUPTED, INTERNAL, USAGE, NO_TESTS = range(6)
DEATHS, BOTH = 70, 71


@dataclass(frozen=True)
class Way:
    """One way to misbehave.

    Attributes:
        code: the exit code that is right.
        test: source put between a test that passes and another that does.
        conftest: source of the suite's conftest.
        args: for pytest.
        lacks: tests that must not be reported as passed, by name.
        alone: whether there are no tests around it.
    """

    code: int
    test: str = ""
    conftest: str = ""
    args: tuple[str, ...] = ()
    lacks: tuple[str, ...] = field(default=("test_way",))
    alone: bool = False

    @property
    def suite(self) -> str:
        """The source of the whole suite."""
        if self.alone:
            return "import os, sys, pytest\n" + self.test
        before, after = "def test_before(): pass\n", "\ndef test_after(): pass\n"
        return "import os, sys, pytest\n" + before + self.test + after


def _property(value: str) -> Way:
    test = f"def test_way(record_property):\n    record_property('dst', {value})\n    assert False"
    return Way(FAILED, test)


_ODD = """
import enum, pathlib
class Odd:
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__
class Number(enum.IntEnum):
    THREE = 3
"""

WAYS: dict[str, Way] = {
    # what a worker cannot send
    "property that is a member of an enum": _property("__import__('signal').SIGKILL"),
    "property that is a path": _property("__import__('pathlib').Path('/a')"),
    "property below the least integer of 32 bits": _property("-2**31 - 1"),
    "property with more digits than text may have": _property("-10**5000"),
    "property with a lone surrogate": _property("'\\udc80'"),
    "property that contains itself": _property("(lambda x: x.append(x) or x)([])"),
    "property without a text": Way(
        FAILED, _ODD + "def test_way(record_property):\n    record_property('a', Odd()); assert 0"
    ),
    "property alone in the last test of all": Way(
        FAILED,
        _ODD + "def test_way(record_property):\n    record_property('a', Number.THREE); assert 0",
        alone=True,
    ),
    "message of an assertion with a lone surrogate": Way(
        FAILED, "def test_way(): raise ValueError('\\udc80')"
    ),
    "exception without a text": Way(
        FAILED,
        "class Odd(Exception):\n    def __str__(self): raise RuntimeError\n    __repr__ = __str__\n"
        "def test_way(): raise Odd",
    ),
    "output and log records with lone surrogates": Way(
        FAILED,
        "def test_way():\n    import logging\n    logging.error('%s', '\\udc80')\n"
        "    os.write(1, b'\\xff\\xfe'); assert 0",
    ),
    "section that is no text": Way(
        FAILED,
        "def test_way(request):\n"
        "    request.node.add_report_section('call', 'odd', object()); assert 0",
    ),
    "report attribute that cannot be sent": Way(
        FAILED,
        "def test_way(): assert 0",
        conftest="@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_makereport():\n"
        "    report = yield\n    report.odd = {object(): pytest}\n    return report\n",
    ),
    "account of a failure without a text": Way(
        FAILED,
        _ODD + "def test_way(): assert 0",
        conftest=_ODD + "@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_makereport(call):\n"
        "    report = yield\n    if report.failed: report.longrepr = Odd()\n    return report\n",
    ),
    "warning whose arguments cannot be sent": Way(
        FAILED,
        "import warnings\nclass Own(UserWarning):\n    def __init__(self, a, b): "
        "super().__init__(a, b)\ndef test_way():\n    warnings.warn(Own(object(), -2**40)); "
        "warnings.warn('\\udc80'); assert 0",
    ),
    "warning of a class that only the worker can import": Way(
        OK,
        "import warnings\nclass Own(UserWarning): pass\ndef test_way(): warnings.warn(Own('x'))",
        lacks=(),
    ),
    "what a plugin leaves in workeroutput": Way(
        FAILED,
        "def test_way(): assert 0",
        conftest="def pytest_sessionfinish(session):\n"
        "    output = getattr(session.config, 'workeroutput', None)\n"
        "    if output is not None: output['odd'] = object()\n",
    ),
    # what ends a worker
    "os._exit in a test": Way(DEATHS, "def test_way(): os._exit(0)"),
    "os._exit in the only test": Way(DEATHS, "def test_way(): os._exit(0)", alone=True),
    "os._exit in a fixture": Way(
        DEATHS, "@pytest.fixture\ndef bad(): os._exit(0)\ndef test_way(bad): pass"
    ),
    "os._exit in a tear-down": Way(
        DEATHS, "@pytest.fixture\ndef bad():\n    yield\n    os._exit(0)\ndef test_way(bad): pass"
    ),
    "os._exit in the last tear-down of the session": Way(
        DEATHS,
        "@pytest.fixture(scope='session')\ndef bad():\n    yield\n    os._exit(0)\n"
        "def test_way(bad): pass",
        alone=True,
    ),
    "os._exit while collecting": Way(
        DEATHS,
        "if 'PYTEST_XDIST_WORKER' in os.environ: os._exit(0)\ndef test_way(): pass",
        args=("--max-worker-restart=1",),
    ),
    "os._exit without replacement": Way(
        DEATHS, "def test_way(): os._exit(0)", args=("--max-worker-restart=0",)
    ),
    "thread that kills": Way(
        DEATHS,
        "def test_way():\n    import threading, time\n"
        "    threading.Timer(0.2, os._exit, (0,)).start(); time.sleep(20)",
    ),
    "descriptors all closed": Way(DEATHS, "def test_way(): os.closerange(0, 200)"),
    "internal error while reporting": Way(
        DEATHS,
        "def test_way(): assert 0",
        conftest="def pytest_runtest_logreport(report):\n"
        "    if 'test_way' in report.nodeid and 'PYTEST_XDIST_WORKER' in os.environ:\n"
        "        raise RuntimeError('in a plugin')\n",
    ),
    "internal error in the last test": Way(
        DEATHS,
        "def test_way(): assert 0",
        conftest="def pytest_runtest_logreport(report):\n"
        "    if report.when == 'call' and 'PYTEST_XDIST_WORKER' in os.environ:\n"
        "        raise RuntimeError('in a plugin')\n",
        alone=True,
    ),
    "internal error while collecting": Way(
        DEATHS,
        "def test_way(): pass",
        conftest="def pytest_collection_finish():\n"
        "    if 'PYTEST_XDIST_WORKER' in os.environ: raise RuntimeError('in a plugin')\n",
        args=("--max-worker-restart=1",),
    ),
    "internal error before a worker is ready": Way(
        DEATHS,
        "def test_way(): pass",
        conftest="def pytest_configure():\n"
        "    if 'PYTEST_XDIST_WORKER' in os.environ: raise RuntimeError('in a plugin')\n",
        args=("--max-worker-restart=1",),
    ),
    "internal error at the end of the session": Way(
        DEATHS,
        "def test_way(): pass",
        conftest="def pytest_sessionfinish():\n"
        "    if 'PYTEST_XDIST_WORKER' in os.environ: raise RuntimeError('in a plugin')\n",
        lacks=(),
    ),
    "fork that returns into pytest": Way(
        OK, "def test_way():\n    if os.fork(): os.wait()", lacks=()
    ),
    "forked child that fails": Way(
        FAILED, "def test_way():\n    if os.fork(): os.wait()\n    else: assert 1 == 2"
    ),
    "forked child that fails where the parent passes": Way(
        FAILED, "def test_way():\n    if os.fork(): os.wait()\n    else: raise KeyboardInterrupt"
    ),
    "os.getpid patched until the tear-down": Way(
        OK,
        "def test_way(monkeypatch): monkeypatch.setattr(os, 'getpid', lambda: 7)",
        lacks=(),
    ),
    "sys.exit in a forked child": Way(
        OK, "def test_way():\n    if os.fork(): os.wait()\n    else: sys.exit(3)", lacks=()
    ),
    # what stops a run
    "pytest.exit": Way(INTERRUPTED, "def test_way(): pytest.exit('enough')"),
    "pytest.exit with status 0": Way(INTERRUPTED, "def test_way(): pytest.exit('x', returncode=0)"),
    "pytest.exit with status 256": Way(FAILED, "def test_way(): pytest.exit('x', returncode=256)"),
    "pytest.exit with a status of its own": Way(
        42, "def test_way(): pytest.exit('enough', returncode=42)"
    ),
    "pytest.exit while collecting": Way(  # pytest alone makes an error of it, too
        FAILED,
        "if 'PYTEST_XDIST_WORKER' in os.environ: pytest.exit('enough')\ndef test_way(): pass",
    ),
    "KeyboardInterrupt in a test": Way(INTERRUPTED, "def test_way(): raise KeyboardInterrupt"),
    "KeyboardInterrupt in the last test": Way(
        INTERRUPTED, "def test_way(): raise KeyboardInterrupt", alone=True
    ),
    "-x": Way(FAILED, "def test_way(): assert 0", args=("-x",)),
    "--maxfail": Way(
        FAILED, "def test_way(): assert 0\ndef test_two(): assert 0", args=("--maxfail=2",)
    ),
    "shouldstop set by a test": Way(
        INTERRUPTED, "def test_way(request): request.session.shouldstop = 'enough'", lacks=()
    ),
    # ordinary failures that a run must not lose
    "sys.exit": Way(FAILED, "def test_way(): sys.exit(0)"),
    "recursion without end": Way(FAILED, "def test_way(): test_way()"),
    "MemoryError": Way(FAILED, "def test_way(): raise MemoryError"),
    "strict xfail that passes": Way(
        FAILED, "@pytest.mark.xfail(strict=True)\ndef test_way(): pass"
    ),
    "stdout closed": Way(FAILED, "def test_way():\n    sys.stdout.close(); assert 0"),
    "descriptors 0 and 1 closed": Way(
        FAILED, "def test_way():\n    os.close(0); os.close(1); assert 0"
    ),
    "test that removes its own file": Way(
        FAILED, "def test_way():\n    os.remove(__file__); assert 0"
    ),
    "current directory removed": Way(
        FAILED,
        "def test_way(tmp_path):\n    os.chdir(tmp_path); os.rmdir(tmp_path); assert 0",
    ),
    "error in a tear-down": Way(
        FAILED, "@pytest.fixture\ndef bad():\n    yield\n    assert 0\ndef test_way(bad): pass"
    ),
    "unraisable exception made an error": Way(
        FAILED,
        "class Odd:\n    def __del__(self): raise RuntimeError\ndef test_way(): Odd()",
        args=("-Werror::pytest.PytestUnraisableExceptionWarning",),
        lacks=(),
    ),
    "duplicate ids": Way(
        FAILED,
        "@pytest.mark.parametrize('a', [1, 2], ids=['x', 'x'])\ndef test_way(a): assert a == 1",
        lacks=(),
    ),
    "test that nobody runs": Way(
        DEATHS,
        "def test_way(): pass",
        conftest="@pytest.hookimpl(tryfirst=True)\ndef pytest_runtest_protocol(item):\n"
        "    return True if 'test_way' in item.nodeid else None\n",
    ),
    "call that a plugin leaves out": Way(
        BOTH,
        "def test_way(): pass",
        conftest="from _pytest.runner import call_and_report\n@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_runtest_protocol(item):\n    if 'test_way' in item.nodeid:\n"
        "        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)\n"
        "        call_and_report(item, 'setup'); return True\n",
    ),
    # collections
    "error while collecting": Way(FAILED, "import nowhere_to_be_found\ndef test_way(): pass"),
    "error while collecting in a worker alone": Way(
        FAILED,
        "if 'PYTEST_XDIST_WORKER' in os.environ: raise RuntimeError\ndef test_way(): pass",
    ),
    "importorskip of a whole file": Way(
        NO_TESTS, "pytest.importorskip('nowhere_to_be_found')\ndef test_way(): pass"
    ),
    "everything deselected": Way(NO_TESTS, "def test_way(): pass", args=("-knothing",)),
    "no tests at all": Way(NO_TESTS, alone=True),
    "skipped by name": Way(OK, "@pytest.mark.skip(reason='today')\ndef test_way(): pass"),
    # plugins that set the status
    "status 0 in sessionfinish of the controller": Way(
        FAILED,
        "def test_way(): assert 0",
        conftest="@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish(session):\n"
        "    session.exitstatus = 0\n",
    ),
    "status 0 after the summary": Way(
        FAILED,
        "def test_way(): assert 0",
        conftest="SESSION = []\ndef pytest_sessionstart(session): SESSION.append(session)\n"
        "def pytest_unconfigure():\n    for one in SESSION: one.exitstatus = 0\n",
    ),
    "status of a plugin that goes first": Way(
        FAILED,
        "def test_way(): pass",
        conftest="@pytest.hookimpl(tryfirst=True)\ndef pytest_sessionfinish(session):\n"
        "    if 'PYTEST_XDIST_WORKER' not in os.environ: session.exitstatus = 1\n",
        lacks=(),
    ),
    "failures that a plugin takes off the count": Way(
        FAILED,
        "def test_way(): assert 0",
        conftest="@pytest.hookimpl(trylast=True)\ndef pytest_runtestloop(session): ...\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    terminalreporter._session.testsfailed = 0\n"
        "@pytest.hookimpl(wrapper=True, tryfirst=True)\ndef pytest_runtestloop(session):\n"
        "    result = yield\n    session.testsfailed = 0\n    return result\n",
    ),
}
