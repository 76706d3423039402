"""The scheduler of a run on several kernels: each kernel runs all tests, its guests share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from xdist.report import report_collection_diff
from xdist.scheduler import LoadScheduling, Scheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class MatrixScheduling(Scheduling):  # type: ignore[misc]  # xdist declares no types
    """One of xdist's load schedulers for each kernel, behind the interface of one.

    Args:
        config: pytest's.
        log: xdist's.
        labels: the kernels.
        guests: how many guests each kernel has.
        label_of: tells the kernel of a node.
    """

    def __init__(
        self,
        config: pytest.Config,
        log: Any,
        labels: Iterable[str],
        guests: int,
        label_of: Callable[[Any], str],
    ) -> None:
        self.config = config  # plugins look for it, as on xdist's own
        self._label_of = label_of
        self._abandoned: set[str] = set()
        self._kernels: dict[str, Any] = {}
        for label in labels:
            self._kernels[label] = LoadScheduling(config, log)
            self._kernels[label].numnodes = guests

    def of(self, node: Any) -> Any:
        """Return the scheduler of a node's kernel."""
        return self._kernels[self._label_of(node)]

    def _in_use(self) -> list[Any]:
        return [one for label, one in self._kernels.items() if label not in self._abandoned]

    @property
    def nodes(self) -> list[Any]:
        """All nodes there are."""
        return [node for one in self._kernels.values() for node in one.nodes]

    @property
    def collection_is_completed(self) -> bool:
        """Whether some kernel can start; no kernel waits for another."""
        return any(one.collection_is_completed for one in self._in_use())

    @property
    def tests_finished(self) -> bool:
        """Whether every kernel is through, or given up."""
        return all(one.tests_finished for one in self._in_use())

    @property
    def has_pending(self) -> bool:
        """Whether any test waits or runs."""
        return any(one.has_pending for one in self._in_use())

    def has_work_for(self, label: str) -> bool:
        """Tell whether a new guest of this kernel would find something to do."""
        one = self._kernels[label]
        return label not in self._abandoned and (one.collection is None or bool(one.pending))

    def collection_of(self, label: str) -> Sequence[str] | None:
        """Return the tests of a kernel, None where no guest got as far as collecting them."""
        collection: Sequence[str] | None = self._kernels[label].collection
        return collection

    def abandon(self, label: str) -> None:
        """Start nothing more on a kernel."""
        self._abandoned.add(label)
        for node in self._kernels[label].nodes:
            node.shutdown()

    def add_node(self, node: Any) -> None:
        """Take a node that is ready to collect."""
        self.of(node).add_node(node)

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Take what a node collected.

        One that replaces another gets numbers of tests, so it must have collected the same; else
        its kernel is given up, which leaves the rest of its tests without an outcome.
        """
        expected = self.of(node).collection
        if expected is not None and list(collection) != list(expected):
            self._refuse(node, expected, collection)
        else:
            self.of(node).add_node_collection(node, collection)

    def _refuse(self, node: Any, expected: Sequence[str], found: Sequence[str]) -> None:
        said = report_collection_diff(expected, found, "the guests before it", node.gateway.id)
        report = pytest.CollectReport(node.gateway.id, "failed", said or "in another order", [])
        self.config.hook.pytest_collectreport(report=report)
        self.abandon(self._label_of(node))

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Note that a node is through with a test."""
        self.of(node).mark_test_complete(node, item_index, duration)

    def mark_test_pending(self, item: str) -> None:
        """Have a test run again."""
        for one in self._in_use():
            if one.collection is not None and item in one.collection:
                one.mark_test_pending(item)

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        """Take tests back from a node; load scheduling never does."""
        self.of(node).remove_pending_tests_from_node(node, indices)

    def remove_node(self, node: Any) -> str | None:
        """Forget a node; return the test that it was in the middle of."""
        crashed: str | None = self.of(node).remove_node(node)
        return crashed

    def schedule(self) -> None:
        """Hand out tests on every kernel whose guests have collected."""
        for one in self._in_use():
            if one.collection_is_completed:
                one.schedule()
                if not one.collection:
                    # Nothing to run, or guests that disagree: xdist would keep them to the end of
                    # the run, and with them a slot that another kernel waits for.
                    for node in one.nodes:
                        node.shutdown()
