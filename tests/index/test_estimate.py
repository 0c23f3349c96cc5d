"""How far `sollol embed` is, and how long it will take: on folders of all kinds of files, in any order."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from sollol.cli import progress
from sollol.cli.progress import Count, Progress
from sollol.index.chunks import Cut
from sollol.index.documents import Documents
from sollol.workload.cost import item_cost
from tests.cli.fakes import FakePool

CUT = Cut(500, 50)
WITHIN = 0.15


def words(count: int, dice: random.Random) -> str:
    return " ".join(dice.choice(["node", "batch", "a", "vector", "queue", "is", "slow"]) for _ in range(count))


def text(path: Path, size: int, dice: random.Random) -> None:
    path.with_suffix(".md").write_text("\n\n".join(words(80, dice) for _ in range(size)))


def lines(path: Path, size: int, dice: random.Random) -> None:
    rows = (json.dumps({"text": words(12, dice), "id": number}) for number in range(size * 12))
    path.with_suffix(".jsonl").write_text("\n".join(rows))


def rows(path: Path, size: int, dice: random.Random) -> None:
    path.with_suffix(".csv").write_text("a,b\n" + "\n".join(f"{words(5, dice)},{n}" for n in range(size * 15)))


def page(path: Path, size: int, dice: random.Random) -> None:
    style = "<style>" + "p { color: red } " * 400 * max(1, size // 10) + "</style>"
    path.with_suffix(".html").write_text(style + "".join(f"<p>{words(60, dice)}</p>" for _ in range(size)))


KINDS = {"text": text, "lines": lines, "rows": rows, "page": page}
MIXES: dict[str, list[tuple[str, int, int]]] = {  # kind, files, size of the largest
    "pages last": [("text", 30, 40), ("page", 30, 40)],
    "lines last": [("text", 20, 60), ("lines", 10, 60)],
    "short rows last": [("page", 30, 30), ("rows", 6, 80)],
    "all kinds": [("page", 20, 30), ("text", 20, 50), ("rows", 5, 60), ("lines", 8, 50)],
    "many small, one large": [("text", 120, 2), ("lines", 1, 300)],
    "one large file": [("lines", 1, 400)],
    "large text last": [("rows", 10, 30), ("text", 3, 300)],
}


def folder(root: Path, mix: str) -> None:
    dice = random.Random(mix)
    for order, (kind, files, largest) in enumerate(MIXES[mix]):
        for number in range(files):
            KINDS[kind](root / f"{order}-{number:03}", dice.randint(max(1, largest // 4), largest), dice)


class Run:
    """`sollol embed` in simulated time: passages are embedded in turn, at so much cost a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.count = Count(0, 0.0, False, 0)
        monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def through(self, root: Path, said: Callable[[], str]) -> tuple[list[float], list[tuple[float, float]]]:
        """The shares that are shown, and (moment, seconds left), five times a second."""
        documents = Documents([root])
        shares: list[float] = []
        left: list[tuple[float, float]] = []
        ahead: list[int] = []
        told_at, done = 0.0, 0
        passages = documents.passages(CUT)
        with Progress(lambda: self.count, FakePool().get_stats) as shown:
            while True:
                while len(ahead) < 256 and (found := next(passages, None)) is not None:
                    ahead.append(item_cost(found.text))  # reading is ahead of embedding
                if not ahead:
                    break
                self.now += ahead.pop(0) / 20_000
                done += 1
                total, cost = documents.estimate.total(), documents.estimate.cost_of(done)
                self.count = Count(done, total.passages, documents.all_read, done, cost, total.cost)
                if self.now - told_at >= 0.2:
                    told_at = self.now
                    shown.tick()
                    line = said()
                    share = re.search(r"\((\d+)%\)", line)
                    rest = re.search(r"([\d.]+) (s|min) ?(\d+)?.* left", line)
                    assert share, line
                    shares.append(int(share[1]) / 100)
                    if rest:
                        seconds = float(rest[1]) if rest[2] == "s" else 60 * float(rest[1]) + float(rest[3] or 0)
                        left.append((self.now, seconds))
        assert done == documents.estimated_total()
        return shares, left


@pytest.mark.parametrize("mix", MIXES)
def test_the_share_never_goes_back_and_the_time_is_right_from_a_third_on(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, mix)
    run = Run(monkeypatch)
    shares, left = run.through(tmp_path, lambda: capsys.readouterr().err)
    assert shares == sorted(shares)
    assert all(share < 1.0 for share in shares[:-1])
    late = [(at, rest) for at, rest in left if at > run.now / 3]
    assert len(late) > 5
    wrong = [(at / run.now, (at + rest) / run.now) for at, rest in late if abs(at + rest - run.now) > WITHIN * run.now]
    assert wrong == []


def test_what_is_estimated_is_in_the_end_exact(tmp_path: Path) -> None:
    folder(tmp_path, "all kinds")
    documents = Documents([tmp_path])
    texts = [passage.text for passage in documents.passages(CUT)]
    total = documents.estimate.total()
    assert (total.passages, total.cost) == (len(texts), sum(map(item_cost, texts)))


def test_what_is_wrong_with_a_file_is_told_once(tmp_path: Path) -> None:
    folder(tmp_path, "pages last")
    (tmp_path / "9.jsonl").write_text("this is no JSON\n")
    documents = Documents([tmp_path])
    list(documents.passages(CUT))
    assert [Path(file).name for file, _ in documents.skipped] == ["9.jsonl"]


def test_a_share_that_was_too_high_goes_on_slower_and_not_back() -> None:
    shown = Progress(lambda: Count(0, 0, False, 0), FakePool().get_stats)
    totals = [1000.0] * 5 + [4000.0] * 35
    shares = [shown._shown_share(Count(100 * step, total, False, 0)) for step, total in enumerate(totals, 1)]
    assert all(before < after for before, after in pairwise(shares))
    assert shares[4] == 0.5
    assert shares[-1] == 1.0
