"""Publish each event of the scheduler with its time and its actions to listeners.

The journal stores nothing: a ring of the last events cost 3 % of each request. Finished calls are in the engine's
history. `Digest` reduces a run to one string: two simulated runs from one seed must give the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sollol.core.actions import Action
from sollol.core.events import Event
from sollol.core.types import Micros


class Entry(NamedTuple):
    """One event of the scheduler at `at` (microseconds), and the actions that followed."""

    at: Micros
    event: Event
    actions: Sequence[Action]


class Journal:
    """Notify listeners of the scheduler's events."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Entry], None]] = []
        self.recording = True  # False: listeners are not notified

    def record(self, at: Micros, event: Event, actions: Sequence[Action]) -> None:
        """Notify all listeners of an event; raise the last error of a listener at the end."""
        if self._listeners and self.recording:
            entry = Entry(at, event, actions)
            fault: Exception | None = None
            for listener in list(self._listeners):
                try:
                    listener(entry)
                except Exception as error:  # the other listeners are still notified
                    fault = error
            if fault is not None:
                raise fault

    def subscribe(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Register a listener for all further entries; return the function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


class Digest:
    """A listener that hashes all entries."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def __call__(self, entry: Entry) -> None:
        """Add an entry to the hash."""
        self._hash.update(f"{entry.at} {entry.event} {entry.actions}\n".encode())

    def hexdigest(self) -> str:
        """Return the hash of all entries so far."""
        return self._hash.hexdigest()
