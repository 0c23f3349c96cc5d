"""Vectors: unit length, the same everywhere, like texts near each other."""

from __future__ import annotations

import json
import math

import pytest

from sollol.sim import vectors
from sollol.sim.vectors import cheap_fragments, embed, encoded

TEXTS = [
    "the river runs past the old mill",
    "the river runs by the old mill",
    "quarterly revenue rose by nine percent",
    "",
    "....",
    "日本語のテキスト",
    "\ud800 broken surrogate",
    "word " * 3000,
]


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dim", [4, 64, 768])
def test_unit_length(dim: int) -> None:
    for vector in embed(TEXTS, dim):
        assert len(vector) == dim
        assert math.sqrt(dot(vector, vector)) == pytest.approx(1.0, abs=1e-5)


def test_cut_vectors_are_the_first_numbers_at_unit_length_again() -> None:
    (whole,), (cut,) = embed(TEXTS[:1], 64), embed(TEXTS[:1], 64, 8)
    assert len(cut) == 8
    assert dot(cut, cut) == pytest.approx(1.0, abs=1e-5)
    assert cut[0] / cut[1] == pytest.approx(whole[0] / whole[1], rel=1e-3)


def test_the_same_alone_in_a_batch_and_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [*TEXTS, *(f"filler number {i}" for i in range(600))]
    batch = embed(many, 64)
    alone = [embed([text], 64)[0] for text in many]
    monkeypatch.setattr(vectors, "_HAS_NUMPY", False)
    assert batch == alone == embed(many, 64)


def test_like_texts_are_nearer_than_others() -> None:
    mill, near, far, *_ = embed(TEXTS, 64)
    assert dot(mill, near) > 0.8
    assert dot(mill, near) > dot(mill, far) + 0.4
    typo, right, other = embed(["configuraton error", "configuration error", "banana bread"], 256)
    assert dot(typo, right) > 0.6 > dot(typo, other)


def test_fragments_are_the_json_of_the_vectors_first_time_and_after() -> None:
    for _ in range(2):
        found = [json.loads(fragment) for fragment in encoded.fragments(TEXTS, 32)]
        assert found == embed(TEXTS, 32)


def test_cheap_vectors_are_steady_and_of_unit_length() -> None:
    one, other = cheap_fragments(["a", "b"], 4)
    assert [one, other] == cheap_fragments(["a", "b"], 4)
    assert one != other
    vector = json.loads(one)
    assert len(vector) == 4
    assert dot(vector, vector) == pytest.approx(1.0, abs=1e-5)
