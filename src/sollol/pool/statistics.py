"""The statistics of a pool as a dict that refuses changes, or keeps them as notes of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

from sollol.errors import BadInput
from sollol.pool.keywords import warn_once

KEPT = (
    "pool.stats['node_performance'] is measured by SOLLOL: values for a node that was not used yet, and names of your "
    "own, are kept and can be read back, but no call is routed by them"
)


class WrittenDict(dict[str, Any]):
    """A dict whose every change is an assignment of one item."""

    def update(self, *given: Any, **values: Any) -> None:
        """Set several items."""
        for name, value in dict(*given, **values).items():
            self[name] = value

    def setdefault(self, name: str, value: Any = None) -> Any:
        """Return an item; set it if there is none."""
        if name not in self:
            self[name] = value
        return self[name]

    def __ior__(self, values: Any) -> Self:  # type: ignore[override,misc]
        self.update(values)
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise BadInput("pool.stats is a copy of what SOLLOL counts; nothing can be removed from it")

    __delitem__ = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Statistics(WrittenDict):
    """A copy of the statistics. `keep` receives what is written for a node."""

    def __init__(self, values: Mapping[str, Any], keep: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(values)
        self._keep = keep
        rows = {key: PerformanceRow(row, key, keep) for key, row in values["node_performance"].items()}
        super().__setitem__("node_performance", PerformanceRows(rows, keep))

    def __setitem__(self, name: str, value: Any) -> None:
        if name != "node_performance" or not isinstance(value, Mapping):
            raise BadInput(
                f"pool.stats[{name!r}] = ...: SOLLOL counts itself; pool.stats is a copy, of which only the rows of "
                "'node_performance' can be set"
            )
        self["node_performance"].update(value)


class PerformanceRows(WrittenDict):
    """The rows of `node_performance`, by "host:port"."""

    def __init__(self, rows: Mapping[str, Any], keep: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(rows)
        self._keep = keep

    def __setitem__(self, key: str, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise BadInput(
                f"pool.stats['node_performance'][{key!r}] = ...; expected a dict such as {{'latency_ms': 12}}"
            )
        self._keep(key, row)
        warn_once(KEPT)
        super().__setitem__(key, PerformanceRow(row, key, self._keep))


class PerformanceRow(WrittenDict):
    """One row of `node_performance`."""

    def __init__(self, values: Mapping[str, Any], key: str, keep: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(values)
        self._key = key
        self._keep = keep

    def __setitem__(self, name: str, value: Any) -> None:
        self._keep(self._key, {name: value})
        warn_once(KEPT)
        super().__setitem__(name, value)


def with_notes(rows: Mapping[str, Mapping[str, Any]], notes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rows with the notes of programs: what is measured goes before them."""
    found: dict[str, Any] = {}
    for key in [*rows, *(key for key in notes if key not in rows)]:
        measured, note = rows.get(key, {}), notes.get(key, {})
        found[key] = {**note, **measured} if measured.get("total_requests") else {**measured, **note}
    return found
