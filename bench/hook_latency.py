"""Where connect() spends its time at the hook: a bcc tool that traces the cgroup runner.

It attaches kprobes, which belong on no host: run it in a guest, as the benchmark does with
``make bench BENCH_ARGS="-k latency"``, or by ``with traced() as latency: …`` in a guest's prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Distributions install bcc for their own interpreter; a virtual environment does not look there.
DIST_PACKAGES = "/usr/lib/python3/dist-packages"

#: Runs the programs of a cgroup for one socket address; exported since Linux 4.17.
RUNNER = b"__cgroup_bpf_run_filter_sock_addr"

PROGRAM = rb"""
#include <uapi/linux/ptrace.h>

BPF_HASH(entered, u64, u64);
BPF_HISTOGRAM(latency, unsigned int);

int enter(struct pt_regs *ctx)
{
    u64 task = bpf_get_current_pid_tgid();
    u64 now = bpf_ktime_get_ns();

    entered.update(&task, &now);
    return 0;
}

int leave(struct pt_regs *ctx)
{
    u64 now = bpf_ktime_get_ns();
    u64 task = bpf_get_current_pid_tgid();
    u64 *since = entered.lookup(&task);

    if (!since)
        return 0;
    latency.increment(bpf_log2l(now - *since));
    entered.delete(&task);
    return 0;
}
"""


@dataclass
class Latency:
    """The histogram of a trace, by powers of two."""

    counts: dict[int, int]

    def text(self, unit: str = "ns") -> str:
        """Return the histogram for people, a line a bucket."""
        if not self.counts:
            return "no call was traced"
        most = max(self.counts.values())
        lines = [f"{unit:>20}   count"]
        for slot in range(min(self.counts), max(self.counts) + 1):
            count = self.counts.get(slot, 0)
            low, high = (1 << slot) >> 1, (1 << slot) - 1
            lines.append(f"{low:>9} - {high:<9} {count:>6}  {'*' * round(40 * count / most)}")
        return "\n".join(lines)


@contextmanager
def traced() -> Iterator[Latency]:
    """Trace the runner while the block runs; the histogram is complete behind it."""
    bcc = _bcc()
    latency = Latency({})
    program = bcc.BPF(text=PROGRAM)
    try:
        program.attach_kprobe(event=RUNNER, fn_name=b"enter")
        program.attach_kretprobe(event=RUNNER, fn_name=b"leave")
        yield latency
        table = program[b"latency"]
        latency.counts = {slot.value: count.value for slot, count in table.items() if count.value}
    finally:
        program.cleanup()


def _bcc() -> Any:
    sys.path.append(DIST_PACKAGES)
    try:
        import bcc
    except ImportError:
        raise SystemExit("trace the hook: bcc is missing; apt-get install python3-bpfcc") from None
    finally:
        sys.path.remove(DIST_PACKAGES)
    return bcc
