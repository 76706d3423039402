"""The Python that a snapshot of a guest holds: it has imported what workers import, and waits.

Run as a script, since importing the package would keep pytest from rewriting its assertions. On the
host, with the argument ``list``, it does the same imports and prints which files they took, for the
snapshot's initramfs to carry. See ``snapshot.py`` for the whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import random
import struct
import sys
import time
from pathlib import Path

# File descriptors that init.sh hands over.
_REPORT, _GO = 4, 5
_STREAM = 1  # number of the virtio port that carries execnet's stream

# include/uapi/linux/random.h
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207

# What workers import beside pytest and its plugins. Their absence is no error: not every project
# has all of them.
_MODULES = (
    "execnet.gateway",
    "xdist.remote",
    "xdist.workermanage",
    "hypothesis",
    "hypothesis.strategies",
    "bpfunit",
    "bpfunit.faults",
    "bpfunit.plugin.worker",
    "bpfunit.plugin.fixtures",
    "bpfunit.cli._inside",
)


class _Warmer:
    """A pytest plugin that imports what workers import."""

    def pytest_configure(self) -> None:
        """Import, while pytest is there to rewrite the assertions of what it knows as plugins."""
        for name in _MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def warm() -> None:
    """Import what a worker imports, for which pytest does the shortest thing it can be asked to."""
    import pytest

    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        pytest.main(["--help", "-c", os.devnull, "-p", "no:cacheprovider"], plugins=[_Warmer()])


def list_files() -> None:
    """Print the files that :func:`warm` needs, and ``sys.path``, as one JSON object."""
    opened: set[str] = set()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            opened.add(arguments[0])

    sys.addaudithook(note)
    before = list(sys.path)
    warm()
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            if isinstance(path := getattr(module, name, None), str):
                opened.add(path)
    for path in [path for path in opened if path.endswith(".pyc")]:
        with contextlib.suppress(ValueError):  # pytest's own bytecode has no such name
            # Looked at, not opened; and not every module in there tells its file.
            opened.add(importlib.util.source_from_cache(path))
    for line in Path("/proc/self/maps").read_text().splitlines():
        opened.add(line.partition("/")[1] + line.partition("/")[2])
    # What the interpreter and site read before the hook was there.
    opened |= {sys.executable, __file__, f"{sys.prefix}/pyvenv.cfg", "/etc/ld.so.cache"}
    opened |= {str(path) for path in Path("/").glob("lib*/ld-*.so*")}  # the loader, as ELF names it
    opened |= {str(path) for entry in before if entry for path in Path(entry).glob("*.pth")}
    named = (path for path in sorted(opened) if path.startswith("/") and Path(path).is_file())
    files = [path for path in named if not path.startswith(("/proc/", "/dev/", "/sys/"))]
    json.dump({"files": files, "path": before}, sys.stdout)


def main() -> None:
    """Be the Python of a snapshot: get warm, wait for the guest's work, and do it."""
    warm()
    # Neither is to be found under this root when the guest goes on.
    init = os.open("/proc/1", os.O_PATH | os.O_DIRECTORY)
    pool = os.open("/dev/urandom", os.O_WRONLY)
    _leave_nothing()
    os.write(_REPORT, b"warm\n")
    # The snapshot is taken while this waits; everything below happens in a guest restored from it.
    directory, now, seed = _read_line(_GO).split()
    time.clock_settime(time.CLOCK_REALTIME, float(now))
    _reseed(pool, bytes.fromhex(seed))
    _read_line(_GO)  # init has laid out the host's files
    root = os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=init)
    os.fchdir(root)
    os.chroot(".")
    for fd in (root, init, pool):
        os.close(fd)
    _become_worker(Path(directory))


def _leave_nothing() -> None:
    """Make zeroes of the files that are about to be removed, of which a snapshot keeps nothing.

    Those that are mapped stay, for as long as they are.
    """
    gc.collect()
    gc.freeze()  # what is imported stays, and is not gone through again
    mapped = Path("/proc/self/maps").read_text()
    nothing = bytes(1 << 20)
    for directory, _, names in os.walk("/"):
        if directory.startswith(("/proc", "/dev")):
            continue
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and f" {path}\n" not in mapped:
                with path.open("r+b", buffering=0) as file:
                    size = path.stat().st_size
                    for at in range(0, size, len(nothing)):
                        file.write(nothing[: size - at])


def _read_line(fd: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, 1)  # by byte: what follows is for the next call
    return line.decode()


def _reseed(pool: int, seed: bytes) -> None:
    """Part the guest's random numbers from those of all others restored from the snapshot."""
    fcntl.ioctl(pool, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
    with contextlib.suppress(OSError):  # refused while the pool starts, which the seed has ended
        fcntl.ioctl(pool, _RNDRESEEDCRNG)
    random.seed()


def _become_worker(directory: Path) -> None:
    guest = json.loads((directory / "guest.json").read_text())["worker"]
    os.environ.clear()
    os.environ.update(guest["environment"])
    time.tzset()
    sys.path[:] = guest["path"]
    sys.path_importer_cache.clear()  # they list the initramfs
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        os.chdir(guest["cwd"])
    except OSError as error:
        print(f"bpfunit: cannot enter {guest['cwd']}: {error}", file=sys.stderr)
    (port,) = Path("/dev").glob(f"vport*p{_STREAM}")
    stream = os.open(port, os.O_RDWR)
    os.dup2(stream, 0)
    os.dup2(stream, 1)
    for fd in (stream, _REPORT, _GO):
        os.close(fd)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["-c"]
    # What execnet has a Python run.
    exec(eval(sys.stdin.readline()), {"__name__": "__main__", "sys": sys})


if __name__ == "__main__":
    sys.path[0] = ""  # as a worker has it, which starts with -c
    list_files() if sys.argv[1:] == ["list"] else main()
