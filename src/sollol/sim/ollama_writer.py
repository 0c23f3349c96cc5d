"""Write answers as Ollama does on `/api/generate` and `/api/chat`: lines of JSON, or one object.

The order of keys is that of the recorded answers. A key that Ollama leaves out when empty is left out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sollol.sim.generation import AnswerEnd, SimAnswer
from sollol.sim.reply import JSON, NDJSON, SimReply
from sollol.sim.request import Refusal, encode, ollama_error
from sollol.sim.words import VOCABULARY, token_ids


def timings(end: AnswerEnd) -> dict[str, Any]:
    """Return the timings of an answer, as its last line has them."""
    return {
        "total_duration": end.total_ns,
        "load_duration": end.load_ns,
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_duration": end.prefill_ns,
        "eval_count": end.tokens,
        "eval_duration": end.decode_ns,
    }


def logprob(token: str, top: int) -> dict[str, Any]:
    """Return an invented but constant log-probability. The runners-up come from the vocabulary."""

    def entry(word: str, place: int) -> dict[str, Any]:
        return {"token": word, "logprob": -0.5 - place - len(word) / 16, "bytes": list(word.encode())}

    found = entry(token, 0)
    if top:
        others = [word for word in VOCABULARY if word != token][: top - 1]
        found["top_logprobs"] = [entry(word, i) for i, word in enumerate((token, *others))]
    return found


class SimOllamaWriter:
    """Write the parts that generate and chat share. Subclasses place the text."""

    stream_type = NDJSON
    stream_headers: dict[str, str] = {}  # noqa: RUF012 - never written
    events_apart = False

    def __init__(
        self, model: str, stamp: Callable[[], str], *, context: bool = False, logprobs: int | None = None
    ) -> None:
        self._model = model
        self._stamp = stamp
        self._context = context
        self._logprobs = logprobs

    def _fields(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def _line(self, fields: dict[str, Any], done: bool, **more: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": self._stamp(), **fields, "done": done, **more}

    def piece(self, text: str, *, thinking: bool = False) -> bytes:
        """Return the bytes of one token."""
        line = self._line(self._fields("", text) if thinking else self._fields(text), False)
        if self._logprobs is not None and not thinking:
            line["logprobs"] = [logprob(text, self._logprobs)]
        return encode(line) + b"\n"

    def last(self, answer: SimAnswer, end: AnswerEnd) -> bytes:
        """Return the bytes that end a stream."""
        calls = b""
        if answer.tool_calls:
            calls = encode(self._line(self._fields("", calls=answer.tool_calls), False)) + b"\n"
        return calls + encode(self._line(self._fields(""), True, **self._ending(answer, end))) + b"\n"

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        fields = self._fields(answer.text, answer.thinking, answer.tool_calls)
        line = self._line(fields, True, **self._ending(answer, end))
        if self._logprobs is not None:
            line["logprobs"] = [logprob(token, self._logprobs) for token in answer.tokens]
        return SimReply.of(200, encode(line), JSON)

    def _ending(self, answer: SimAnswer, end: AnswerEnd) -> dict[str, Any]:
        found: dict[str, Any] = {"done_reason": end.reason}
        if self._context:
            found["context"] = token_ids(answer.prompt + answer.text)
        return found | timings(end)

    def empty(self, reason: str) -> SimReply:
        """Return the answer to a request that only loads or unloads."""
        return SimReply.of(200, encode(self._line(self._fields(""), True, done_reason=reason)), JSON)

    def rendered(self, prompt: str) -> SimReply:
        """Return the answer to `_debug_render_only`."""
        line = {"model": self._model, "created_at": self._stamp(), "_debug_info": {"rendered_template": prompt}}
        return SimReply.of(200, encode(line), JSON)

    def broken(self, message: str) -> bytes:
        """Return the bytes of an error inside a stream."""
        return encode({"error": message}) + b"\n"

    def refused(self, refusal: Refusal) -> SimReply:
        """Return the answer to a request that fails before its first byte."""
        return ollama_error(refusal)


class SimGenerateWriter(SimOllamaWriter):
    """Write the answers of `/api/generate`."""

    def _fields(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


class SimChatWriter(SimOllamaWriter):
    """Write the answers of `/api/chat`."""

    def _fields(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}
