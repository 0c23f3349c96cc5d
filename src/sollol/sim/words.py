"""Generate random words that depend only on the model, the seed and the text before them.

The next word is drawn from a hash of (model, seed option, text so far). So a model generates the same text on every
node, and `prompt + text so far` continues exactly where it stopped: a stream can move from node to node, and a test can
require that no resumption shows. An answer ends only after a full stop, with a chance that gives the model's mean
length, again from the hash, so it ends at the same place wherever it is continued.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from sollol.sim.models import ModelSpec

_NOUNS = (
    "node model queue server worker garden river stone bridge lantern harbour meadow signal engine window "
    "letter mountain copper kettle orchard compass thread valley market island captain feather mirror"
)
_VERBS = (
    "sends finds keeps loads counts routes makes waits takes moves turns holds opens carries follows learns "
    "measures answers gathers returns"
)
_OTHERS = (
    "the a small quick ready quiet bright cold warm old new every other first last slowly often again "
    "toward under over between and or but while because near after before"
)
VOCABULARY: tuple[str, ...] = tuple(f" {word}" for word in f"{_NOUNS} {_VERBS} {_OTHERS}".split())
_STOP_SHARE = 8  # one token in eight is a full stop
_JSON_TOKEN = re.compile(r"\s*(?:\"[^\"]*\"|[\[\]{}:,]|[^\s\[\]{}:,]+)")


def words_after(model: ModelSpec, seed: int, text: str) -> Iterator[str]:
    """Yield the words that follow `text`, until the answer ends."""
    state = hashlib.blake2b(f"{model.digest}\0{seed}\0".encode(), digest_size=8)
    state.update(text.encode("utf-8", "surrogatepass"))
    after_stop = text.endswith(".")
    ending = 2**24 * _STOP_SHARE / max(model.mean_words, _STOP_SHARE)
    words = model.words or VOCABULARY
    while True:
        draw = int.from_bytes(state.copy().digest(), "big")
        if after_stop and (draw & 0xFFFFFF) < ending:
            return
        after_stop = not after_stop and draw >> 61 == 0
        word = "." if after_stop else words[(draw >> 24 & 0xFFFFFFFF) % len(words)]
        yield word
        state.update(word.encode())


class GeneratedText(NamedTuple):
    """Hold tokens, and whether the limit cut them ("length") or they ended ("stop")."""

    tokens: list[str]
    reason: str


def generated_text(model: ModelSpec, seed: int, prompt: str, limit: int, stop: Sequence[str] = ()) -> GeneratedText:
    """Return the tokens of an answer, at most `limit`, cut at the first of the `stop` texts."""
    tokens = list(islice(words_after(model, seed, prompt), max(limit, 0)))
    cut = _cut_at_stop(tokens, stop) if stop else None
    if cut is not None:
        return GeneratedText(cut, "stop")
    return GeneratedText(tokens, "length" if len(tokens) >= limit else "stop")


def _cut_at_stop(tokens: list[str], stop: Sequence[str]) -> list[str] | None:
    text = "".join(tokens)
    found = [at for at in (text.find(word) for word in stop if word) if at >= 0]
    if not found:
        return None
    kept, left = [], min(found)
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept


def generated_json(schema: Any, limit: int) -> GeneratedText:
    """Return the tokens of the smallest value that fits a JSON schema ("json": an empty object)."""
    text = msgspec.json.encode(_example(schema if isinstance(schema, dict) else {"type": "object"})).decode()
    tokens = _JSON_TOKEN.findall(text)
    return GeneratedText(tokens[:limit], "length" if limit < len(tokens) else "stop")


def _example(schema: Any, depth: int = 0) -> Any:
    if not isinstance(schema, dict) or depth > 16:
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        return {name: _example(part, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_example(schema["items"], depth + 1)] * schema.get("minItems", 1) if "items" in schema else []
    return {"integer": 1, "number": 0.5, "boolean": False, "null": None}.get(kind, "node")


def tool_arguments(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the smallest arguments that fit a tool."""
    found = _example(tool.get("function", {}).get("parameters", {"type": "object"}))
    return found if isinstance(found, dict) else {}


def render(model: ModelSpec, messages: Sequence[dict[str, Any]], tools: Any = None) -> str:
    """Return the exact prompt of a chat, as `_debug_render_only` shows it."""
    parts = []
    if model.system and not any(m.get("role") == "system" for m in messages):
        parts.append(f"<|im_start|>system\n{model.system}<|im_end|>\n")
    if tools:
        parts.append(f"<|im_start|>system\nTools: {msgspec.json.encode(tools).decode()}<|im_end|>\n")
    for place, message in enumerate(messages):
        role, content = message.get("role", "user"), message.get("content") or ""
        parts.append(f"<|im_start|>{role}\n{content}")
        if model.continues and role == "assistant" and place == len(messages) - 1:
            return "".join(parts)  # left open: the answer continues it
        parts.append("<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def count_tokens(text: str) -> int:
    """Return about one token for each word, as recorded models count; marks of a turn cost what they cost there."""
    starts, ends = text.count("<|im_start|>"), text.count("<|im_end|>")
    bare = len(text) - 20 * starts - 12 * ends  # texts without spaces have tokens too
    words = max(text.count(" ") + 1, bare // 6) if text else 0
    return 1 + words + 18 * starts + 10 * ends


def common_prefix(one: str, other: str) -> int:
    """Return how many characters two texts share at their beginning. It bisects, because prompts are long."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def token_ids(text: str) -> list[int]:
    """Return the numbers that `context` shows: invented, but the same for the same word."""
    return [int.from_bytes(hashlib.blake2b(w.encode(), digest_size=2).digest(), "big") for w in text.split()]
