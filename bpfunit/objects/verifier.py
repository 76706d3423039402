"""What the kernel's verifier says when it refuses a program, with the deciding lines on top."""

from __future__ import annotations

import errno as _errno
import re
from os import geteuid

from bpfunit.errors import ENOTSUPP, BpfunitError, SyscallError

_STATISTICS = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|mark_precise|from \d)"
)
_SHOWN = 6

# what the log or errno says -> what to do about it
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        # sign extension, gotol, bswap and signed division of the fourth version, Linux 6.6
        r"unknown opcode (06|81|89|91|d7)|BPF_(LDX|MOV|ALU|END|JA) uses reserved fields",
        "the object has instructions that kernels before 6.6 lack (-mcpu=v4, which clang 20 and"
        " later may take by default): compile it with -mcpu=v3",
    ),
    (
        # what bpf_set_retval() takes; the hook hands it to the caller as an errno
        r"At bpf_set_retval the register",
        "bound the value that bpf_set_retval() gets: from Linux 7.2 on only 0 and -4095..-1 pass",
    ),
    (
        r"invalid func",
        "this kernel does not have the helper: guard the call with a CO-RE feature test"
        " (bpf_core_enum_value_exists), or mark the test needs(helper=…)",
    ),
    (
        # "unknown func" before Linux 6.8: one that exists has its name in the message all the same
        r"(unknown func|cannot use helper|program of this type)",
        "this kernel has the helper, but not for this program type or attach type; others may call"
        " it (on 5.10 bpf_getsockopt is for connect4 and connect6, and for sock_ops)",
    ),
    (
        r"(too many instructions|BPF program is too large|processed 1000001)",
        "the program is too long",
    ),
    (
        r"tail_calls are not allowed in non-JITed",
        "switch the JIT on: sysctl net.core.bpf_jit_enable=1",
    ),
    (
        r"(invalid bpf_context access)",
        "the attach type cannot read or write this field of the context",
    ),
    (
        r"(unreachable insn|back-edge|infinite loop)",
        "the verifier could not bound a loop or a branch",
    ),
    (r"combined stack size", "the stack is limited to 512 bytes over all nested calls"),
)


class VerifierError(BpfunitError):
    """The verifier refused a program.

    Attributes:
        program: its name.
        errno: what the load returned.
        reason: the last word of the verifier.
        log: everything the verifier said.
    """

    def __init__(self, program: str, errno: int, log: str) -> None:
        self.program, self.errno, self.log = program, errno, log
        lines = [line for line in log.splitlines() if line.strip()]
        telling = [line for line in lines if not _STATISTICS.match(line)] or lines
        self.reason = telling[-1].strip() if telling else "(no log)"
        name = _errno.errorcode.get(errno, str(errno))
        parts = [f"load program {program}: {name}: {self.reason}"]
        if remedy := _remedy(log):
            parts.append(f"  hint: {remedy}")
        if len(telling) > 1:
            parts.append("  the verifier's last lines:")
            parts += [f"    {line}" for line in telling[-_SHOWN:]]
        parts.append(f"  ({len(lines)} lines of log in the .log attribute of this exception)")
        super().__init__("\n".join(parts))


class LoadError(SyscallError):
    """An object that could not be opened or loaded, for a reason other than the verifier's.

    Attributes:
        messages: what libbpf said.
    """

    def __init__(self, operation: str, errno: int, messages: list[str], hint: str = "") -> None:
        self.messages = messages
        said = [m.removeprefix("libbpf: ") for m in messages]
        parts = [libbpf_error(errno) and f"libbpf's {libbpf_error(errno)}", *said[-3:], hint]
        super().__init__(operation, errno, "; ".join(part for part in parts if part))


def _remedy(log: str) -> str:
    tail = log[-4000:]
    return next((text for pattern, text in _REMEDIES if re.search(pattern, tail)), "")


