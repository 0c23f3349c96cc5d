"""An answer that only repeats itself is told from one that broke off."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sollol.backends.repetition import KEPT, PIECE_BYTES, REPEATS, Recent, repeats

FORMS: dict[str, Callable[[str], Any]] = {
    "chat": lambda text: {"model": "m", "message": {"role": "assistant", "content": text}, "done": False},
    "thinking": lambda text: {"message": {"role": "assistant", "content": "", "thinking": text}, "done": False},
    "generate": lambda text: {"model": "m", "response": text, "done": False},
    "v1 chat": lambda text: {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
    "v1 reasoning": lambda text: {"choices": [{"delta": {"content": "", "reasoning": text}}]},
    "v1 completions": lambda text: {"choices": [{"index": 0, "text": text}]},
    "v1 messages": lambda text: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
    "v1 responses": lambda text: {"type": "response.output_text.delta", "delta": text},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frame", ["%s\n", "data: %s\n\n", "event: x\ndata: %s\n\n"])
def test_repeated_pieces_in_every_format(form: str, frame: str) -> None:
    def ends(*texts: str) -> bool:
        recent = Recent()
        for text in texts:
            recent.add((frame % json.dumps(FORMS[form](text))).encode())
        return repeats(recent.events())

    loop = ["so"] * (REPEATS - 1)
    assert ends("a", "b", " so", *loop)
    assert ends(*["\n"] * REPEATS)
    assert not ends("a", *loop)
    assert not ends(*loop, "so", "other")
    assert not ends(*["a", "b"] * REPEATS)
    assert not ends()


def test_what_is_kept_is_bounded() -> None:
    recent = Recent()
    for _ in range(10 * KEPT):
        recent.add(b'{"response":"x"}\n')
    assert len(recent.events()) <= 2 * KEPT
    recent.add(b"x" * (PIECE_BYTES + 1))
    assert recent.events() == []
