"""Unit tests for eBPF programs that Linux itself cannot unit-test.

Load an object, fill its maps, run a program with a crafted context, look at what it did::

    with bpfunit.load("hook.bpf.o") as obj:
        obj.maps.frontend[{"addr": ip("10.96.0.1")}] = {"upstream_id": 7}
        result = obj.programs.cgroup_connect4_prog.run("10.96.0.1:80")
        assert result.dst == "10.244.0.5:8080"
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bpfunit._sys.sockets import reuseport_group, tcp_pair
from bpfunit.engines import NotApplicableError
from bpfunit.errors import BpfunitError, FieldError, FieldValueError, NotFoundError, SyscallError
from bpfunit.objects.logs import LogLine
from bpfunit.objects.maps import Map
from bpfunit.objects.object import Object, load
from bpfunit.objects.verifier import LoadError, VerifierError
from bpfunit.progtypes import discover
from bpfunit.progtypes.base import ContextError
from bpfunit.progtypes.packet import PacketProgram, PacketResult
from bpfunit.progtypes.sock_addr import BpfSockAddr, SockAddrProgram, SockAddrResult
from bpfunit.runs.attach import attach, attach_to_map
from bpfunit.runs.bulk import BulkResult, BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import NotObservedError, Result
from bpfunit.tailcalls.tailcalls import ProgArray, Spy, TailCall
from bpfunit.values.btf import Types
from bpfunit.values.layout import BtfError
from bpfunit.values.net import IP, Endpoint, ip, ip4, ip6, port
from bpfunit.values.sources import load_types

if TYPE_CHECKING:
    from bpfunit.explorer import Budget, Exploration

__all__ = [
    "IP",
    "BpfSockAddr",
    "BpfunitError",
    "BtfError",
    "BulkResult",
    "BulkRun",
    "ContextError",
    "Endpoint",
    "FieldError",
    "FieldValueError",
    "LoadError",
    "LogLine",
    "Map",
    "NotApplicableError",
    "NotFoundError",
    "NotObservedError",
    "Object",
    "PacketProgram",
    "PacketResult",
    "ProgArray",
    "Program",
    "Result",
    "SockAddrProgram",
    "SockAddrResult",
    "Spy",
    "SyscallError",
    "TailCall",
    "Types",
    "VerifierError",
    "attach",
    "attach_to_map",
    "explore",
    "ip",
    "ip4",
    "ip6",
    "load",
    "load_types",
    "port",
    "replay",
    "reuseport_group",
    "tcp_pair",
]


def explore(
    obj: Object | str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    budget: Budget | float | None = None,
    corpus: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Exploration:
    """Search inputs that take every branch edge of a program which an input can take.

    The object is loaded anew, with records in front of its jumps and calls; what is loaded already
    is not touched. Time, chance and cookies are answered by stubs, so that a search with the same
    seed finds the same inputs, unless it ends by the clock.

    Args:
        obj: the object, loaded or as a path.
        program: the program's name.
        seed: of what is chosen by chance.
        budget: seconds, or a ``bpfunit.explorer.Budget`` of seconds, instructions and runs;
            a minute by default.
        corpus: a directory of inputs to begin with, which those that take a new edge are added to,
            made small: a JSON file each, in a directory of the program's name. It need not be
            there yet. From a guest they reach the host with the report of the test.
        **options: for :func:`load`.

    Raises:
        CorpusError: files of the corpus do not fit the program; nothing was changed.
        ExploreError: this kernel has no test run for the program's type, or the machine no C
            compiler.
        RewriteError: the program cannot be rewritten, or the verifier refuses it with records.
    """
    from bpfunit.explorer import explore as search  # coverage and more, which few tests need

    return search(obj, program, seed=seed, budget=budget, corpus=corpus, **options)


def replay(
    obj: Object | str | os.PathLike[str],
    program: str,
    corpus: str | os.PathLike[str],
    **options: Any,
) -> Exploration:
    """Run the inputs of a corpus, search nothing, and return which branch edges they take.

    A corpus that was found on one kernel replays on each: an input that a kernel refuses, or needs
    an answer in a helper's place that it does not let be given, is named in ``report()``.

    Args:
        obj: the object, loaded or as a path; it is loaded anew, as by :func:`explore`.
        program: the program's name.
        corpus: the directory that :func:`explore` or ``bpfunit explore --corpus`` keeps.
        **options: for :func:`load`.

    Raises:
        CorpusError: it has no inputs for the program, or files do not fit the program.
        ExploreError, RewriteError: as by :func:`explore`.
    """
    from bpfunit.explorer import replay as run_again

    return run_again(obj, program, corpus, **options)


discover()  # so that an object finds the class of each program's type
