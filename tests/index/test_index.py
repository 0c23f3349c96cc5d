"""What is written can be read, is never half there, and the log survives whatever a crash leaves."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sollol.errors import BadInput, SollolError
from sollol.index import format as index_format
from sollol.index.build import Build
from sollol.index.chunks import Cut
from sollol.index.documents import Passage
from sollol.index.format import NotAnIndex, digest
from sollol.index.nearest import nearest
from sollol.index.partial import Partial
from tests.cli.fakes import DIM, vector_of

SUFFIXES = [".npz", ".jsonl", ".parquet"]
PASSAGES = [
    Passage("Grüße 分散 \U0001f642", "a.txt", "", 0, 17),
    Passage('two\nlines "quoted"', "b ä.pdf", "page", 3, 0),
    Passage("trailing \\ backslash", "c.csv", "row", 12, 4),
]


def build(out: Path, passages: list[Passage], model: str = "m", *, force: bool = False) -> list[str]:
    """Write an index; returns the texts that were asked for."""
    with Build(out, model, Cut(), force=force) as work:
        asked = list(work.inputs(passages))
        for index, text in enumerate(asked):
            work.add(index, vector_of(text))
        assert not work.finish()
    return asked


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_again_exactly(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    many = PASSAGES + [Passage(f"text {i}", "d.txt", "", 0, i) for i in range(3000)]
    build(out, many)
    blocks = list(index_format.blocks(out))
    assert [p for block in blocks for p in block.passages] == many
    vectors = np.concatenate([block.vectors for block in blocks])
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.stack([vector_of(p.text) for p in many]))
    assert index_format.about(out)[:2] == ("m", DIM)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_files_open_without_sollol(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        build(tmp_path / f"x{suffix}", PASSAGES)
    with np.load(tmp_path / "x.npz") as file:
        assert file["texts"].tolist() == [p.text for p in PASSAGES]
        assert file["vectors"].shape == (3, DIM)
        assert json.loads(str(file["metadata"]))["model"] == "m"
    first = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[1])
    assert first["source"] == "b ä.pdf"
    assert np.array_equal(np.array(first["vector"], np.float32), vector_of(PASSAGES[1].text))
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["text", "source", "unit", "number", "start", "vector"]
    assert table["number"].to_pylist() == [0, 3, 12]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    build(tmp_path / f"a{suffix}", PASSAGES)
    build(tmp_path / f"b{suffix}", PASSAGES)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b'{"text": 1}\n', b"PAR1xxxxPAR1"])
def test_another_file_is_not_taken_for_an_index_and_not_overwritten(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    out = tmp_path / f"x{suffix}"
    out.write_bytes(content)
    with pytest.raises(NotAnIndex):
        index_format.about(out)
    with pytest.raises(BadInput, match="--force"):
        build(out, PASSAGES)
    assert out.read_bytes() == content
    build(out, PASSAGES, force=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off_is_refused_with_a_sentence(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    build(out, [Passage(f"text {i}", "d.txt") for i in range(2000)])
    out.write_bytes(out.read_bytes()[: out.stat().st_size * 2 // 3])
    with pytest.raises(NotAnIndex):
        for _ in index_format.blocks(out):
            pass


def test_unchanged_passages_are_reused_and_removed_ones_dropped(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    one, two, three = PASSAGES
    assert build(out, [one, two]) == [one.text, two.text]
    moved = two._replace(start=99)
    assert build(out, [three, moved], "m:latest") == [three.text]
    assert [p for block in index_format.blocks(out) for p in block.passages] == [three, moved]
    assert build(out, [three], force=True) == [three.text]


def test_equal_passages_are_asked_for_once(tmp_path: Path) -> None:
    twice = [PASSAGES[0], PASSAGES[1], PASSAGES[0]._replace(source="copy.txt")]
    assert build(tmp_path / "x.npz", twice) == [PASSAGES[0].text, PASSAGES[1].text]
    (block,) = index_format.blocks(tmp_path / "x.npz")
    assert block.passages == twice
    assert np.array_equal(block.vectors[0], block.vectors[2])


def test_another_model_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    build(out, PASSAGES)
    before = out.read_bytes()
    with pytest.raises(BadInput, match="made with the model m, not other"):
        build(out, PASSAGES, "other")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    build(out, PASSAGES, "other", force=True)


def test_the_same_model_with_another_dimension_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    build(out, PASSAGES[:1])
    with Build(out, "m", Cut()) as work:
        list(work.inputs(PASSAGES))
        with pytest.raises(BadInput, match="now returns vectors of 9 numbers"):
            work.add(0, vector_of("x", 9))


@pytest.mark.parametrize(
    ("name", "why"), [("x.zip", "ends in"), ("no/x.npz", "does not exist"), ("folder.npz", "is a folder")]
)
def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(BadInput, match=why):
        Build(tmp_path / name, "m", Cut())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.npz"
    build(out, PASSAGES[:2])
    before = out.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SollolError, match="No space left"):
        build(out, PASSAGES)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "x.npz.partial"}


def test_two_runs_on_one_file_are_kept_apart(tmp_path: Path) -> None:
    with Build(tmp_path / "x.npz", "m", Cut()), pytest.raises(SollolError, match="another"):
        Build(tmp_path / "x.npz", "m", Cut())


# --- the log ---


def fill(path: Path, count: int) -> list[bytes]:
    keys = [digest("m", str(i)) for i in range(count)]
    with Partial(path, "m", Cut()) as log:
        for i, key in enumerate(keys):
            log.add(key, vector_of(str(i)))
    return keys


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 700))
def test_a_torn_log_keeps_every_whole_record(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.partial"
    path.unlink(missing_ok=True)
    keys = fill(path, 10)
    whole = path.read_bytes()
    head, record = whole.index(b"\n") + 1, 16 + DIM * 4 + 4
    path.write_bytes(whole[:cut])
    with Partial(path, "m", Cut()) as log:
        assert len(log) == min(max(cut - head, 0) // record, 10)
        for i, key in enumerate(keys[: len(log)]):
            assert np.array_equal(log.vector(key), vector_of(str(i)))
        for i, key in enumerate(keys):
            if key not in log:
                log.add(key, vector_of(str(i)))
    with Partial(path, "m", Cut()) as log:
        assert all(np.array_equal(log.vector(key), vector_of(str(i))) for i, key in enumerate(keys))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 519), value=st.integers(1, 255))
def test_a_garbled_record_and_what_follows_are_not_trusted(tmp_path: Path, at: int, value: int) -> None:
    path = tmp_path / "x.partial"
    path.unlink(missing_ok=True)
    keys = fill(path, 10)
    data = bytearray(path.read_bytes())
    head = data.index(b"\n") + 1
    data[head + at] ^= value
    path.write_bytes(data)
    with Partial(path, "m", Cut()) as log:
        assert len(log) == at // 52
        assert all(np.array_equal(log.vector(keys[i]), vector_of(str(i))) for i in range(len(log)))


def test_a_log_of_another_model_or_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    fill(path, 2)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="interrupted run with the model m, not n"):
        Partial(path, "n", Cut())
    assert path.read_bytes() == before
    path.write_text("my notes")
    with pytest.raises(BadInput, match="no log of `sollol embed`"):
        Partial(path, "m", Cut(), discard=True)
    assert path.read_text() == "my notes"


def test_an_empty_log_leaves_no_file(tmp_path: Path) -> None:
    with Partial(tmp_path / "x.partial", "m", Cut()):
        pass
    assert not list(tmp_path.iterdir())


def test_vectors_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    with Partial(tmp_path / "x.partial", "m", Cut()) as log, pytest.raises(SollolError, match="not finite"):
        log.add(digest("m", "x"), [1.0, float("nan")])


# --- search ---


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_nearest_are_those_of_the_whole_matrix(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    texts = [f"text {i}" for i in range(2500)]
    build(out, [Passage(text, "a.txt", "", 0, i) for i, text in enumerate(texts)])
    query = vector_of("query")
    scores = np.stack([vector_of(text) for text in texts]) @ query
    expected = [texts[i] for i in np.argsort(-scores)[:7]]
    hits = nearest(out, query * 5, 7)
    assert [hit.passage.text for hit in hits] == expected
    assert hits[0].score == pytest.approx(float(scores.max()), abs=1e-5)


def test_a_query_of_another_dimension_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "x.npz", PASSAGES)
    with pytest.raises(BadInput, match="vectors of 8 numbers, and the model returned 9"):
        nearest(tmp_path / "x.npz", vector_of("x", 9), 1)
    assert len(nearest(tmp_path / "x.npz", vector_of("x"), 100)) == 3


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one damage: changed, cut out, put in, doubled, swapped or cut off."""
    at, size = rng.randrange(len(data)), rng.choice((1, 1, 2, 16, 300))
    piece = data[at : at + size]
    lines = data.splitlines(keepends=True)
    match rng.randrange(8):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + size :]
        case 2:
            return data[:at] + rng.randbytes(size) + data[at:]
        case 3:
            return data[:at] + piece + data[at:]
        case 4:
            return data[:at]
        case 5:
            return data[:at] + b"\0" * len(piece) + data[at + size :]
        case 6:
            rng.shuffle(lines)
            return b"".join(lines)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_told_or_changes_nothing(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"x{suffix}"
    build(out, PASSAGES + [Passage(f"text {i}", "d.txt", "", 0, i) for i in range(20)])
    whole, rng = out.read_bytes(), random.Random(1)

    def content() -> list[Any]:
        about = index_format.about(out)
        blocks = list(index_format.blocks(out))
        return [about, [p for block in blocks for p in block.passages], [b.vectors.tobytes() for b in blocks]]

    good, told = content(), 0
    wrong = 0
    for _ in range(1500):
        out.write_bytes(damaged(whole, rng))
        try:
            found = content()
        except SollolError:
            told += 1
        else:
            wrong += found != good
    assert (wrong, told > 0) == (0, True)


def test_an_index_of_an_older_version_is_read(tmp_path: Path) -> None:
    build(tmp_path / "x.jsonl", PASSAGES)
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    for row in rows:
        del row["check"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p for block in index_format.blocks(tmp_path / "x.jsonl") for p in block.passages] == PASSAGES
    assert build(tmp_path / "x.jsonl", PASSAGES) == []  # all are reused
    assert '"check"' in (tmp_path / "x.jsonl").read_text()
