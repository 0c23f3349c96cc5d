"""Which requests can be gone on with, and what Ollama's own middleware makes of them (openai/, anthropic/ there)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sollol.core.types import Kind
from sollol.engine.resumption import PartialResponse
from sollol.gateway.formats import anthropic, openai, responses

USER = [{"role": "user", "content": "x"}]
DIALECTS: dict[str, tuple[Callable[[bytes], PartialResponse | None], dict[str, Any]]] = {
    "chat": (lambda body: openai.partial_response(Kind.CHAT, body), {"messages": USER}),
    "completions": (lambda body: openai.partial_response(Kind.GENERATE, body), {"prompt": "x"}),
    "messages": (anthropic.partial_response, {"messages": USER, "max_tokens": 9}),
    "responses": (responses.partial_response, {"input": "x"}),
}


def ollama_body(dialect: str, **fields: Any) -> Any:
    """The request in Ollama's words; None where it cannot be gone on with."""
    said_of, plain = DIALECTS[dialect]
    said = said_of(json.dumps({"model": "m", **plain, **fields}).encode())
    return None if said is None else said.body


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


DEFAULTS: dict[str, dict[str, Any]] = {
    "chat": {"temperature": 1.0, "top_p": 1.0},
    "completions": {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
    "messages": {"num_predict": 9},
    "responses": {"temperature": 1.0},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_sampling_is_what_ollama_makes_of_nothing(dialect: str) -> None:
    assert ollama_body(dialect)["options"] == DEFAULTS[dialect]


@pytest.mark.parametrize(
    ("dialect", "fields", "options"),
    [
        ("chat", {"temperature": 0, "top_p": 0}, {"temperature": 0, "top_p": 0}),
        ("chat", {"max_tokens": 7, "seed": 3}, {"num_predict": 7, "seed": 3}),
        ("chat", {"max_completion_tokens": 7}, {}),  # Ollama does not know it
        ("chat", {"frequency_penalty": 0.5, "presence_penalty": 0.25},
         {"frequency_penalty": 0.5, "presence_penalty": 0.25}),
        ("chat", {"stop": "a"}, {"stop": ["a"]}),
        ("chat", {"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ("chat", {"stop": []}, {}),  # a null there: the model's own stay
        ("chat", {"temperature": None, "stop": None, "seed": None}, {}),
        ("completions", {"temperature": 0, "top_p": 0}, {"temperature": 0, "top_p": 1.0}),
        ("completions", {"presence_penalty": 1, "max_tokens": 2}, {"presence_penalty": 1, "num_predict": 2}),
        ("messages", {"temperature": 0.5, "top_p": 0.5, "top_k": 4}, {"temperature": 0.5, "top_p": 0.5, "top_k": 4}),
        ("messages", {"stop_sequences": ["a"]}, {"stop": ["a"]}),
        ("messages", {"stop_sequences": []}, {}),
        ("responses", {"temperature": 0.5, "top_p": 0.5, "max_output_tokens": 4},
         {"temperature": 0.5, "top_p": 0.5, "num_predict": 4}),
    ],
)  # fmt: skip
def test_options(dialect: str, fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert ollama_body(dialect, **fields)["options"] == {**DEFAULTS[dialect], **options}


@pytest.mark.parametrize(
    ("dialect", "fields", "messages"),
    [
        # Chat makes a message of each part; Anthropic's and the responses' parts are joined.
        ("chat", {"messages": [message("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]},  # type: ignore[arg-type]
         [message("user", "a"), message("user", "b")]),
        ("chat", {"messages": [message("developer", "d"), {**message("user", "a"), "name": "n"}]},
         [message("developer", "d"), message("user", "a")]),
        ("chat", {"messages": [{**message("assistant", "a"), "refusal": None, "tool_calls": []}, *USER]},
         [message("assistant", "a"), *USER]),
        ("messages", {"messages": [message("USER", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]},  # type: ignore[arg-type]
         [message("user", "ab")]),
        ("messages", {"system": "s", "messages": [*USER, message("assistant", "")]}, [message("system", "s"), *USER]),
        ("messages", {"system": [{"type": "text", "text": "s", "cache_control": {}}, {"type": "text", "text": "t"}]},
         [message("system", "st"), *USER]),
        ("responses", {"instructions": "s"}, [message("system", "s"), *USER]),
        ("responses", {"instructions": "s", "input": ""}, [message("system", "s")]),
        ("responses", {"input": [message("developer", "d"), {"type": "message", **message("user", "x")}]},
         [message("developer", "d"), *USER]),
        ("responses", {"input": [{"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                                  "content": [{"type": "output_text", "text": "a", "annotations": []},
                                              {"type": "output_text", "text": "b"}]}, *USER]},
         [message("assistant", "ab"), *USER]),
    ],
)  # fmt: skip
def test_messages(dialect: str, fields: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert ollama_body(dialect, **fields)["messages"] == messages


IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", {"n": 1, "user": "u", "store": True, "metadata": {"a": "b"}, "parallel_tool_calls": True}),
        ("chat", {"response_format": {"type": "text"}, "tool_choice": "auto", "tools": [], "logprobs": False}),
        ("chat", {"reasoning_effort": None, "top_logprobs": 0}),
        ("completions", {"suffix": "", "logprobs": 0, "echo": False, "user": "u"}),
        ("messages", {"metadata": {"user_id": "u"}, "tools": []}),
        ("responses", {"text": {"format": {"type": "text"}}, "truncation": "disabled", "store": False, "include": []}),
    ],
)
def test_what_does_not_matter_does_not_hinder(dialect: str, fields: dict[str, Any]) -> None:
    assert ollama_body(dialect, **fields)["options"] == DEFAULTS[dialect]


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", {"tools": [{"type": "function"}]}),
        ("chat", {"tool_choice": "required"}),
        ("chat", {"response_format": {"type": "json_object"}}),
        ("chat", {"logprobs": True}),
        ("chat", {"n": 2}),
        ("chat", {"reasoning_effort": "none"}),
        ("chat", {"reasoning": {"effort": "low"}}),
        ("chat", {"logit_bias": {"5": 1}}),
        ("chat", {"a_field_of_tomorrow": 1}),
        ("chat", {"messages": [message("user", IMAGE)]}),  # type: ignore[arg-type]
        ("chat", {"messages": [message("tool", "x")]}),
        ("chat", {"messages": [{**message("assistant", "x"), "reasoning": "y"}]}),
        ("chat", {"messages": [{**message("assistant", ""), "tool_calls": [{}]}]}),
        ("chat", {"messages": []}),
        ("chat", {"messages": [{"role": "user", "content": None}]}),
        ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"prompt": ""}),
        ("completions", {"suffix": "x"}),
        ("completions", {"logprobs": 2}),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 9}}),
        ("messages", {"tools": [{"name": "x"}]}),
        ("messages", {"messages": [message("user", [{"type": "tool_result", "content": "x"}])]}),  # type: ignore[arg-type]
        ("responses", {"reasoning": {"effort": "low"}}),
        ("responses", {"tools": [{"type": "web_search"}]}),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": {}}}}),
        ("responses", {"previous_response_id": "resp_1"}),
        ("responses", {"input": [{"type": "function_call", "name": "x"}]}),
        ("responses", {"input": [message("user", [{"type": "input_image", "image_url": "x"}])]}),  # type: ignore[arg-type]
    ],
)
def test_what_is_more_than_text_going_on_from_its_prompt(dialect: str, fields: dict[str, Any]) -> None:
    assert ollama_body(dialect, **fields) is None


KEYS = st.sampled_from(["role", "content", "type", "text", "format", "include_usage", "url"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "input", "instructions", "system", "stop", "stop_sequences", "max_tokens", "top_p",
     "stream_options", "temperature", "response_format", "text", "n", "tools", "metadata"]
)  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@given(fields=st.dictionaries(NAMES, JSON, max_size=6) | JSON)
@example(fields={"max_tokens": 0.5})  # less than a token is no bound that is reached already
@settings(max_examples=150, deadline=None)
def test_no_request_is_too_odd(dialect: str, fields: Any) -> None:
    """What is wrong is told by a node; here it must only not be mistaken."""
    said_of, plain = DIALECTS[dialect]
    for body in (fields, {"model": "m", **plain, **fields} if isinstance(fields, dict) else fields):
        said = said_of(json.dumps(body).encode())
        if said is not None:
            assert said.body.get("prompt") or said.body["messages"]
            assert said.left is None or said.left > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_not_json_is_not_gone_on_with(dialect: str) -> None:
    assert DIALECTS[dialect][0](b'{"model":') is None
