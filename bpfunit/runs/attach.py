"""Programs attached for real, for tests from end to end: no crafted context, live sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bpfunit._sys import sockmap
from bpfunit._sys.cgroup import Cgroup
from bpfunit.objects.maps import Map
from bpfunit.runs.program import Program

_entering = threading.RLock()


@contextmanager
def attach(*programs: Program, cgroup: Cgroup | None = None) -> Iterator[Cgroup]:
    """Attach programs to a cgroup that the calling process is in within the block.

    Membership is the whole process's, so blocks of other threads wait until this one ends.

    Sockets made in the block go through the programs for life, but only as long as these are
    attached; sockets made before do not. Attaching several programs of one attach type runs them in
    the order given::

        with bpfunit.attach(obj.programs.cgroup_connect4_prog):
            client = socket.create_connection(("10.96.0.1", 80))

    Args:
        programs: programs of cgroup attach types.
        cgroup: attach to this one; by default to a throwaway one, removed after the block.

    Raises:
        CgroupError: there is no cgroup v2 hierarchy.
        SyscallError: the kernel refused to attach a program.
    """
    with _entering, ExitStack() as stack:
        target = cgroup or stack.enter_context(Cgroup("bpfunit-attach"))
        stack.enter_context(target.entered())
        for program in programs:
            stack.enter_context(target.attached(program.attach_type, program.fd))
        yield target


@contextmanager
def attach_to_map(target: Map, *programs: Program) -> Iterator[None]:
    """Attach programs to a sockmap or sockhash within the block.

    What its sockets send goes by an sk_msg program, what they receive by those of sk_skb. A socket
    takes the programs as it is entered into the map::

        with bpfunit.attach_to_map(obj.maps.connections, obj.programs.on_message):
            obj.maps.connections[1] = client
            client.send(b"GET /")

    Args:
        target: the map; it has one program of each attach type.
        programs: sk_msg and sk_skb programs.

    Raises:
        SyscallError: the kernel refused to attach a program.
    """
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(sockmap.attached(target.fd, program.fd, program.attach_type))
        yield
