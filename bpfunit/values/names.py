"""A mapping whose names can be written as attributes, and whose misses list what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from bpfunit.errors import NotFoundError

_V = TypeVar("_V")


class Names(Mapping[str, _V], Generic[_V]):
    """A mapping whose names are attributes too: ``obj.maps.km_service``."""

    def __init__(self, kind: str, source: str, items: dict[str, _V]) -> None:
        self._kind, self._source, self._items = kind, source, items

    def __getitem__(self, name: str) -> _V:
        try:
            return self._items[name]
        except KeyError:
            raise NotFoundError(
                f"look up {self._kind} in {self._source}", name, sorted(self._items)
            ) from None

    def __getattr__(self, name: str) -> _V:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._items]

    def __repr__(self) -> str:
        return f"<{self._kind}s of {self._source}: {', '.join(self._items)}>"
