"""The commands `embed` and `search` from the outside, over a pool that is not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from sollol.cli import console, fleet, progress
from sollol.errors import BadInput, NoNodeAvailable
from tests.cli.fakes import FakePool, vector_of

Run = Callable[..., Result]
Pool = Callable[..., FakePool]


def texts_in(file: Path) -> list[str]:
    with np.load(file) as data:
        texts: list[str] = data["texts"].tolist()
    return texts


def test_a_folder_becomes_an_index_in_the_order_of_its_documents(
    run: Run, pool: Pool, docs: Path, tmp_path: Path
) -> None:
    fake = pool()
    out = tmp_path / "x.npz"
    result = run("embed", docs, "--model", "m", "--out", out)
    assert "36 passages from 12 files, 8 numbers each, model m" in result.stdout
    assert "a:1" in result.stdout
    with np.load(out) as data:
        assert data["sources"].tolist() == sorted(data["sources"].tolist())
        assert np.array_equal(data["vectors"], np.stack([vector_of(text) for text in data["texts"].tolist()]))
        assert set(data["texts"].tolist()) == set(fake.asked)
    assert not list(tmp_path.glob("*.partial"))


def test_json_is_one_value_on_stdout(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    pool()
    (docs / "empty.txt").touch()
    result = run("embed", docs, "-m", "m", "-o", tmp_path / "x.jsonl", "--json")
    told = json.loads(result.stdout)
    assert told["passages"] == told["embedded"] == 36
    assert told["files"] == 12
    assert told["skipped"] == [{"file": str(docs / "empty.txt"), "why": "is empty"}]
    assert told["nodes"] == [{"node": "a:1", "items": 3, "share": 1.0, "items_per_s": 9.0, "state": "working"}]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt, 130, "Interrupted: 10 vectors are kept in"),
        (lambda: NoNodeAvailable("every node failed"), 1, "every node failed\n10 vectors are kept in"),
    ],
)
def test_an_interrupted_run_continues_and_gives_the_same_file(
    run: Run, pool: Pool, docs: Path, tmp_path: Path, error: Any, code: int, says: str
) -> None:
    out, whole = tmp_path / "x.npz", tmp_path / "whole.npz"
    first = pool(stop_after=10, error=error)
    command = ("embed", docs, "--model", "m", "--out")
    assert says in run(*command, out, code=code).stderr
    assert not out.exists()
    assert (tmp_path / "x.npz.partial").exists()
    second = pool()
    assert "Continuing: 10 vectors" in run(*command, out).stderr
    assert len(second.asked) == 36 - 10
    assert set(first.asked) | set(second.asked) == set(texts_in(out))
    run(*command, whole)
    assert out.read_bytes() == whole.read_bytes()


def test_a_finished_index_is_brought_up_to_date(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    command = ("embed", docs, "--model", "m", "--out", out)
    pool()
    run(*command)
    (docs / "new.md").write_text("Something new.")
    (docs / "03.txt").unlink()
    fake = pool()
    assert "34 passages" in run(*command).stdout
    assert fake.asked == ["Something new."]


def test_without_anything_new_no_node_is_needed(
    run: Run, pool: Pool, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("embed", docs, "--model", "m", "--out", tmp_path / "x.npz")
    pool()
    run(*command)
    monkeypatch.setattr(fleet, "choose", lambda option: pytest.fail("a node was looked for"))
    assert "0 embedded, 36 reused" in run(*command).stdout


def test_what_cannot_be_read_is_listed_and_strict_embeds_nothing(
    run: Run, pool: Pool, docs: Path, tmp_path: Path
) -> None:
    fake = pool()
    (docs / "bad.pdf").write_bytes(b"no pdf")
    command = ("embed", docs, "--model", "m", "--out", tmp_path / "x.npz")
    refused = run(*command, "--strict", code=1)
    assert "nothing was embedded" in refused.stderr
    assert "bad.pdf is not a PDF" in refused.stderr
    assert not fake.asked
    assert not list(tmp_path.glob("x.npz*"))
    result = run(*command)
    assert "Skipped (1):" in result.stderr
    assert "bad.pdf is not a PDF" in result.stderr


def test_a_refused_passage_is_named_and_left_out(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    pool(refuses="Sentence 0 of file 7 ")
    result = run("embed", docs, "--model", "m", "--out", tmp_path / "x.npz", code=1)
    assert "Refused by the model (1):" in result.stderr
    assert "07.txt, character 0: the input length exceeds" in result.stderr
    assert "1 passage refused by the model; " in result.stderr
    assert len(texts_in(tmp_path / "x.npz")) == 35


def test_a_missing_model_ends_the_run_at_once(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    fake = pool(refuses="Sentence", status=404)
    result = run("embed", docs, "--model", "m", "--out", tmp_path / "x.npz", code=1)
    assert "the model m cannot embed" in result.stderr
    assert len(fake.asked) == 4
    assert not list(tmp_path.glob("x.npz*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "-m", "m", "-o", "x.npz"], "no such file or folder: nowhere"),
        ([".", "-m", "m", "-o", "x.txt"], "ends in .npz, .jsonl, .parquet"),
        ([".", "-m", " ", "-o", "x.npz"], "--model is empty"),
        ([".", "-m", "m", "-o", "x.npz", "--chunk-size", "0"], "--chunk-size 0"),
        ([".", "-m", "m", "-o", "x.npz", "--overlap", "600"], "more than half"),
        ([".", "-m", "m", "-o", "x.npz", "--priority", "-1"], "priority"),
        ([".", "-m", "m", "-o", "x.npz", "--nodes", "a b:c"], "not an address|cannot be used"),
        ([".", "-m", "m", "-o", "x.npz", "--nodes", ","], "--nodes is empty"),
        (["empty", "-m", "m", "-o", "x.npz"], "nothing to embed"),
        ([".", "-o", "x.npz"], "--model"),
    ],
)
def test_bad_input_is_refused_with_a_sentence_and_code_2(
    run: Run, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(docs)
    (docs / "empty").mkdir()
    result = run("embed", *words, code=2)
    assert any(part in result.stderr for part in says.split("|"))
    assert not list(docs.glob("x.*"))


def test_search_shows_the_nearest_with_their_place(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    pool()
    run("embed", docs, "--model", "m", "--out", out)
    wanted = json.loads(out.read_text().splitlines()[7])
    shown = run("search", out, wanted["text"], "-k", 2).stdout
    assert shown.startswith(f"1. 1.000  {wanted['source']}, character {wanted['start']:,}\n   Sentence")
    told = json.loads(run("search", out, wanted["text"], "--json").stdout)
    assert told["model"] == "m"
    assert len(told["hits"]) == 5
    assert told["hits"][0] == {"score": pytest.approx(1.0), **{k: wanted[k] for k in told["hits"][0] if k != "score"}}
    assert "QUERY is empty" in run("search", out, " ", code=2).stderr
    assert "no such file" in run("search", tmp_path / "y.npz", "x", code=2).stderr
    assert "is not an index" in run("search", _other(tmp_path / "z.npz"), "x", code=2).stderr


def _other(path: Path) -> Path:
    np.savez(path, a=np.zeros(3))
    return path


def test_without_nodes_the_message_says_what_was_tried(
    run: Run, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOLLOL_NODES")
    monkeypatch.setattr(fleet, "search_networks", lambda timeout, **asked: [])
    result = run("embed", docs, "--model", "m", "--out", tmp_path / "x.npz", code=1)
    for part in ("no Ollama node was found", "SOLLOL_NODES", "localhost", "--nodes 10.0.0.5:11434"):
        assert part in result.stderr
    assert not list(tmp_path.glob("x.npz*"))


def test_nodes_are_those_of_the_option_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(option: str | None) -> list[str]:
        found = fleet.named(option)
        return [endpoint.key for endpoint in found.endpoints] if found else []

    assert names("a,b:2 http://c:3") == ["a:11434", "b:2", "c:3"]
    assert names(None) == ["127.0.0.1:9"]
    monkeypatch.delenv("SOLLOL_NODES")
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.7:8080")
    assert names(None) == ["10.0.0.7:8080"]
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0")
    assert names(None) == []


def test_progress_says_rate_and_remaining_time_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.0)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    count = progress.Count(0, 0.0, False, 0)
    with progress.Progress(lambda: count, FakePool().get_stats) as shown:
        now[0] += 4
        count = progress.Count(250, 1000.4, False, 200)
        shown.tick()
    line = capsys.readouterr().err
    assert line == "250 of about 1,000 passages (25%), 50.0/s, 15 s left; a:1 100% (working)\n"


def test_exit_codes_and_durations() -> None:
    assert console.exit_code(BadInput("x")) == 2
    assert console.exit_code(NoNodeAvailable("x")) == 1
    assert [console.seconds(s) for s in (0.04, 42, 185, 7800)] == ["0.0 s", "42 s", "3 min 05 s", "2 h 10 min"]
