"""Which of the host's variables a guest has, and which of the host's directories it cannot see.

A guest has the caller's environment, since a test is meant to run as it would without one:
``MYPROJECT_OBJ=x pytest --kernel 6.12`` reaches it. Left out is what speaks of the host's own
processes: sessions, sockets, file descriptors that are not there. A guest has no network, and what
it writes is gone with it, so a secret is as safe in there as in the process that started it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bpfunit.guest.errors import GuestError

WITHHELD = (
    # desktop, login and terminal sessions: sockets and devices of the host
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SEAT",
    "XDG_SESSION_*",
    "XDG_VTNR",
    "DBUS_*",
    "SSH_*",
    "GPG_AGENT_INFO",
    "STY",
    "TMUX*",
    "WINDOWID",
    # service managers: pipes and process ids
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_*",
    "MAINPID",
    "MANAGERPID",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_*",
    # a make that started pytest: its job server's pipe
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    # the guest has a temporary directory of its own
    "TMPDIR",
)
"""Variables that no guest has unless it is asked for; a name that ends in * is a prefix."""

# What shells keep for themselves, and would be wrong in another process; not worth a word.
_OF_SHELLS = (
    "_",
    "BASH_*",
    "ENV",
    "IFS",
    "OLDPWD",
    "OPTIND",
    "PPID",
    "PS1",
    "PS2",
    "PS4",
    "PWD",
    "SHLVL",
)
# PYTEST_* that speak of the host's own process, and what bpfunit says to itself.
_OF_PYTEST = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_*",
    "BPFUNIT_GUEST",
    "BPFUNIT_ACCEL",
    "BPFUNIT_WARM",
    "_bpfunit_*",
)

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")  # what the guest's shell can export

MOUNTED = ("/dev", "/proc", "/run", "/sys")
"""Directories on which a guest has file systems of its own."""


def passed_on(host: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the host that guests have.

    Args:
        host: all of the host's.
    """
    out = (*WITHHELD, *_OF_SHELLS, *_OF_PYTEST)
    return {
        name: value for name, value in host.items() if _NAME.fullmatch(name) and not _is(name, out)
    }


def withheld(host: Mapping[str, str], asked: Iterable[str] = ()) -> list[str]:
    """Return the names of variables that a test could miss: set here, and in no guest.

    Args:
        host: all of the host's.
        asked: names that are passed all the same.
    """
    return sorted(name for name in host if _is(name, WITHHELD) and name not in set(asked))


def asked_for(requests: Iterable[str], host: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that ``NAME`` and ``NAME=VALUE`` ask for.

    Args:
        requests: a name alone takes the host's value, whatever it is.
        host: all of the host's.

    Raises:
        GuestError: a name that no variable can have, or one that the host does not have.
    """
    found = {}
    for request in requests:
        name, equals, value = request.partition("=")
        if not _NAME.fullmatch(name):
            raise GuestError(
                f"pass a variable to guests: {request!r} has no name that a shell can export; "
                "expected NAME or NAME=VALUE"
            )
        if not equals and name not in host:
            raise GuestError(
                f"pass {name} to guests: it is not set here; set it, or say {name}=VALUE"
            )
        found[name] = value if equals else host[name]
    return found


def _is(name: str, patterns: Iterable[str]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def require_visible(what: str, path: Path) -> None:
    """Refuse a file or directory that a guest needs and cannot see.

    Args:
        what: what it is, for the message: ``"the project"``.
        path: the host's.

    Raises:
        GuestError: it lies where a guest has a file system of its own.
    """
    real = Path(os.path.realpath(path))
    for mounted in MOUNTED:
        if real.is_relative_to(mounted):
            raise GuestError(
                f"show {what} to a guest: {real} lies below {mounted}, where every guest has a "
                "file system of its own; move it, for example below /tmp, /var/tmp or a home"
            )
