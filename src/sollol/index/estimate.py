"""How many passages some files will give, and how much work: judged while they are read.

A kind of file that was not read yet cannot be judged by the kinds that were: a PDF has a hundredth of the passages per
byte of a text. So soon after the start a few files of each kind are looked into, spread over their sizes, each at most
for a moment. What is known of a file (it was read, or looked into) counts for it; the others of its kind count by
their bytes, with one passage at least.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

SAMPLES: Final = 6  # files of a kind that are looked into
LOOK_S: Final = 1.5  # for all of them together
FILE_S: Final = 0.15  # for one; then what is left of it is taken to be like what was read
BEGUN: Final = 0.05  # share of the file being read from which it is judged by itself


class Amount(NamedTuple):
    passages: float
    cost: float


class Step(NamedTuple):
    """A passage that was read: what embedding it costs, and how far into its file (in bytes) the reader was then."""

    cost: int
    within: float


class Estimate:
    """What is known of some files. The reader reports what it does; `total` may be asked at any time."""

    def __init__(self, files: Sequence[Path], sizes: dict[Path, int]) -> None:
        self._files = files
        self._sizes = sizes
        self.finished = 0  # files read
        self.useful = 0  # of them, those that gave a passage
        self._ends = array("Q")  # cost of all passages read so far, after each
        self._first = 0  # passage of the file being read
        self._within = 0.0
        self._known: dict[Path, Amount] = {}
        self._rest: Amount | None = None  # of the files behind the one being read; None: to be summed anew
        self._summed_at = 0

    # --- what the reader reports ---

    @property
    def passages(self) -> int:
        return len(self._ends)

    def read(self, step: Step) -> None:
        self._ends.append(self.cost_of(len(self._ends)) + step.cost)
        self._within = step.within

    def finish(self) -> None:
        """Note that the file being read has come to its end."""
        file = self._files[self.finished]
        count = len(self._ends) - self._first
        self._known[file] = Amount(count, self.cost_of(len(self._ends)) - self.cost_of(self._first))
        self.finished += 1
        self.useful += count > 0
        self._first = len(self._ends)
        self._within = 0.0
        if self._rest is None or self.finished - self._summed_at > len(self._files) / 200:
            self._rest = None

    def look_into(self, read: Callable[[Path], Iterator[Step]]) -> None:
        """Read a part of a few files of each kind that are still to come."""
        until = time.monotonic() + LOOK_S
        kinds: dict[str, list[Path]] = {}
        for file in self._files[self.finished + 1 :]:
            kinds.setdefault(file.suffix.lower(), []).append(file)
        picks = [_spread(files, self._sizes) for files in kinds.values()]
        for turn in range(SAMPLES):  # a file of each kind, then the next of each
            for files in picks:
                if turn < len(files) and time.monotonic() < until:
                    self._known.setdefault(files[turn], _looked(read(files[turn]), self._sizes[files[turn]]))
        self._rest = None

    # --- what follows ---

    def cost_of(self, passages: int) -> int:
        """Return the cost of the first so many passages."""
        return self._ends[min(passages, len(self._ends)) - 1] if passages and self._ends else 0

    def total(self) -> Amount:
        """Return what all files will give; exact once all are read, nothing where nothing was read."""
        passages, cost = len(self._ends), self.cost_of(len(self._ends))
        if self.finished == len(self._files) or not passages:
            return Amount(passages, cost)
        begun = cost - self.cost_of(self._first)
        current = self._current(self._files[self.finished], passages - self._first, begun)
        if self._rest is None:
            self._rest = self._sum()
            self._summed_at = self.finished
        before = self._first
        return Amount(
            before + current.passages + self._rest.passages,
            self.cost_of(before) + current.cost + self._rest.cost,
        )

    def _current(self, file: Path, passages: int, cost: int) -> Amount:
        size = self._sizes[file]
        share = min(1.0, self._within / size) if size else 1.0
        guess = self._known.get(file) or self._guess(file)
        if share >= BEGUN:
            guess = Amount(passages / share, cost / share)
        return Amount(max(passages, guess.passages), max(cost, guess.cost))

    def _sum(self) -> Amount:
        rates = self._rates()
        passages = cost = 0.0
        for file in self._files[self.finished + 1 :]:
            amount = self._known.get(file) or self._guess(file, rates)
            passages += amount.passages
            cost += amount.cost
        return Amount(passages, cost)

    def _guess(self, file: Path, rates: dict[str, Amount] | None = None) -> Amount:
        rates = self._rates() if rates is None else rates
        rate = rates.get(file.suffix.lower()) or rates[""]
        size = self._sizes[file]
        return Amount(max(rate.passages * size, 1.0 if rate.passages and size else 0.0), rate.cost * size)

    def _rates(self) -> dict[str, Amount]:
        """Return passages and cost per byte, by kind of file, and for all kinds together as ""."""
        sums: dict[str, list[float]] = {"": [0.0, 0.0, 0.0]}
        rows = list(self._known.items())
        if self._within:
            cost = self.cost_of(len(self._ends)) - self.cost_of(self._first)
            rows.append((self._files[self.finished], Amount(len(self._ends) - self._first, cost)))
        for file, amount in rows:
            size = self._within if file not in self._known else self._sizes[file]
            for kind in ("", file.suffix.lower()):
                row = sums.setdefault(kind, [0.0, 0.0, 0.0])
                row[0] += amount.passages
                row[1] += amount.cost
                row[2] += size
        return {kind: Amount(row[0] / max(row[2], 1.0), row[1] / max(row[2], 1.0)) for kind, row in sums.items()}


def _looked(steps: Iterator[Step], size: int) -> Amount:
    """Read a file for a moment, and take the rest of it to be alike."""
    until = time.monotonic() + FILE_S
    passages = cost = 0
    within = 0.0
    for step in steps:
        passages += 1
        cost += step.cost
        within = step.within
        if time.monotonic() > until and within > 0:
            share = min(1.0, within / size)
            return Amount(passages / share, cost / share)
    return Amount(passages, cost)


def _spread(files: Sequence[Path], sizes: dict[Path, int]) -> list[Path]:
    """Choose files over which the bytes of a kind are spread evenly, and so mostly large ones: these matter most."""
    by_size = sorted(files, key=lambda file: (sizes[file], str(file)))
    sums = list(accumulate(sizes[file] for file in by_size))
    places = {bisect_left(sums, sums[-1] * (2 * turn + 1) / (2 * SAMPLES)) for turn in range(SAMPLES)}
    places |= {len(by_size) - 1, len(by_size) // 2}
    return [by_size[place] for place in sorted(places, reverse=True)][:SAMPLES]
