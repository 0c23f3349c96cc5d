"""Resume a broken answer on another node, without a repeated or lost character.

A node renders the prompt of the request (`_debug_render_only`), and raw generate continues from that prompt + the
received text. Its lines are translated to the format of the request, with summed counts and the rest of `num_predict`.
A chat that ends with the assistant's message does not work: most templates close the message and repeat everything.
Exact only for plain text: no tools, no format, no images, no thinking, no options that change the output. Whether the
nodes of a model support it is checked once for each digest, during its first stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_lines
from sollol.backends.ollama import decode, encode
from sollol.backends.refusals import refusal
from sollol.core.endpoint import Endpoint
from sollol.core.types import Kind, Outcome
from sollol.duties import Duties
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=30.0, idle_s=30.0)
NODES_MOST = 3  # nodes checked for support
CHECK_S = 5.0  # time limit of each check
UNREAD: Final = 64  # received parts kept undecoded
# Fields with which an answer is plain text after its prompt. Any other makes the continuation inexact.
_PLAIN = frozenset(["model", "messages", "prompt", "stream", "options", "keep_alive", "system", "template", "raw"])


def is_plain(body: Mapping[str, Any]) -> bool:
    """Check that an answer to this request could be resumed, judging by the request."""
    if not (body.get("messages") or body.get("prompt")):  # only loads or unloads the model
        return False
    if not all(name in _PLAIN or not value for name, value in body.items()):
        return False
    return not any(m.get("images") or m.get("tool_calls") for m in body.get("messages") or () if isinstance(m, Mapping))


class ResumeSupport:
    """Resume support of models, by digest; checked in advance and cached."""

    def __init__(self, transport: Transport, duties: Duties) -> None:
        self._transport = transport
        self._duties = duties
        self._supported: dict[tuple[str, str], bool] = {}
        self._checks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def supports(self, model: str, digest: str) -> bool | None:
        """Return whether a model can be resumed, None before its check."""
        return self._supported.get((model, digest))

    def check(
        self,
        nodes: Sequence[Endpoint],
        model: str,
        digest: str,
        body: Mapping[str, Any],
        impossible: Callable[[], None],
    ) -> None:
        """Check support in the background, once, with this request, whose options are loaded.

        `impossible` is called if no node supports it.
        """
        key = (model, digest)
        if key in self._supported:
            return
        check = self._checks.get(key)
        if check is None:
            name = f"checking resume support of {model}"
            check = self._checks[key] = self._duties.once(name, self._check(nodes, key, body))
        if not check.done():
            check.add_done_callback(lambda _: None if self._supported.get(key, True) else impossible())

    async def _check(self, nodes: Sequence[Endpoint], key: tuple[str, str], body: Mapping[str, Any]) -> None:
        for node in nodes[:NODES_MOST]:
            try:
                async with asyncio.timeout(CHECK_S):
                    if await self.render_prompt(node, *key, body) is not None:
                        return
            except (TransportFault, NotRendered, TimeoutError):
                continue  # try the next node
            except Exception:
                del self._checks[key]  # the next stream repeats the check
                raise

    async def render_prompt(self, node: Endpoint, model: str, digest: str, body: Mapping[str, Any]) -> str | None:
        """Return the exact prompt of a request; None if the node cannot render it, or another could not resume it.

        Raises:
            NotRendered: The node refused now.
            TransportFault: The node did not answer.
        """
        key = (model, digest)
        if not self._supported.get(key):
            reply = await self._transport.send(node, _post("/api/show", {"model": model}))
            answer = await reply.read()
            if reply.status != 200:
                raise NotRendered(refusal(reply.status, answer, reply.headers))
            if "thinking" in (_object(answer).get("capabilities") or ()):
                self._supported[key] = False  # its output is parsed, so the text differs from the generated tokens
                return None
        prompt = await render(self._transport, node, body)
        self._supported[key] = prompt is not None or self._supported.get(key, False)
        return prompt

    async def aclose(self) -> None:
        """Cancel all checks."""
        for check in self._checks.values():
            check.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)


class NotRendered(Exception):
    """The node refused to render a prompt at this time."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__(outcome.message)


async def render(transport: Transport, node: Endpoint, body: Mapping[str, Any]) -> str | None:
    """Return the exact prompt of a request; None if the node cannot render it.

    Raises:
        NotRendered: The node refused now.
        TransportFault: The node did not answer.
    """
    if body.get("raw"):
        return str(body.get("prompt", ""))
    # A node without support for the field would answer: limit that to one token.
    options = {**(body.get("options") or {}), "num_predict": 1}
    request = {**body, "options": options, "stream": False, "_debug_render_only": True}
    reply = await transport.send(node, _post("/api/chat" if "messages" in body else "/api/generate", request))
    answer = await reply.read()
    if reply.status != 200:
        raise NotRendered(refusal(reply.status, answer, reply.headers))
    prompt = _object(_object(answer).get("_debug_info")).get("rendered_template")
    return prompt if isinstance(prompt, str) and prompt else None


def _object(answer: Any) -> dict[str, Any]:
    """Return the decoded object, {} for anything else."""
    try:
        found = decode(answer) if isinstance(answer, bytes) else answer
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _post(path: str, body: Mapping[str, Any]) -> Call:
    return Call("POST", path, encode(body), timeouts=TIMEOUTS)


