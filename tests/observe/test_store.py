"""The store: what was written is there again, also after a crash, and bounded in age and size."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sollol import AsyncOllamaPool, OllamaPool
from sollol.errors import SollolError
from sollol.observe.request_filter import matcher
from sollol.observe.request_record import AttemptRecord, RequestRecord
from sollol.observe.store import INVENTED_MOST, Store, minutes_of
from sollol.sim import ModelSpec, sim_cluster
from tests.gateway.stage import MODEL, talker

AT = 1_796_000_040.0
EMBED = "nomic-embed-text"


def record(number: int = 1, at: float = AT, **more: Any) -> RequestRecord:
    given: dict[str, Any] = {
        "id": number, "at": at, "app": "a", "kind": "chat", "model": "m", "task_type": "chat", "priority": 5,
        "mode": "", "stream": False, "options": "", "node": "n:1", "outcome": "ok", "error": "",
        "http_status": 200, "attempts": [],
        "queue_s": 0.5, "actual_s": 1.0, "total_s": 1.5, "first_token_s": 0.7, "predicted_s": 1.0,
        "predicted_first_s": 0.1, "tokens_in": 10, "tokens_out": 20,
    } | more  # fmt: skip
    return RequestRecord(**given)


def test_requests_come_back_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "s" / "x.sqlite3")
    store.write([record(1), record(2, error="it broke", outcome="failed")], {}, None, AT)
    store.close()
    again = Store(tmp_path / "s" / "x.sqlite3")
    found = again.requests()
    assert [one.id for one in found] == [2, 1]
    assert found[0].error == "it broke"
    assert found[1] == record(1)
    again.close()


def test_requests_of_older_versions_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3")
    store.write([record(1)], {}, None, AT)
    with closing(sqlite3.connect(tmp_path / "x.sqlite3")) as db, db:
        db.execute("INSERT INTO requests (at, record) VALUES (?, ?)", (AT, msgspec.json.encode(record(2))))
    assert store.requests() == [record(2), record(1)]
    store.close()


def test_a_search_finds_by_words_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3")
    store.write([record(number, model="m" if number % 2 else "other") for number in range(1, 11)], {}, None, AT)
    first = store.search(matcher("model:other"), 3)
    assert [one.id for _, one in first] == [10, 8, 6]
    assert [one.id for _, one in store.search(matcher("model:other"), 3, first[-1][0])] == [4, 2]
    assert store.search(matcher("model:none"), 3) == []
    store.close()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", [1, 2, 3, 4]),
        ("model:LLAMA", [1, 2]),
        ("model:llama failed", [2]),
        ("late", [3]),
        ("node:gpu app:flock", [4]),
        ("broke", [2]),
        ("2", [1, 2]),
        ("kind:embed", []),
        ("http://x", []),
    ],
)
def test_the_filter_takes_words_and_fields(words: str, found: list[int]) -> None:
    records = [
        record(1, model="llama3.2"),
        record(2, model="llama3.2", outcome="failed", error="It broke"),
        record(3, actual_s=9.0),
        record(4, node="gpu1:11434", app="Flock"),
    ]
    wanted = matcher(words)
    assert [one.id for one in records if wanted(one)] == found


@pytest.mark.skipif(os.name == "nt", reason="no modes of files")
def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3")
    store.write([record()], {}, None, AT)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}
    store.close()


def test_minutes_are_sums_by_node_and_model() -> None:
    failed = AttemptRecord("b:1", "first", "failed", "500", 0.0, 0.1, 0.2)
    left = AttemptRecord("c:1", "hedge", "left", "", 0.0, 0.1, 0.2)
    sums = minutes_of([record(1), record(2, attempts=[failed, left]), record(3, at=AT + 60)])
    minute = int(AT // 60)
    assert sums[minute, "n:1", "m"] == [2, 0, 0, 20, 40, 0, 3.0, 1.0, 1.4, 2]
    assert sums[minute, "b:1", "m"][2] == 1
    assert (minute, "c:1", "m") not in sums
    assert sums[minute + 1, "n:1", "m"][0] == 1


def test_invented_names_do_not_fill_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3")
    for write in range(4):
        invented = [record(model=f"m{write}-{number}", node="", outcome="no node") for number in range(50)]
        store.write([*invented, record(model=f"real{write}")], {}, None, AT)
    store.write([record(model="later", node="", outcome="no node", at=AT + 60)], {}, None, AT + 60)
    store.close()
    with closing(sqlite3.connect(tmp_path / "x.sqlite3")) as db:
        rows = dict(db.execute("SELECT model, sum(requests) FROM minutes GROUP BY model"))
    assert len(rows) == INVENTED_MOST + 1 + 4 + 1
    assert rows["other"] == 200 - INVENTED_MOST
    assert rows["real3"] == rows["later"] == 1


def test_the_same_minute_adds_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3")
    for _ in range(3):
        store.write([record()], {("n:1", "e"): 100.0}, None, AT)
    series = store.series("1d", ["n:1", "other:1"], AT)
    assert sum(series["requests"][0]) * series["step_s"] == pytest.approx(3, abs=0.1)
    assert sum(series["items"][0]) * series["step_s"] == pytest.approx(300, abs=0.1)
    assert series["requests"][1] == [0.0] * len(series["at"])
    assert [value for value in series["first_token_p50_s"] if value is not None] == [0.7]
    assert len(series["at"]) == 144
    assert series["at"][-1] <= AT < series["at"][-1] + series["step_s"]
    store.close()


def test_age_and_number_are_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite3", days=1.0, requests=5)
    store.write([record(number, at=AT - 3 * 86_400) for number in range(20)], {}, None, AT)
    for number in range(60):
        store.write([record(100 + number)], {}, None, AT)
    assert len(store.requests()) <= 5 + 60
    store.write([], {}, None, AT)
    with closing(sqlite3.connect(store.path)) as db:
        assert db.execute("SELECT min(minute) FROM minutes").fetchone()[0] == int(AT // 60)
        assert db.execute("SELECT count(*) FROM requests").fetchone()[0] <= 6
    store.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5_000])
def test_a_file_that_is_no_store_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite3"
    path.write_bytes(content)
    store = Store(path)
    assert store.put_aside is not None
    assert store.put_aside.read_bytes() == content
    store.write([record()], {}, None, AT)
    assert len(store.requests()) == 1
    store.close()


def test_damage_in_the_middle_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    store = Store(path)
    store.write([record(number) for number in range(500)], {}, {"form": 1}, AT)
    store.close()
    whole = path.read_bytes()
    for place in range(100, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + os.urandom(64) + whole[place + 64 :])
        again = Store(path)
        again.write([record()], {}, None, AT)
        again.learned()
        again.close()
        for left in tmp_path.iterdir():
            left.unlink()


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with sim_cluster([talker(1)]) as cluster, OllamaPool(cluster.urls) as pool:
        pool.generate(MODEL, "Hello", options={"num_predict": 1})
        with pytest.raises(SollolError, match="cannot be opened"):
            pool.use_store(tmp_path / "file" / "x.sqlite3")


def test_a_pool_keeps_its_history(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    spec = talker(1, 5_000.0, models=(*talker(1).models, ModelSpec(EMBED, "embed")))
    with sim_cluster([spec]) as cluster:
        with OllamaPool(cluster.urls) as pool:
            pool.use_store(path)
            for _ in range(4):
                pool.generate(MODEL, "Hello", options={"num_predict": 5})
            pool.embed_batch(EMBED, [f"text {number}" for number in range(30)])
            assert pool.overview()["spans"] == ["5m", "1h", "1d", "30d"]
        store = Store(path)
        kinds = [one.kind for one in store.requests()]
        assert kinds == ["embed", "generate", "generate", "generate", "generate"]
        assert b"Hello" not in path.read_bytes()
        series = store.series("1d", [cluster.urls[0].removeprefix("http://")], time.time())
        assert sum(series["items"][0]) * series["step_s"] == pytest.approx(30, abs=0.5)
        store.close()


def test_predictions_after_a_restart_are_as_good_as_before(tmp_path: Path) -> None:
    """The rates, the lengths and the slots of before are there at the first request."""
    path = tmp_path / "x.sqlite3"
    specs = [talker(1, 400.0, num_parallel=4), talker(2, 100.0)]

    async def ask(pool: AsyncOllamaPool, calls: int) -> list[float]:
        ratios = []
        for _ in range(calls):
            answer = await pool.generate(MODEL, "Hello there", options={"num_predict": 40})
            ratios.append(answer.routing.actual_ms / answer.routing.predicted_ms)
        return sorted(ratios)

    async def main(urls: list[str]) -> tuple[list[float], list[float], dict[str, Any]]:
        found = []
        for calls in (30, 12):
            pool = AsyncOllamaPool(urls)
            pool.use_store(path)
            async with pool:
                found.append(await ask(pool, calls))
                slots = {node["host"]: node["slots"] for node in pool.snapshot()["nodes"]}
        return found[0], found[1], slots

    with sim_cluster(specs) as cluster:
        _, after, _ = asyncio.run(main(cluster.urls))
    assert 0.5 < after[len(after) // 2] < 2.0, after


CRASH = """
import sys, time
from pathlib import Path
from sollol.observe.store import Store
from tests.observe.test_store import record
store = Store(Path(sys.argv[1]))
for number in range(10**9):
    store.write([record(number, at=time.time()) for _ in range(20)], {}, {"form": 1, "n": number}, time.time())
    print(number, flush=True)
"""


def test_a_killed_program_leaves_a_readable_store(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    written = 0
    for round_ in range(5):
        process = subprocess.Popen([sys.executable, "-c", CRASH, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3 + round_)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        written += 20 * len(lines)
        store = Store(path)
        assert store.put_aside is None
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM requests").fetchone()[0] >= written
            written = db.execute("SELECT count(*) FROM requests").fetchone()[0]
        assert store.learned()["form"] == 1
        store.close()
