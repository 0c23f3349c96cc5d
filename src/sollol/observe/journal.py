"""What happened: a bounded ring of (moment, event, actions), and those who want to hear of it at once.

Recording is one assignment to a place of a list, so everything is recorded; an entry gets its form when it is read.
`digest` turns a run into one string: two simulated runs from one seed must give the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sollol.core.messages import Action, Event
from sollol.core.ring import Ring
from sollol.core.types import Micros

CAPACITY = 100  # what listeners make of events is theirs to keep; more would leave the processor's caches


class Entry(NamedTuple):
    at: Micros
    event: Event
    actions: Sequence[Action]


class Journal:
    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: Ring[tuple[Micros, Event, Sequence[Action]]] = Ring(capacity)
        self._listeners: list[Callable[[Entry], None]] = []
        self.recording = True  # False: nothing is kept, and nobody is told

    def record(self, at: Micros, event: Event, actions: Sequence[Action]) -> None:
        if not self.recording:
            return
        self._ring.add((at, event, actions))
        if self._listeners:
            entry = Entry(at, event, actions)
            for listener in self._listeners:
                listener(entry)

    def subscribe(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Call `listener` with every entry from now on; the result unsubscribes."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry._make, self._ring)

    def __len__(self) -> int:
        return len(self._ring)


class Digest:
    """A listener that hashes everything it hears."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def __call__(self, entry: Entry) -> None:
        self._hash.update(f"{entry.at} {entry.event} {entry.actions}\n".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
