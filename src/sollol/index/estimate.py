"""Estimate the number of passages in files and their cost, while they are read.

Kinds of files differ: a PDF has a hundredth of the passages per byte of a text. So soon after the start a few files of
each kind are sampled, spread over their sizes, each for a moment at most. A read or sampled file counts with its own
amount; the others of its kind count by their bytes, with one passage at least.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

SAMPLES: Final = 6  # files sampled of each kind
SAMPLE_S: Final = 1.5  # time limit in total
FILE_S: Final = 0.15  # time limit per file; the rest is extrapolated
BEGUN: Final = 0.05  # share of the current file after which its own rate is used


class Amount(NamedTuple):
    """A number of passages and their cost."""

    passages: float
    cost: float


class Step(NamedTuple):
    """A passage that was read: its cost, and the position in its file in bytes."""

    cost: int
    within: float


class Estimate:
    """Amounts of some files. The reader reports its progress; `total` can be called at any time."""

    def __init__(self, files: Sequence[Path], sizes: dict[Path, int]) -> None:
        self._files = files
        self._sizes = sizes
        self.finished = 0
        self.useful = 0  # files read with a passage
        self._ends = array("Q")  # total cost after each passage
        self._first = 0  # number of the current file's first passage
        self._within = 0.0
        self._amounts: dict[Path, Amount] = {}
        self._rest: Amount | None = None  # of the files after the current one; None: outdated
        self._summed_at = 0

    # --- reports of the reader ---

    @property
    def passages(self) -> int:
        """The number of passages read."""
        return len(self._ends)

    def read(self, step: Step) -> None:
        """Record a passage."""
        self._ends.append(self.cost_of(len(self._ends)) + step.cost)
        self._within = step.within

    def finish(self) -> None:
        """Record the end of the current file."""
        file = self._files[self.finished]
        count = len(self._ends) - self._first
        self._amounts[file] = Amount(count, self.cost_of(len(self._ends)) - self.cost_of(self._first))
        self.finished += 1
        self.useful += count > 0
        self._first = len(self._ends)
        self._within = 0.0
        if self._rest is None or self.finished - self._summed_at > len(self._files) / 200:
            self._rest = None

    def sample(self, read: Callable[[Path], Iterator[Step]]) -> None:
        """Read a part of a few files of each kind that are still to come."""
        until = time.monotonic() + SAMPLE_S
        kinds: dict[str, list[Path]] = {}
        for file in self._files[self.finished + 1 :]:
            kinds.setdefault(file.suffix.lower(), []).append(file)
        picks = [_spread(files, self._sizes) for files in kinds.values()]
        for turn in range(SAMPLES):  # a file of each kind, then the next of each
            for files in picks:
                if turn < len(files) and time.monotonic() < until:
                    self._amounts.setdefault(files[turn], _sampled(read(files[turn]), self._sizes[files[turn]]))
        self._rest = None

    # --- results ---

    def cost_of(self, passages: int) -> int:
        """Return the cost of the first passages."""
        return self._ends[min(passages, len(self._ends)) - 1] if passages and self._ends else 0

    def total(self) -> Amount:
        """Return the amount of all files; exact after all files, 0 before the first passage."""
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
        guess = self._amounts.get(file) or self._guess(file)
        if share >= BEGUN:
            guess = Amount(passages / share, cost / share)
        return Amount(max(passages, guess.passages), max(cost, guess.cost))

    def _sum(self) -> Amount:
        rates = self._rates()
        passages = cost = 0.0
        for file in self._files[self.finished + 1 :]:
            amount = self._amounts.get(file) or self._guess(file, rates)
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
        rows = list(self._amounts.items())
        if self._within:
            cost = self.cost_of(len(self._ends)) - self.cost_of(self._first)
            rows.append((self._files[self.finished], Amount(len(self._ends) - self._first, cost)))
        for file, amount in rows:
            size = self._within if file not in self._amounts else self._sizes[file]
            for kind in ("", file.suffix.lower()):
                row = sums.setdefault(kind, [0.0, 0.0, 0.0])
                row[0] += amount.passages
                row[1] += amount.cost
                row[2] += size
        return {kind: Amount(row[0] / max(row[2], 1.0), row[1] / max(row[2], 1.0)) for kind, row in sums.items()}


def _sampled(steps: Iterator[Step], size: int) -> Amount:
    """Read a file for a moment and extrapolate."""
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
    """Choose files spread evenly over the bytes of a kind: mostly large ones, which matter most."""
    by_size = sorted(files, key=lambda file: (sizes[file], str(file)))
    sums = list(accumulate(sizes[file] for file in by_size))
    places = {bisect_left(sums, sums[-1] * (2 * turn + 1) / (2 * SAMPLES)) for turn in range(SAMPLES)}
    places |= {len(by_size) - 1, len(by_size) // 2}
    return [by_size[place] for place in sorted(places, reverse=True)][:SAMPLES]
