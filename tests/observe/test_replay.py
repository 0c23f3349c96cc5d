"""A journal replayed: the same events give the same decisions and the same state, in another process, too."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sollol import OllamaPool
from sollol.core.endpoint import Endpoint
from sollol.core.events import (
    Cancelled,
    Configure,
    Event,
    Finished,
    FirstToken,
    GpuReported,
    ItemsAdded,
    LearnedRestored,
    LoadEnded,
    LoadRequested,
    NodeAdded,
    NodeDrained,
    NodeLost,
    NodeOwned,
    NodeRemoved,
    NodeSeen,
    Refresh,
    Responding,
    Retested,
    Silence,
    Silent,
    Submitted,
    TaskFailed,
    Tick,
    UnloadRequested,
    WakeRequested,
)
from sollol.core.learned import learned_values
from sollol.core.types import Kind, LoadedModel, NodeFacts, Outcome, RoutingStrategy, Status, Task, Timing
from sollol.engine.engine import default_policies
from sollol.errors import BadInput
from sollol.observe import journal_file
from sollol.observe.journal import Entry
from sollol.observe.journal_file import PLAIN, READERS, JournalFile, event_from_values, event_to_values, replay
from sollol.sim import ModelSpec, sim_cluster
from tests.core.virtual import VirtualCluster
from tests.gateway.stage import MODEL as CHAT
from tests.gateway.stage import talker

FACTS = NodeFacts("0.33", {"m": 5}, {"m": LoadedModel(5, 5, "2026-01-01T00:00:00Z", 4096)}, {"m": "abc"}, ("/api/ps",))
EVENTS: list[Event] = [
    Submitted(Task(1, Kind.CHAT, "m", 10, prefix=((2**63 + 1, 5),), only=("a:1",), hedge=True, stream=True)),
    ItemsAdded(1, [1, 2], True), FirstToken(3, True), Responding(4), Cancelled(1, "why"), NodeRemoved("a:1"), Refresh(),
    NodeDrained("a:1", True), Tick(), Retested("a:1", "m", 5.0),
    NodeOwned("a:1", True, 5), GpuReported("a:1", 24 * 10**9, None), WakeRequested("a:1", "wanted"),
    LoadEnded("a:1", "m", Outcome(Status.TOO_LARGE, "no room", 500)),
    LoadRequested("a:1", "m", Kind.EMBED, "num_ctx=4096", "30m", "wanted"), UnloadRequested("a:1", "m", "not wanted"),
    Finished(5, Outcome(Status.BUSY, "try later", 503, Timing(1, 2, 3, 4, 5, 6, 7), 1_000)),
    NodeLost("a:1", "why", False),
    NodeAdded(Endpoint("h", 1, "https", "/p")), NodeSeen("h:1", FACTS), Silent((Silence(1, 2, 3, True, False),)),
    Configure(5, RoutingStrategy.FAIRNESS, True, {"m": "abc"}, {}), Configure(), LearnedRestored({"form": 1}),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_each_event_comes_back(event: Event) -> None:
    values = json.loads(json.dumps(event_to_values(event)))
    assert repr(event_from_values(type(event).__name__, values)) == repr(event)


def test_every_kind_of_event_is_known() -> None:
    assert {type(event).__name__ for event in EVENTS} | {"TaskFailed"} == set(READERS) | set(PLAIN)


def test_a_fault_comes_back_in_words() -> None:
    values = event_to_values(TaskFailed(1, ValueError("it broke")))
    event = event_from_values("TaskFailed", values)
    assert isinstance(event, TaskFailed)
    assert str(event.error) == "ValueError: it broke"


def test_no_credentials_are_written(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "x", 1, print)
    file(Entry(0, NodeAdded(Endpoint("h", 1, auth="user:secret", api_key="secret")), []))
    file.close()
    assert "secret" not in (tmp_path / "x").read_text()


class Recorded(VirtualCluster):
    """Writes each event and its actions to a journal."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scheduler = type(self.scheduler)(default_policies(), random.Random(5))
        self.file = JournalFile(path, 5, print)

    def feed(self, event: Event) -> list[Any]:
        found = super().feed(event)
        self.file(Entry(self.now, event, self.actions))
        return found


