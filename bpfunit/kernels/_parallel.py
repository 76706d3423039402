"""The same work for several kernels at once, and an orderly end when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def side_by_side(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> list[_Result]:
    """Return the results of `work` for all items, in their order.

    All items are worked on to the end; then the exception of the first that failed is raised. An
    interrupt starts nothing new and waits for what runs, which cleans up after itself.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures)
        except BaseException:
            # Waiting for the futures, not the threads: a join that an interrupt ended makes Python
            # up to 3.12 take the thread for finished and exit in the middle of its cleaning up
            # (https://github.com/python/cpython/issues/90882).
            for future in futures:
                future.cancel()
            wait(futures)
            raise
    return [future.result() for future in futures]
