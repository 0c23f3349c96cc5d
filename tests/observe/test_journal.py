"""The journal: what happened, in order, and the same digest for the same run."""

from __future__ import annotations

from sollol.core.actions import WakeAt
from sollol.core.events import Tick
from sollol.observe.journal import Digest, Entry, Journal


def test_a_listener_hears_everything_until_it_leaves() -> None:
    journal = Journal()
    heard: list[Entry] = []
    leave = journal.subscribe(heard.append)
    journal.record(1, Tick(), [WakeAt(9)])
    journal.record(2, Tick(), [])
    journal.recording = False
    journal.record(3, Tick(), [])
    journal.recording = True
    leave()
    journal.record(3, Tick(), [])
    assert [(entry.at, list(entry.actions)) for entry in heard] == [(1, [WakeAt(9)]), (2, [])]


def test_the_digest_tells_runs_apart() -> None:
    def digest(*moments: int) -> str:
        journal, found = Journal(), Digest()
        journal.subscribe(found)
        for at in moments:
            journal.record(at, Tick(), [])
        return found.hexdigest()

    assert digest(1, 2) == digest(1, 2)
    assert len({digest(1, 2), digest(2, 1), digest(1), digest()}) == 4