def worked(path: Path, events: int, seed: int) -> Recorded:
    """Return a cluster after so many events of all kinds, made from a seed."""
    rng, cluster = random.Random(seed), Recorded(path)
    nodes = [cluster.add(f"n{number}") for number in range(4)]
    written = 0
    while written < events:
        written += 1
        cluster.now += rng.randrange(1, 60_000)
        dice = rng.random()
        if dice < 0.45 and len(cluster.running) < 60:
            options = rng.choice(["", "num_ctx=2048", "num_ctx=8192", "num_ctx=2048,num_thread=2"])
            cluster.submit(
                cost=rng.randrange(1, 5_000), priority=rng.randrange(11), app=rng.choice("abc"), options=options
            )
        elif dice < 0.9 and cluster.running:
            attempt = rng.choice(sorted(cluster.running))
            start = cluster.running.pop(attempt)
            took_us = max(1, cluster.now - cluster.started_us[attempt])
            bad = rng.random() < 0.05
            outcome = Outcome(Status.FAILED, "broken", 500) if bad else Outcome(
                Status.OK, "", 200, Timing(1_000, 100, took_us // 10, 20, took_us // 2)
            )  # fmt: skip
            cluster.feed(Finished(start.attempt, outcome))
        elif dice < 0.93:
            node = rng.choice(nodes)
            cluster.feed(NodeLost(node, "it refused the connection"))
            cluster.see(node)
        elif dice < 0.95 and cluster.running:
            cluster.feed(Cancelled(cluster.running[rng.choice(sorted(cluster.running))].task))
        else:
            cluster.pass_time(rng.randrange(100_000))
    cluster.file.close()
    return cluster


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_has_the_same_state(tmp_path: Path, seed: int) -> None:
    cluster = worked(tmp_path / "j", 3_000, seed)
    found = replay(tmp_path / "j", default_policies())
    assert found.differs_at is None
    assert found.digests >= 6
    before, after = cluster.scheduler.view(), found.scheduler.view()
    assert list(after.tasks) == list(before.tasks)
    assert {key: repr(attempt.decision) for key, attempt in after.attempts.items()} == {
        key: repr(attempt.decision) for key, attempt in before.attempts.items()
    }
    assert learned_values(after) == learned_values(before)


def test_another_process_replays_it_alike(tmp_path: Path) -> None:
    """Sets of strings have another order there."""
    worked(tmp_path / "j", 2_000, 9)
    done = subprocess.run(
        [sys.executable, "-m", "sollol", "replay", str(tmp_path / "j"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["same"] is True


def test_a_changed_event_is_found(tmp_path: Path) -> None:
    worked(tmp_path / "j", 1_500, 2)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if number > 700 and '"Submitted"' in line)
    lines[place] = lines[place].replace('"model":"llama3.2:latest"', '"model":"other:latest"')
    (tmp_path / "j").write_text("".join(lines))
    found = replay(tmp_path / "j", default_policies())
    assert found.differs_at is not None
    assert 0 < found.differs_at <= place


def test_a_cut_journal_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    worked(tmp_path / "j", 1_200, 3)
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[: len(whole) * 2 // 3 + 7])
    found = replay(tmp_path / "j", default_policies())
    assert found.differs_at is None
    assert 0 < found.events < 1_300


HEAD = b'{"form":2,"seed":1}\n'
BROKEN = [
    b"", b"hello\n", b"[]\n", b'{"form":1,"seed":1}\n', b'{"form":2}\n', b'{"form":2,"seed":[1]}\n',
    HEAD + b'{"at":1,"event":"Nothing"}\n', HEAD + b'{"at":"x","event":"Tick"}\n', HEAD + b'{"at":1,"event":["a"]}\n',
    HEAD + b'{"at":1,"event":"Submitted","task":5}\n', HEAD + b'{"at":1,"event":"NodeSeen","node":"a","facts":5}\n',
    HEAD + b'{"at":1,"event":"NodeAdded","endpoint":1}\n', HEAD + b'{"at":1,"event":"Configure","strategy":"x"}\n',
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_what_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(BadInput):
        replay(tmp_path / "j", default_policies())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_the_journal_with_one_notice() -> None:
    notices: list[str] = []
    file = JournalFile(Path("/dev/full"), 1, notices.append)
    for number in range(5_000):
        file(Entry(number, Tick(), []))
    file.close()
    assert notices == ["the journal /dev/full ends here: No space left on device"]


def test_a_large_journal_ends_with_a_digest_and_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "MOST_BYTES", 1_000)
    notices: list[str] = []
    file = JournalFile(tmp_path / "j", 1, notices.append)
    for number in range(100):
        file(Entry(number, Tick(), []))
    file.close()
    (notice,) = notices
    assert "MB are written" in notice
    assert 0 < replay(tmp_path / "j", default_policies()).events < 100


def test_the_journal_of_a_real_pool_replays(tmp_path: Path) -> None:
    models = (*talker(1).models, ModelSpec("nomic-embed-text", "embed"))
    specs = [talker(number, 2_000.0, models=models) for number in (1, 2)]
    with sim_cluster(specs) as cluster, OllamaPool([*cluster.urls, "127.0.0.1:9"]) as pool:
        pool.record_journal(tmp_path / "j")

        def ask() -> None:
            for number in range(15):
                pool.generate(CHAT, f"Hello {number} from a secret place", options={"num_predict": 5})

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        pool.embed_batch("nomic-embed-text", [f"text {number}" for number in range(200)])
        for thread in threads:
            thread.join()
        with pytest.raises(BadInput, match="in use already"):
            pool.record_journal(tmp_path / "k")
    found = replay(tmp_path / "j", default_policies())
    assert found.differs_at is None
    assert found.events > 120
    assert not found.scheduler.view().tasks
    assert b"secret place" not in (tmp_path / "j").read_bytes()
