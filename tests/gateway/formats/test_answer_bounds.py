"""What a call reserves of its key's tokens: only the field that a node reads on the route bounds an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol.gateway.auth.keys import Key
from sollol.gateway.auth.rate_limit import UNKNOWN_TOKENS, RateLimiter
from sollol.gateway.formats.api_formats import CHAT_FORMATS, parse_request

# The field that Ollama maps to `num_predict`, by route (its openai, middleware and anthropic packages).
READ = {
    "/api/chat": "num_predict",
    "/api/generate": "num_predict",
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
PLACES = [*((field, False) for field in FIELDS), ("num_predict", True)]
VALUES: list[Any] = [7, 1, 0, -1, -2, -20, -100_000, -(2**63), True, False, None, "7", 7.5, [7], {"a": 1}]
ROUTES = {each.path: each for each in CHAT_FORMATS}


def asked_with(path: str, field: str, in_options: bool, value: Any) -> int | None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    body |= {"options": {field: value}} if in_options else {field: value}
    return parse_request(ROUTES[path], json.dumps(body).encode()).tokens_out


@pytest.mark.parametrize("path", READ)
@pytest.mark.parametrize(("field", "in_options"), PLACES)
def test_only_a_positive_number_in_the_field_of_the_route_bounds(path: str, field: str, in_options: bool) -> None:
    is_read = READ[path] == field and in_options == path.startswith("/api/")
    for value in VALUES:
        expected = value if is_read and type(value) is int and value > 0 else None
        assert asked_with(path, field, in_options, value) == expected, value


def test_the_table_has_every_route() -> None:
    assert set(READ) == set(ROUTES)


@pytest.mark.parametrize("bound", [None, 1, 0, -1, -20, -(2**63)])
def test_a_reservation_is_at_least_the_prompt(bound: int | None) -> None:
    key = Key("a", "hash", tokens_per_minute=10 * UNKNOWN_TOKENS)
    charge = RateLimiter().reserve(key, 50, bound, 0.0)
    assert charge.reserved == 50 + (UNKNOWN_TOKENS if bound is None else max(0, bound))
