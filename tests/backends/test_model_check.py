"""An answer that names another model than the one asked for is none."""

from __future__ import annotations

import pytest

from sollol.backends.model_check import wrong_model


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llama3.2","done":true}',
        b'{"model":"llama3.2:latest"}',
        b'{"model" : "LLAMA3.2"}',
        b'{"message":{"content":"say \\"model\\": \\"other\\""}}',
        b'{"done":true}',
        b'data: {"id":"a","model":"llama3.2","choices":[]}\n\n',
        b'{"model":"' + b"[" * 5000,
    ],
)
def test_what_was_asked_for_is_taken(body: bytes) -> None:
    assert wrong_model(body, "llama3.2:latest", "/api/chat") is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"qwen3:8b","message":{"tool_calls":[{"model":"llama3.2"}]}}',
        b'{"model":"llama3.2:1b","done":true}',
        b'{"model":"\\u0061"}',
    ],
)
def test_what_was_not_is_a_failure(body: bytes) -> None:
    found = wrong_model(body, "llama3.2:latest", "/api/generate")
    assert found is not None
    assert "expected" in found.message
