"""A keyword that does not exist: the message says what it is called, and where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ollama
import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool
from sollol.pool import keywords

POOL = OllamaPool()
VERBS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda given: POOL.chat("m", [], **given),
    "generate": lambda given: POOL.generate("m", "x", **given),
    "embed": lambda given: POOL.embed("m", "x", **given),
    "embeddings": lambda given: POOL.embeddings("m", "x", **given),
    "embed_batch": lambda given: POOL.embed_batch("m", ["x"], **given),
    "embed_stream": lambda given: POOL.embed_stream("m", ["x"], **given),
}


def told(verb: str, **given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        VERBS[verb](given)
    return str(caught.value)


def test_the_options_are_those_of_the_official_client() -> None:
    assert set(ollama.Options.model_fields) <= keywords.OPTIONS


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", sorted(keywords.OPTIONS))
def test_every_option_is_shown_its_place(verb: str, option: str) -> None:
    assert f"options={{{option!r}: 1}}" in told(verb, **{option: 1})


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"routing_mode": "fast"}, "it is mode= here"),
        ({"prioritty": 1}, "did you mean 'priority'?"),
        ({"Priority": 1}, "did you mean 'priority'?"),
        ({"timout": 1}, "did you mean 'timeout'?"),
        ({"timeout_ms": 1500}, "it is timeout=, in seconds: timeout=1.5"),
        ({"require_gpu": True}, "it is requires_gpu= here"),
        ({"requires_gpus": True}, "did you mean 'requires_gpu'?"),
        ({"host": "a"}, "it is node= here"),
        ({"keepalive": 1}, "did you mean 'keep_alive'?"),
        ({"temperature": 0.1}, "options={'temperature': 0.1}"),
        ({"temprature": 0.1}, "options={'temperature': 0.1}"),
        ({"max_tokens": 5}, "options={'num_predict': 5}"),
        ({"numctx": 5}, "options={'num_ctx': 5}"),
        ({"hedging": True}, "it is hedge= here"),
        ({"task_priority": 1}, "it is priority= here"),
        ({"qqqq": 1}, "expected one of"),
    ],
)
def test_what_was_meant_is_named(verb: str, given: dict[str, Any], words: str) -> None:
    text = told(verb, **given)
    assert words in text
    assert text.startswith(f"{verb}() got an unknown keyword {next(iter(given))!r}")


@pytest.mark.parametrize(
    ("verb", "given", "words"),
    [
        ("chat", {"prompt": "x"}, "it is messages= here"),
        ("generate", {"messages": []}, "it is prompt= here"),
        ("embed", {"texts": []}, "it is input= here"),
        ("embed_batch", {"texts": []}, "it is inputs= here"),
        ("embed_batch", {"workers": 3}, "it is max_workers= here"),
        ("chat", {"response_format": "json"}, "it is format= here"),
        ("chat", {"functions": []}, "it is tools= here"),
        ("chat", {"system": "Be brief."}, "a message of the role 'system'"),
        ("chat", {"tool": []}, "did you mean 'tools'?"),
        ("generate", {"image": []}, "did you mean 'images'?"),
    ],
)
def test_the_verb_decides_what_was_meant(verb: str, given: dict[str, Any], words: str) -> None:
    assert words in told(verb, **given)


@pytest.mark.parametrize("make", [OllamaPool, AsyncOllamaPool])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "fast"}, "it is routing_mode= here"),
        ({"routing_mod": "fast"}, "did you mean 'routing_mode'?"),
        ({"strategy": "fairness"}, "it is routing_strategy= here"),
        ({"base_url": "x"}, "it is nodes= here"),
        ({"enable_rey": True}, "did you mean 'enable_ray'?"),
        ({"temperature": 1}, "expected one of"),
    ],
)
def test_constructors_name_it_too(make: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        make(**given)
    assert words in str(caught.value)
