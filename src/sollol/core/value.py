"""The values of the core: plain classes, compared and printed by their fields, never changed.

mypyc compiles them to C structs, which are made and read several times as fast as named tuples. Those that cannot be
part of a cycle are not tracked by the garbage collector.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from sollol.core.hints import mypyc_attr

V = TypeVar("V", bound="Value")

_names: Final[dict[type, list[str]]] = {}  # of the fields of each class


@mypyc_attr(acyclic=True)
class Value:
    """Compare and print by fields."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and fields_of(self) == fields_of(other)

    def __hash__(self) -> int:
        return hash(tuple(fields_of(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={held!r}' for name, held in fields_of(self).items())})"


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields by name, in the order of their names."""
    cls = type(value)
    names = _names.get(cls)
    if names is None:  # compiled, a class keeps the names of its slots elsewhere
        names = _names[cls] = sorted(getattr(cls, "__mypyc_attrs__", None) or cls.__slots__)
    return {name: getattr(value, name) for name in names}


def replaced(value: V, **changes: Any) -> V:
    """Return a copy with other values for these fields."""
    return type(value)(**fields_of(value) | changes)