class PartialResponse:
    """The received part of an answer, from all nodes that contributed."""

    __slots__ = (
        "_exact",
        "_parts",
        "_tokens",
        "body",
        "decode_us",
        "kind",
        "model",
        "resumptions",
        "thoughts",
        "tool_calls",
        "unread",
    )

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        self.kind = kind
        self.body = body
        self.model = str(body["model"])
        self.decode_us = 0
        self.resumptions: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._tokens = 0  # one token per line of a stream
        self.unread: list[bytes] = []  # undecoded parts; always this list object, see `add`
        self._exact = True
        self.thoughts: list[str] = []
        self.tool_calls: list[Any] = []

    @property
    def text(self) -> str:
        """The received text."""
        self.read()
        return "".join(self._parts)

    @property
    def tokens(self) -> int:
        """The number of received tokens."""
        self.read()
        return self._tokens

    @property
    def is_exact(self) -> bool:
        """False after a thought, a tool call or an unreadable line: no node can resume it exactly."""
        self.read()
        return self._exact

    def add(self, piece: bytes) -> None:
        """Add a delivered part in the request's own format: one line or several.

        Decoding each at once would cost as much as relaying it, so it is done in batches, or on demand. (Compiled code
        appends to `unread` itself, and calls `read` at UNREAD parts.)
        """
        self.unread.append(piece)
        if len(self.unread) >= UNREAD:
            self.read()

    def read(self) -> None:
        """Decode the undecoded parts."""
        if self.unread:
            unread = self.unread.copy()
            self.unread.clear()
            try:
                texts = [text for text in self.texts_of(unread) if text]
            except msgspec.DecodeError:
                self._exact = False
            else:
                self._parts.append("".join(texts))
                self._tokens += len(texts)

    def texts_of(self, pieces: list[bytes]) -> list[str]:
        """Return the texts of the parts in pieces, "" for a part without text.

        Raises:
            DecodeError: A part is unreadable.
        """
        texts = []
        for line in _lines(b"\n".join(pieces)):
            fields = line.message or line
            if fields.thinking or fields.tool_calls:
                self._exact = False
                self.thoughts.append(fields.thinking or "")
                self.tool_calls += fields.tool_calls or ()
            texts.append(line.response or (line.message.content if line.message else "") or "")
        return texts

    @property
    def left(self) -> int | None:
        """The rest of `num_predict`; None without a limit (0 is none either)."""
        predict = (self.body.get("options") or {}).get("num_predict")
        return int(predict) - self.tokens if isinstance(predict, (int, float)) and predict >= 1 else None

    @property
    def is_complete(self) -> bool:
        """True if `num_predict` is reached: only the final line is missing."""
        return self.is_exact and self.left is not None and self.left <= 0

    def call(self, prompt: str, timeouts: Timeouts) -> Call:
        """Return the request that resumes the answer.

        Raises:
            ValueError: It cannot be resumed exactly (see `is_exact`).
        """
        if not self.is_exact:
            raise ValueError("the answer so far is not plain text: no other node can resume it")
        options = dict(self.body.get("options") or {})
        if self.left is not None:
            options["num_predict"] = self.left
        # An error is better than a truncated prompt: an answer that outgrows the context cannot be resumed exactly.
        body = {"model": self.model, "prompt": prompt + self.text, "raw": True, "stream": True, "truncate": False}
        body["options"] = options
        body |= {name: self.body[name] for name in ("keep_alive", "shift") if name in self.body}
        return Call("POST", "/api/generate", encode(body), stream=True, timeouts=timeouts)

    def translate(self, line: bytes, before: int, elapsed_us: int) -> bytes:
        """Return a line of raw generate in the format of the request.

        `before`: tokens received when this node resumed the answer.
        """
        found = decode(line)
        text = str(found.pop("response", ""))
        found.pop("context", None)
        if self.kind is Kind.CHAT:
            fields: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            fields = {"response": text}
        head = {name: found.pop(name) for name in ("model", "created_at") if name in found}
        if found.get("done"):
            # The received text was a part of the node's prompt.
            found["prompt_eval_count"] = max(0, found.get("prompt_eval_count", 0) - before)
            found["eval_count"] = before + found.get("eval_count", 0)
            found["eval_duration"] = self.decode_us * 1000 + found.get("eval_duration", 0)
            found["total_duration"] = elapsed_us * 1000
        return encode({**head, **fields, **found})

    def finished(self, elapsed_us: int) -> bytes:
        """Return the last line, for a node that died between the last token and that line."""
        fields: dict[str, Any] = {"response": ""}
        if self.kind is Kind.CHAT:
            fields = {"message": {"role": "assistant", "content": ""}}
        ending = {
            "done": True,
            "done_reason": "length",
            "total_duration": elapsed_us * 1000,
            "eval_count": self.tokens,
            "eval_duration": self.decode_us * 1000,
        }
        return encode({"model": self.model, **fields, **ending})


class _StreamMessage(msgspec.Struct, gc=False):
    content: str | None = ""
    thinking: str | None = ""
    tool_calls: list[Any] | None = None


class _StreamLine(msgspec.Struct, gc=False):
    response: str | None = ""
    message: _StreamMessage | None = None
    thinking: str | None = ""
    tool_calls: list[Any] | None = None


_lines = json_lines(_StreamLine)