# what libbpf says of an object -> what to do about it
_SAID: tuple[tuple[str, str], ...] = (
    (
        r"legacy map definitions|'maps' section",
        'maps in SEC("maps") are of the time before BTF, and libbpf 1.0 refuses them: declare them'
        ' in SEC(".maps"): struct { __uint(type, …); __type(key, …); } name SEC(".maps")',
    ),
    (
        r"missing BPF prog type, check ELF section name '([^']*)'",
        "libbpf does not know the program type that this section's name stands for; write it as"
        ' libbpf 1.0 does: SEC("cgroup/connect4"), SEC("xdp"), SEC("tc") (a bare SEC("connect4")'
        ' or SEC("classifier/x") was older tools\' way)',
    ),
    (
        r"failed to open system Kconfig|failed to (?:find|read).*[Kk]config",
        "an extern asks for the kernel's configuration, which is not at /boot/config-RELEASE nor"
        " at /proc/config.gz",
    ),
    (r"BTF is required", "compile it with clang -g"),
    (
        r"failed to find BTF for extern '(memcmp|memcpy|memmove|memset|bcmp|strlen)'",
        "the compiler made a call of the C library's function, which BPF has not: it writes the"
        " work out where the size is a constant and small (__builtin_memcpy); where it is not, the"
        " program needs a loop",
    ),
    (
        r"failed to find BTF for extern",
        "the object calls or reads what it does not define: link the object that does (bpftool gen"
        " object), or declare it as the kernel's, with __ksym or __kconfig",
    ),
    (
        r"map '[^']*': failed to create: Invalid argument",
        "this kernel refuses the map's type, sizes or flags: max_entries that the program's loader"
        " sets (none is declared, or a ring buffer's is no power of two of whole pages) is given by"
        " load(max_entries={name: …}), and a map of maps declares what its inner maps are",
    ),
    (
        r"endianness mismatch",
        "it is compiled for machines of the other byte order: -target bpf takes that of the machine"
        " that compiles, -target bpfel and bpfeb are little and big",
    ),
)
# enum libbpf_errno of libbpf.h, from 4000
_LIBBPF_ERRORS = (
    "LIBELF: libelf could not read it",
    "FORMAT: not an object in libbpf's format",
    "KVERSION: the version section is wrong or missing",
    "ENDIAN: of the other byte order",
    "INTERNAL: a fault of libbpf's",
    "RELOC: a relocation failed",
    "LOAD: the kernel refused it for an unknown reason",
    "VERIFY: the verifier refused it",
    "PROG2BIG: a program is too big",
    "KVER: of another kernel version",
    "PROGTYPE: the kernel does not know the program type",
)
_FIRST_LIBBPF_ERROR = 4000


def libbpf_error(errno: int) -> str:
    """Return the name and meaning of an error of libbpf's own, "" for the system's."""
    number = errno - _FIRST_LIBBPF_ERROR
    return _LIBBPF_ERRORS[number] if 0 <= number < len(_LIBBPF_ERRORS) else ""


def _advice(messages: list[str]) -> str:
    said = "\n".join(messages)
    return next((text for pattern, text in _SAID if re.search(pattern, said)), "")


def open_failure(path: str, errno: int, messages: list[str]) -> LoadError:
    """Make the exception for a failed ``bpf_object__open``.

    Args:
        path: the object.
        errno: the positive errno.
        messages: libbpf's messages.
    """
    hint = _advice(messages)
    if not hint and errno != _errno.ENOENT:
        hint = "is it a BPF object (clang -target bpf -g -O2)?"
    return LoadError(f"open {path}", errno, messages, hint)


_FAILED = re.compile(r"prog '([^']+)': (?:BPF program load failed|-- BEGIN PROG LOAD LOG)")


def load_failure(path: str, errno: int, log: str, messages: list[str]) -> BpfunitError:
    """Make the exception for a failed ``bpf_object__load``.

    Args:
        path: the object.
        errno: the positive errno of the load.
        log: the verifier's log buffer, "" when the kernel wrote none.
        messages: libbpf's messages.
    """
    failed = [match[1] for message in messages if (match := _FAILED.search(message))]
    if failed and log.strip():
        return VerifierError(failed[-1], errno, log)
    hints = {
        _errno.EPERM: ""
        if geteuid() == 0
        else "loading BPF needs root (CAP_BPF) and is done in a guest: pytest --kernel 6.12",
        _errno.ENOMEM: "the memory limit or the guest's memory is too low",
        ENOTSUPP: "is the JIT off? sysctl net.core.bpf_jit_enable=1",
    }
    hint = _advice(messages) or hints.get(errno, "")
    return LoadError(f"load {path}", errno, messages, hint)
