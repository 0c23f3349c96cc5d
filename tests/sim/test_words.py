"""What the models say."""

from __future__ import annotations

import json
from statistics import mean

from hypothesis import given
from hypothesis import strategies as st

from sollol.sim import ModelSpec
from sollol.sim.words import common_prefix, count_tokens, generated_json, generated_text

TALKER = ModelSpec("talker", mean_words=60)
ENDLESS = ModelSpec("endless", mean_words=float("inf"))


@given(st.text(max_size=40), st.integers(0, 5), st.integers(0, 120))
def test_a_text_goes_on_where_it_stopped(prompt: str, seed: int, cut: int) -> None:
    whole = generated_text(TALKER, seed, prompt, 1000)
    cut = min(cut, len(whole.tokens))
    rest = generated_text(TALKER, seed, prompt + "".join(whole.tokens[:cut]), 1000)
    assert whole.tokens[:cut] + rest.tokens == whole.tokens
    assert rest.reason == whole.reason == "stop"


def test_seed_model_and_prompt_matter() -> None:
    said = {
        tuple(generated_text(model, seed, prompt, 20).tokens)
        for model in (TALKER, ENDLESS)
        for seed in (0, 1)
        for prompt in ("a", "b")
    }
    assert len(said) == 8


def test_a_copy_says_the_same() -> None:
    assert generated_text(TALKER.renamed("copy:latest"), 0, "a", 20) == generated_text(TALKER, 0, "a", 20)


def test_mean_length_and_limit() -> None:
    lengths = [len(generated_text(TALKER, 0, f"prompt {i}", 2000).tokens) for i in range(400)]
    assert 50 < mean(lengths) < 80
    assert min(lengths) > 0
    assert generated_text(ENDLESS, 0, "a", 500).reason == "length"
    assert len(generated_text(ENDLESS, 0, "a", 500).tokens) == 500


def test_stop_words_end_the_text_before_them() -> None:
    plain = "".join(generated_text(ENDLESS, 0, "a", 50).tokens)
    word = plain.split()[10]
    stopped = generated_text(ENDLESS, 0, "a", 50, [word])
    assert stopped.reason == "stop"
    assert "".join(stopped.tokens) == plain[: plain.index(word)]


def test_json_obeys_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "n": {"type": "integer"},
            "kind": {"enum": ["x", "y"]},
            "list": {"type": "array", "items": {"type": "boolean"}},
        },
    }
    text = "".join(generated_json(schema, 1000).tokens)
    assert json.loads(text) == {"name": "node", "n": 1, "kind": "x", "list": [False]}
    assert "".join(generated_json("json", 10).tokens) == "{}"
    assert generated_json(schema, 2).reason == "length"


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_common_prefix(start: str, one: str, other: str) -> None:
    shared = common_prefix(start + one, start + other)
    assert (start + one)[:shared] == (start + other)[:shared]
    assert (start + one)[shared : shared + 1] != (start + other)[shared : shared + 1] or shared == min(
        len(start + one), len(start + other)
    )


def test_tokens_count_as_recorded() -> None:
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert count_tokens("the quick queue") == 4
    assert count_tokens(turn.format("the quick queue")) == 50
    assert count_tokens(turn.format("the small node sends the ready model")) == 54
    assert count_tokens(turn.format("the small node " * 3000)) == 9048
