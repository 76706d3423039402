"""A throwaway cgroup of version 2, and programs attached to it."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfunit._sys import bpf, libc, uapi
from bpfunit._sys.uapi import Cmd
from bpfunit.errors import BpfunitError, SyscallError

_ALLOW_MULTI = 1 << 1  # BPF_F_ALLOW_MULTI
_LEAVE_S = 2  # for tasks that end; takes milliseconds


class CgroupError(BpfunitError):
    """There is no cgroup v2 hierarchy to work in, or a cgroup of ours is not free to go."""


def find_hierarchy() -> Path | None:
    """Return where the cgroup v2 hierarchy is mounted, or None."""
    # proc(5): "36 35 98:0 /root /mount/point options … - fstype source options"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, filesystem = line.partition(" - ")
        if filesystem.startswith("cgroup2 "):
            return Path(fields.split(" ")[4].encode().decode("unicode_escape"))
    return None


class Cgroup:
    """A cgroup that exists as long as the object is open.

    A socket belongs for life to the cgroup in which its creator was when it made it
    (``cgroup_sk_alloc()`` in the kernel's ``sk_alloc()``): a process that is inside makes sockets
    whose hooks run the programs attached here, also after it has left. Membership is the process's,
    so :meth:`enter` moves all its threads.

    Args:
        name: the directory's name; made unique by the process's id.

    Raises:
        CgroupError: there is no cgroup v2 hierarchy and none can be mounted.
    """

    def __init__(self, name: str = "bpfunit") -> None:
        hierarchy = find_hierarchy()
        self._mounted: Path | None = None
        if hierarchy is None:
            hierarchy = self._mounted = _mount()
        self._home = hierarchy
        self.path = Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=hierarchy))
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self, pid: int = 0) -> None:
        """Move a process, by default the calling one, into this cgroup."""
        (self.path / "cgroup.procs").write_text(str(pid), encoding="ascii")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling process in this cgroup within the block."""
        before = self._home / _current_cgroup().lstrip("/")
        self.enter()
        try:
            yield
        finally:
            (before / "cgroup.procs").write_text("0", encoding="ascii")

    def attach(self, prog_fd: int, attach_type: int) -> None:
        """Attach a program behind those attached already.

        Raises:
            SyscallError: the kernel refused, with EINVAL for instance where the program was loaded
                for another attach type.
        """
        attr = uapi.AttachAttr(self.fd, prog_fd, attach_type, _ALLOW_MULTI)
        bpf.call_checked(f"attach program to {self.path}", Cmd.PROG_ATTACH, attr)

    def detach(self, prog_fd: int, attach_type: int) -> None:
        """Detach one program; the others stay."""
        attr = uapi.AttachAttr(self.fd, prog_fd, attach_type, 0)
        bpf.call_checked(f"detach program from {self.path}", Cmd.PROG_DETACH, attr)

    @contextmanager
    def attached(self, attach_type: int, *prog_fds: int) -> Iterator[None]:
        """Keep programs attached within the block, run in the order given."""
        done: list[int] = []
        try:
            for fd in prog_fds:
                self.attach(fd, attach_type)
                done.append(fd)
            yield
        finally:
            for fd in reversed(done):
                self.detach(fd, attach_type)

    def close(self) -> None:
        """Move out whoever is inside and remove the cgroup; a second call does nothing.

        Raises:
            CgroupError: it cannot be removed, for lack of who would have to leave it.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        for pid in (self.path / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):  # it has ended since
                (self._home / "cgroup.procs").write_text(pid, encoding="ascii")
        _remove(self.path)
        if self._mounted is not None:
            libc.umount(str(self._mounted))
            self._mounted.rmdir()

    def __enter__(self) -> Cgroup:
        """Return self; nobody is moved."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()


def _current_cgroup() -> str:
    """Return the calling process's place in the cgroup v2 hierarchy (cgroups(7): "0::/path")."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return "/"


def _remove(path: Path) -> None:
    """Remove a cgroup; the kernel counts one as busy until the last task has left it for good."""
    deadline = time.monotonic() + _LEAVE_S
    while True:
        try:
            return path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise CgroupError(
                    f"remove cgroup {path}: still busy after {_LEAVE_S} seconds; it has processes"
                    " or cgroups of its own that a test has to end first"
                ) from None
        time.sleep(0.01)


def _mount() -> Path:
    """Mount a cgroup v2 hierarchy for our own use."""
    target = Path(tempfile.mkdtemp(prefix="bpfunit-cgroup2-"))
    try:
        bpf.mount("cgroup2", str(target))
    except SyscallError as error:
        target.rmdir()
        raise CgroupError(
            f"make a cgroup: no cgroup v2 hierarchy is mounted, and {error};"
            " run as root, in a guest"
        ) from None
    return target
