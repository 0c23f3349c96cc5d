"""Answers and batches as values: compared, put into texts, written as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sollol import OllamaPool
from sollol.sim import NodeSpec, sim_cluster
from tests.pool.universe import CHAT, EMBED, MODELS, texts

HELLO = [{"role": "user", "content": "Hello, who is there?"}]


@pytest.fixture(scope="module")
def pool() -> Iterator[OllamaPool]:
    with sim_cluster([NodeSpec(models=MODELS)]) as nodes, OllamaPool(list(nodes)) as pool:
        yield pool


def test_an_empty_batch_equals_an_empty_list(pool: OllamaPool) -> None:
    empty = pool.embed_batch(EMBED, [])
    assert empty == []
    assert empty == []
    assert empty == ()
    assert not empty
    assert list(empty) == []
    assert pool.embed_batch(EMBED, iter(())) == []
    assert json.loads(empty.model_dump_json()) == []
    assert empty != [1]


def test_batches_are_equal_by_their_items(pool: OllamaPool) -> None:
    one, same = pool.embed_batch(EMBED, texts(5)), pool.embed_batch(EMBED, texts(5))
    assert one == same == list(one)
    assert one != pool.embed_batch(EMBED, texts(4))
    assert one != pool.embed_batch(EMBED, ["x"] * 5)
    assert one != "text"


def test_a_batch_is_dumped_as_json(pool: OllamaPool) -> None:
    batch = pool.embed_batch(EMBED, ["a", "b" * 50_000], truncate=False, on_error="return")
    dumped = json.loads(batch.model_dump_json())
    assert dumped == json.loads(json.dumps(batch.model_dump()))
    assert dumped[0]["embeddings"] == batch[0].embeddings  # type: ignore[union-attr]
    assert dumped[1] is None


def test_an_answer_in_a_text_is_what_ollama_said(pool: OllamaPool) -> None:
    answer = pool.chat(CHAT, HELLO)
    last = list(pool.chat(CHAT, HELLO, stream=True))[-1]
    for found in (answer, last, pool.embed(EMBED, "x"), pool.generate(CHAT, "x")):
        assert found.routing.node
        for text in (str(found), f"{found}", repr(found), f"{[found]}", "%s" % found, found.model_dump_json()):  # noqa: UP031
            assert "_sollol_routing" not in text
            assert "candidates" not in text
    assert answer.message.content in f"{answer}"
    assert json.loads(answer.model_dump_json()) == answer.model_dump()
    assert "_sollol_routing" in json.loads(json.dumps(answer))
    assert "predicted_ms" in str(answer.routing)
