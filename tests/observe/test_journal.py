"""The journal: what happened, in order, bounded, and the same digest for the same run."""

from __future__ import annotations

from sollol.core.messages import Tick, WakeAt
from sollol.observe.journal import Digest, Entry, Journal


def test_it_keeps_the_last_events_in_order() -> None:
    journal = Journal(capacity=3)
    for at in range(5):
        journal.record(at, Tick(), [])
    assert [entry.at for entry in journal] == [2, 3, 4]
    assert len(journal) == 3


def test_a_listener_hears_everything_until_it_leaves() -> None:
    journal = Journal(capacity=1)
    heard: list[Entry] = []
    leave = journal.subscribe(heard.append)
    journal.record(1, Tick(), [WakeAt(9)])
    journal.record(2, Tick(), [])
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
