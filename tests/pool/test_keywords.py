"""A keyword of another version: taken if its meaning is clear, else the message says what it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ollama
import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool, RoutingMode
from sollol.pool import keywords
from sollol.pool.former_keywords import take_former
from sollol.pool.requests import CHAT_FIELDS, EMBED_FIELDS, GENERATE_FIELDS
from sollol.sim import NodeSpec, sim_cluster
from sollol.workload.call_options import CallOptions

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


FIELDS = {"chat": CHAT_FIELDS, "generate": GENERATE_FIELDS, **dict.fromkeys(["embed", "embeddings"], EMBED_FIELDS)}


def taken(verb: str, given: dict[str, Any]) -> tuple[CallOptions, Mapping[str, Any]]:
    return take_former(verb, CallOptions(), given, FIELDS.get(verb, EMBED_FIELDS))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", sorted(keywords.OPTIONS))
def test_every_option_is_taken_and_shown_its_place(verb: str, option: str) -> None:
    with pytest.warns(UserWarning, match=f"options={{{option!r}: ...}}"):
        assert taken(verb, {option: 1, "keep_alive": "5m"})[1] == {"options": {option: 1}, "keep_alive": "5m"}
    assert taken(verb, {option: 2, "options": {"other": 3}})[1]["options"] == {"other": 3, option: 2}  # warned once
    with pytest.raises(BadInput, match=f"{option} is given twice"):
        taken(verb, {option: 2, "options": {option: 3}})


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("given", "mode", "words"),
    [
        ({"routing_mode": "fast"}, RoutingMode.FAST, "mode='fast'"),
        ({"routing_mode": RoutingMode.RELIABLE, "min_success_rate": 0.9}, RoutingMode.RELIABLE, "mode='reliable'"),
        ({"prefer_cpu": True}, RoutingMode.ASYNC, "mode='async'"),
        ({"routing_mode": "async", "prefer_cpu": True}, RoutingMode.ASYNC, "mode='async'"),
        ({"min_success_rate": 0.5}, RoutingMode.RELIABLE, "mode='reliable'"),
    ],
)
def test_former_words_for_a_mode(verb: str, given: dict[str, Any], mode: RoutingMode, words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        assert taken(verb, given)[0].mode is mode
    assert taken(verb, given) == (CallOptions(mode=mode), {})


@pytest.mark.parametrize(
    "given",
    [
        {"routing_mode": None},
        {"prefer_cpu": False, "min_success_rate": 0.0},
        {"routing_mode": None, "prefer_cpu": None},
    ],
)
def test_former_words_for_nothing(given: dict[str, Any]) -> None:
    assert taken("generate", given) == (CallOptions(), {})


@pytest.mark.filterwarnings("ignore:.*is taken")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"routing_mode": "quick"}, "mode='quick'"),
        ({"routing_mode": "fast", "prefer_cpu": True}, "expected only one: mode='async'"),
        ({"routing_mode": "fast", "min_success_rate": 0.9}, "expected only one: mode='reliable'"),
        ({"min_success_rate": 90}, "expected a share from 0 to 1"),
        ({"temperature": 1, "options": "hot"}, "temperature beside options='hot'"),
    ],
)
def test_former_words_without_a_clear_meaning(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        taken("generate", given)


@pytest.mark.filterwarnings("ignore:.*is taken")
def test_former_words_reach_the_node() -> None:
    with sim_cluster([NodeSpec()]) as nodes, OllamaPool(nodes.urls) as pool:
        older: dict[str, Any] = {"num_predict": 3, "routing_mode": "fast"}
        answer = pool.generate("llama3.2", "Name a colour.", **older)
        assert answer.eval_count == 3
        assert answer.routing.mode == "fast"
        older = {"max_tokens": 4}
        batch = pool.batch_generate("llama3.2", ["a", "b"], **older)
        assert [each.eval_count for each in batch if each] == [4, 4]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prioritty": 1}, "did you mean 'priority'?"),
        ({"Priority": 1}, "did you mean 'priority'?"),
        ({"timout": 1}, "did you mean 'timeout'?"),
        ({"timeout_ms": 1500}, "it is timeout=, in seconds: timeout=1.5"),
        ({"require_gpu": True}, "it is requires_gpu= here"),
        ({"requires_gpus": True}, "did you mean 'requires_gpu'?"),
        ({"host": "a"}, "it is node= here"),
        ({"keepalive": 1}, "did you mean 'keep_alive'?"),
        ({"temprature": 0.1}, "options={'temperature': 0.1}"),
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
