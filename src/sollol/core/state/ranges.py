"""Item positions of a batch. A built-in tuple, which mypyc does not compile."""

from __future__ import annotations


class Ranges(tuple[tuple[int, int], ...]):
    """Hold item positions as half-open ranges in order: ((lo, hi), ...)."""

    __slots__ = ()

    def total(self) -> int:
        """Return the number of items."""
        return sum(hi - lo for lo, hi in self)

    def items(self) -> list[int]:
        """Return the positions."""
        return [i for lo, hi in self for i in range(lo, hi)]
