"""Store of finished requests, work by minute, and what was learned: one SQLite file.

Everything is written by one thread, once a second, in one transaction in WAL mode: after a crash at most the last
second is missing, and a request never waits for the disk. Age and number of rows are bounded. A file that cannot be
read is put aside under another name, and a new one is begun.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from sollol.observe.metrics import OTHER
from sollol.observe.request_record import RequestRecord

FORM: Final = 1  # of the tables
PRIVATE: Final = 0o600
DAYS: Final = 30.0
REQUESTS_MOST: Final = 100_000
DAY_S: Final = 86_400.0
PRUNED_EVERY: Final = 60  # writes
INVENTED_MOST: Final = 20  # models of a minute that no node was tried for; more are added up as OTHER
SPANS: Final = {"1d": (DAY_S, 600), "30d": (30 * DAY_S, 21_600)}  # span, and the step of its intervals, in seconds
CREATE: Final = """
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, at REAL NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS minutes (
  minute INTEGER NOT NULL, node TEXT NOT NULL, model TEXT NOT NULL,
  requests INTEGER NOT NULL, failed INTEGER NOT NULL, errors INTEGER NOT NULL, tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL, items REAL NOT NULL, duration_s REAL NOT NULL, queue_s REAL NOT NULL,
  first_token_s REAL NOT NULL, first_tokens INTEGER NOT NULL, PRIMARY KEY (minute, node, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learned (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
SUMS: Final = (
    "requests", "failed", "errors", "tokens_in", "tokens_out", "items", "duration_s", "queue_s", "first_token_s",
    "first_tokens",
)  # fmt: skip
REQUESTS, FAILED, ERRORS, TOKENS_IN, TOKENS_OUT, ITEMS, DURATION, QUEUE, FIRST_TOKEN, FIRST_TOKENS = range(len(SUMS))
ADD: Final = (
    f"INSERT INTO minutes (minute, node, model, {', '.join(SUMS)}) VALUES (?, ?, ?{', ?' * len(SUMS)}) "
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in SUMS)}"
)

_encode: Final = msgspec.msgpack.Encoder().encode  # a quarter of the time of JSON
_decode: Final = msgspec.msgpack.Decoder(RequestRecord).decode
_decode_json: Final = msgspec.json.Decoder(RequestRecord).decode
Minutes = dict[tuple[int, str, str], list[float]]


class Store:
    """One SQLite file. All methods are called by one thread at a time.

    Args:
        path: The file; its folder is made.
        days: Age of the oldest minute that is kept.
        requests: Number of finished requests that are kept.

    Raises:
        OSError: The folder cannot be made.
        sqlite3.Error: The file cannot be opened, for another reason than its content.
    """

    def __init__(self, path: Path, *, days: float = DAYS, requests: int = REQUESTS_MOST) -> None:
        self.path = path
        self.put_aside: Path | None = None  # an unreadable file of before
        self._days = days
        self._requests = requests
        self._writes = 0
        self._invented: tuple[int, set[str]] = (0, set())  # of the newest minute
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self.put_aside = _put_aside(path)
            self._db = _opened(path)

    def write(
        self,
        records: Iterable[RequestRecord],
        items: Mapping[tuple[str, str], float],
        learned: Mapping[str, Any] | None,
        at: float,
    ) -> None:
        """Write finished requests, embedded texts by (node, model), and what was learned, in one transaction."""
        records = list(records)
        minutes = self._bounded(minutes_of(records))
        for (node, model), number in items.items():
            minutes.setdefault((int(at // 60), node, model), [0.0] * len(SUMS))[ITEMS] += number
        with self._db:
            self._db.executemany(
                "INSERT INTO requests (at, record) VALUES (?, ?)",
                [(record.at, _encode(record)) for record in records],
            )
            self._db.executemany(ADD, [(*key, *sums) for key, sums in minutes.items()])
            if learned is not None:
                row = ("scheduler", msgspec.json.encode(learned))
                self._db.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", row)
            self._writes += 1
            if self._writes % PRUNED_EVERY == 1:
                self._prune(at)

    def _bounded(self, minutes: Minutes) -> Minutes:
        """Return the sums with those of too many models without a node added up: callers may invent any name."""
        found: Minutes = {}
        for (minute, node, model), sums in minutes.items():
            if not node:
                if minute > self._invented[0]:
                    self._invented = (minute, set())
                known = self._invented[1]
                model = model if model in known or len(known) < INVENTED_MOST else OTHER
                known.add(model)
            before = found.setdefault((minute, node, model), [0.0] * len(SUMS))
            found[minute, node, model] = [one + more for one, more in zip(before, sums, strict=True)]
        return found

    def _prune(self, at: float) -> None:
        self._db.execute("DELETE FROM minutes WHERE minute < ?", (int((at - self._days * DAY_S) // 60),))
        self._db.execute("DELETE FROM requests WHERE id <= (SELECT max(id) FROM requests) - ?", (self._requests,))

    def learned(self) -> dict[str, Any]:
        """Return what was learned before, {} if nothing was."""
        row = self._db.execute("SELECT value FROM learned WHERE name = 'scheduler'").fetchone()
        try:
            found = msgspec.json.decode(row[0]) if row else {}
        except msgspec.DecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    def requests(self, most: int = 100, before: int | None = None) -> list[RequestRecord]:
        """Return the last finished requests, the newest first; those before the row `before`."""
        rows = self._db.execute(
            "SELECT record FROM requests WHERE id < ? ORDER BY id DESC LIMIT ?", (before or 2**62, most)
        )
        return [_decoded(row[0]) for row in rows]

    def search(
        self, wanted: Callable[[RequestRecord], bool], most: int, before: int | None = None
    ) -> list[tuple[int, RequestRecord]]:
        """Return the newest finished requests that are `wanted`, each with its row; those before the row `before`.

        It reads through a connection of its own, so that it may run in any thread.
        """
        found: list[tuple[int, RequestRecord]] = []
        with closing(sqlite3.connect(self.path, timeout=1.0)) as db:
            rows = db.execute("SELECT id, record FROM requests WHERE id < ? ORDER BY id DESC", (before or 2**62,))
            for number, content in rows:
                record = _decoded(content)
                if wanted(record):
                    found.append((number, record))
                    if len(found) == most:
                        break
        return found

    def series(self, span: str, nodes: Iterable[str], at: float) -> dict[str, Any]:
        """Return the work of each node over the last day ("1d") or month ("30d"), as columns of rates per second.

        It reads through a connection of its own, so that it may run in any thread.
        """
        span_s, step_s = SPANS[span]
        nodes = list(nodes)
        first = int((at - span_s) // step_s) + 1
        size = int(at // step_s) - first + 1
        columns: dict[str, list[list[float]]] = {
            name: [[0.0] * size for _ in nodes] for name in ("requests", "tokens", "items", "errors")
        }
        failed, token_s, tokens = [0.0] * size, [0.0] * size, [0.0] * size
        places = {node: place for place, node in enumerate(nodes)}
        with closing(sqlite3.connect(self.path, timeout=1.0)) as db:
            rows = db.execute(
                "SELECT minute * 60 / ?, node, sum(requests), sum(tokens_out), sum(items), sum(errors), sum(failed), "
                "sum(first_token_s), sum(first_tokens) FROM minutes WHERE minute >= ? GROUP BY 1, 2",
                (step_s, first * step_s // 60),
            ).fetchall()
        for number, node, *sums in rows:
            slot = number - first
            if not 0 <= slot < size:
                continue
            failed[slot] += sums[4]
            token_s[slot] += sums[5]
            tokens[slot] += sums[6]
            if node in places:
                for name, value in zip(columns, sums[:4], strict=True):
                    columns[name][places[node]][slot] = round(value / step_s, 4)
        first_token_s: list[float | None] = [
            round(total / number, 4) if number else None for total, number in zip(token_s, tokens, strict=True)
        ]
        return {
            "step_s": step_s,
            "at": [(first + number) * step_s for number in range(size)],
            "nodes": nodes,
            **columns,
            "failed": failed,
            "waiting": [0] * size,
            "running": [0] * size,
            "first_token_p50_s": first_token_s,
            "first_token_p95_s": [None] * size,
        }

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def minutes_of(records: Iterable[RequestRecord]) -> Minutes:
    """Return the sums of finished requests by (minute, node, model), in the order of SUMS."""
    found: Minutes = {}
    for record in records:
        minute = int(record.at // 60)
        key = (minute, "" if record.items else record.node, record.model)
        sums = found.get(key) or found.setdefault(key, [0.0] * len(SUMS))
        sums[REQUESTS] += 1
        sums[FAILED] += not record.ok
        sums[TOKENS_IN] += record.tokens_in
        sums[TOKENS_OUT] += record.tokens_out
        sums[DURATION] += record.total_s
        sums[QUEUE] += record.queue_s
        first_s = record.first_token_s
        if first_s is not None:
            sums[FIRST_TOKEN] += first_s
            sums[FIRST_TOKENS] += 1
        for attempt in record.attempts:
            if attempt.outcome not in ("ok", "left"):
                found.setdefault((minute, attempt.node, record.model), [0.0] * len(SUMS))[ERRORS] += 1
    return found


def _decoded(content: bytes) -> RequestRecord:
    """Return a stored record. Those of older versions are JSON."""
    found: RequestRecord = _decode_json(content) if content.startswith(b"{") else _decode(content)
    return found


def _opened(path: Path) -> sqlite3.Connection:
    path.touch(PRIVATE, exist_ok=True)  # names of applications and errors are for its owner only
    db = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        form = db.execute("PRAGMA user_version").fetchone()[0]
        if form not in (0, FORM):
            raise sqlite3.DatabaseError(f"the store has form {form}; expected {FORM}")
        db.executescript(CREATE)
        db.execute(f"PRAGMA user_version = {FORM}")
        with closing(db.execute("PRAGMA quick_check(1)")) as checked:
            if checked.fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the store is damaged")
        for table in ("requests", "minutes", "learned"):  # a damaged page shows when it is read
            db.execute(f"SELECT count(*) FROM {table}").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _put_aside(path: Path) -> Path:
    """Rename a file that cannot be read, with its log; return the new name."""
    other = path.with_name(f"{path.name}.unreadable-{time.time():.0f}")
    for suffix in ("", "-wal", "-shm"):
        old = Path(f"{path}{suffix}")
        if old.exists():
            old.rename(f"{other}{suffix}")
    return other
