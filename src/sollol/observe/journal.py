"""What happens, told to those who want to hear of it at once: (moment, event, actions).

Nothing is kept of it here. What a listener makes of events is its to keep; of calls that are over, the pool's history
keeps what can be explained. (A ring of the last events cost each request of the gateway 3 %, and nobody read it.)
`Digest` turns a run into one string: two simulated runs from one seed must give the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sollol.core.actions import Action
from sollol.core.events import Event
from sollol.core.types import Micros


class Entry(NamedTuple):
    at: Micros
    event: Event
    actions: Sequence[Action]


class Journal:
    def __init__(self) -> None:
        self._listeners: list[Callable[[Entry], None]] = []
        self.recording = True  # False: nobody is told

    def record(self, at: Micros, event: Event, actions: Sequence[Action]) -> None:
        if self._listeners and self.recording:
            entry = Entry(at, event, actions)
            fault: Exception | None = None
            for listener in list(self._listeners):
                try:
                    listener(entry)
                except Exception as error:  # the others still hear of it
                    fault = error
            if fault is not None:
                raise fault

    def subscribe(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Call `listener` with every entry from now on; the result unsubscribes."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


class Digest:
    """A listener that hashes everything it hears."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def __call__(self, entry: Entry) -> None:
        self._hash.update(f"{entry.at} {entry.event} {entry.actions}\n".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
