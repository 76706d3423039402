"""A mapping whose names can be written as attributes, and whose misses list what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from bpfunit.errors import NotFoundError

_V = TypeVar("_V")


class Names(Mapping[str, _V], Generic[_V]):
    """A mapping whose names are attributes too: ``obj.maps.km_service``.

    An item that is called as a method of mappings is (``items``, ``get``) is found under that name
    and can be called as the method, so that ``obj.maps.items["x"]`` and ``obj.maps.items()`` both
    do what they say.

    Args:
        noun: what one of the items are, for errors.
        source: what they come from, for errors.
        items: the items, a dict of the owner's that may grow.
        hints: for names that are not there, why, and what to do about it.
    """

    def __init__(
        self,
        noun: str,
        source: str,
        items: dict[str, _V],
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self.__noun, self.__source = noun, source
        self.__own = items
        self.__hints = hints if hints is not None else {}

    def __getitem__(self, name: str) -> _V:
        try:
            return self.__own[name]
        except KeyError:
            raise self.__missing(name) from None

    def __missing(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"look up {self.__noun} in {self.__source}",
            name,
            sorted(self.__own),
            self.__hints.get(name, ""),
        )

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):  # nothing that a mapping is asked for
            return super().__getattribute__(name)
        own = self.__own
        if name not in own:
            return super().__getattribute__(name)
        found = own[name]
        if hasattr(Mapping, name):
            _make_callable(found, super().__getattribute__(name))
        return found

    def __getattr__(self, name: str) -> _V:
        if name.startswith("_Names__"):  # not made yet: nothing is to be listed
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__own)

    def __len__(self) -> int:
        return len(self.__own)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.__own]

    def __repr__(self) -> str:
        return f"<{self.__noun}s of {self.__source}: {', '.join(self.__own)}>"


def _make_callable(item: Any, method: Any) -> None:
    item_type = type(item)
    if "__call__" not in vars(item_type):
        item.__class__ = type(
            item_type.__name__, (item_type,), {"__call__": lambda _self, *a: method(*a)}
        )
