"""How many guests of a run are up at once.

Guests wait for one of the run's slots, so that no more of them run than the machine carries.
Guests of one kernel share a slot, since they wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs more than all of the above
if TYPE_CHECKING:
    from collections.abc import Iterator


class Slots:
    """The slots of a run, in a file that all its supervisors share.

    Args:
        path: the file.
        count: how many kernels may run at once.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count

    def take(self, group: str) -> bool:
        """Take a slot for this process, or stand beside one of the same group."""
        with self._held() as state:
            free = len(state) < self._count
            if group in state or free:
                state.setdefault(group, []).append(os.getpid())
                return True
            return False

    def leave(self) -> None:
        """Give this process's slot back."""
        with self._held() as state:
            for pids in state.values():
                if os.getpid() in pids:
                    pids.remove(os.getpid())

    @contextlib.contextmanager
    def _held(self) -> Iterator[dict[str, list[int]]]:
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            state = json.loads(file.read() or "{}")
            # a supervisor that was killed could not give its slot back
            state = {
                group: alive
                for group, pids in state.items()
                if (alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()])
            }
            yield state
            file.truncate(0)
            file.write(json.dumps({group: pids for group, pids in state.items() if pids}))
