"""Item positions of a batch. Apart from the other values because it is a built-in tuple, which is not compiled."""

from __future__ import annotations


class Ranges(tuple[tuple[int, int], ...]):
    """Item positions as half-open ranges, in order: ((lo, hi), ...)."""

    __slots__ = ()

    def total(self) -> int:
        return sum(hi - lo for lo, hi in self)

    def items(self) -> list[int]:
        return [i for lo, hi in self for i in range(lo, hi)]
