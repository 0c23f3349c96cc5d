"""Going on with an answer that broke off, on another node, without a repeated or lost character.

A node renders the prompt of the request (`_debug_render_only`), and raw generate goes on from that prompt + the text so
far; its lines are then said in the words of the request, with summed counts and what is left of `num_predict`.
A chat whose last message is the assistant's is not a way: most templates close it and say everything again.
Exact only for plain text: no tools, no format, no images, no thinking, no options that change what is sent. Whether
a model's nodes can do it is asked once for each model digest, while its first stream runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_lines
from sollol.backends.ollama import decode, encode, refusal
from sollol.core.endpoint import Endpoint
from sollol.core.types import Kind, Outcome
from sollol.duties import Duties
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=30.0, idle_s=30.0)
ASKED = 3  # nodes, at most, whether one of them can go on with a model
ASK_S = 5.0  # that each of them has to answer
UNREAD: Final = 64  # parts that are kept as they came
# Fields that leave an answer plain text going on from its prompt. Any other makes continuation inexact.
_PLAIN = frozenset(["model", "messages", "prompt", "stream", "options", "keep_alive", "system", "template", "raw"])


def is_plain(body: Mapping[str, Any]) -> bool:
    """Could an answer to this request be continued, as far as the request tells?"""
    if not (body.get("messages") or body.get("prompt")):  # it only loads or unloads the model
        return False
    if not all(name in _PLAIN or not value for name, value in body.items()):
        return False
    return not any(m.get("images") or m.get("tool_calls") for m in body.get("messages") or () if isinstance(m, Mapping))


class ResumeSupport:
    """Which models can be continued, by their digest; asked beforehand and remembered."""

    def __init__(self, transport: Transport, duties: Duties) -> None:
        self._transport = transport
        self._duties = duties
        self._known: dict[tuple[str, str], bool] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[None]] = {}

    def can(self, model: str, digest: str) -> bool | None:
        """None: not known yet."""
        return self._known.get((model, digest))

    def ask(
        self,
        nodes: Sequence[Endpoint],
        model: str,
        digest: str,
        body: Mapping[str, Any],
        impossible: Callable[[], None],
    ) -> None:
        """Find out in the background, once, with the request at hand (its options: others would reload the model).
        `impossible` is called if it turns out that nobody can."""
        key = (model, digest)
        if key in self._known:
            return
        asked = self._asked.get(key)
        if asked is None:
            name = f"whether other nodes can go on with {model}"
            asked = self._asked[key] = self._duties.once(name, self._find_out(nodes, key, body))
        if not asked.done():
            asked.add_done_callback(lambda _: None if self._known.get(key, True) else impossible())

    async def _find_out(self, nodes: Sequence[Endpoint], key: tuple[str, str], body: Mapping[str, Any]) -> None:
        for node in nodes[:ASKED]:
            try:
                async with asyncio.timeout(ASK_S):
                    if await self.learn(node, *key, body) is not None:
                        return
            except (TransportFault, NotRendered, TimeoutError):
                continue  # another node may tell
            except Exception:
                del self._asked[key]  # the next stream asks again
                raise

    async def learn(self, node: Endpoint, model: str, digest: str, body: Mapping[str, Any]) -> str | None:
        """The exact prompt that this node makes of a request; None if it cannot tell, or another could not go on from
        it. Raises NotRendered and TransportFault."""
        key = (model, digest)
        if not self._known.get(key):
            reply = await self._transport.send(node, _post("/api/show", {"model": model}))
            told = await reply.read()
            if reply.status != 200:
                raise NotRendered(refusal(reply.status, told, reply.headers))
            if "thinking" in (_object(told).get("capabilities") or ()):
                self._known[key] = False  # its output is parsed: what is said is not what was generated
                return None
        prompt = await render(self._transport, node, body)
        self._known[key] = prompt is not None or self._known.get(key, False)
        return prompt

    async def aclose(self) -> None:
        for asking in self._asked.values():
            asking.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)


class NotRendered(Exception):
    """The node refused to render a prompt, now."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__(outcome.message)


async def render(transport: Transport, node: Endpoint, body: Mapping[str, Any]) -> str | None:
    """The exact prompt that a node makes of a request; None if it does not know how to tell. Raises NotRendered."""
    if body.get("raw"):
        return str(body.get("prompt", ""))
    # A node that does not know the field would answer: let that be one token.
    options = {**(body.get("options") or {}), "num_predict": 1}
    asked = {**body, "options": options, "stream": False, "_debug_render_only": True}
    reply = await transport.send(node, _post("/api/chat" if "messages" in body else "/api/generate", asked))
    told = await reply.read()
    if reply.status != 200:
        raise NotRendered(refusal(reply.status, told, reply.headers))
    prompt = _object(_object(told).get("_debug_info")).get("rendered_template")
    return prompt if isinstance(prompt, str) and prompt else None


def _object(told: Any) -> dict[str, Any]:
    """What was told, or no fields if that is not an object."""
    try:
        found = decode(told) if isinstance(told, bytes) else told
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _post(path: str, body: Mapping[str, Any]) -> Call:
    return Call("POST", path, encode(body), timeouts=TIMEOUTS)


class PartialResponse:
    """What the caller has received of an answer, over all the nodes that gave it."""

    __slots__ = (
        "_exact",
        "_parts",
        "_tokens",
        "body",
        "decode_us",
        "kind",
        "model",
        "seams",
        "thoughts",
        "tool_calls",
        "unread",
    )

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        self.kind = kind
        self.body = body
        self.model = str(body["model"])
        self.decode_us = 0
        self.seams: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._tokens = 0  # a line of a stream is a token
        self.unread: list[bytes] = []  # parts as they came: always this list, see `hear`
        self._exact = True
        self.thoughts: list[str] = []
        self.tool_calls: list[Any] = []

    @property
    def text(self) -> str:
        self.read()
        return "".join(self._parts)

    @property
    def tokens(self) -> int:
        self.read()
        return self._tokens

    @property
    def is_exact(self) -> bool:
        """False once it was more than text (a thought, a tool call), or cannot be read: nobody can go on from there."""
        self.read()
        return self._exact

    def hear(self, piece: bytes) -> None:
        """A part in the request's own dialect, one line or several, goes to the caller.

        Decoding each as it passes would cost as much as passing it on: it is done in batches, or when somebody asks.
        (Compiled code adds to `unread` itself, and calls `read` when UNREAD are there.)"""
        self.unread.append(piece)
        if len(self.unread) >= UNREAD:
            self.read()

    def read(self) -> None:
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
        """The texts of the parts in pieces, "" where there is none. Raises DecodeError."""
        texts = []
        for line in _lines(b"\n".join(pieces)):
            said = line.message or line
            if said.thinking or said.tool_calls:
                self._exact = False
                self.thoughts.append(said.thinking or "")
                self.tool_calls += said.tool_calls or ()
            texts.append(line.response or (line.message.content if line.message else "") or "")
        return texts

    @property
    def left(self) -> int | None:
        """What is left of `num_predict`; None where there is no bound (0 is none either)."""
        predict = (self.body.get("options") or {}).get("num_predict")
        return int(predict) - self.tokens if isinstance(predict, (int, float)) and predict >= 1 else None

    @property
    def is_complete(self) -> bool:
        """All that was asked for is said; only the line that tells so is missing."""
        return self.is_exact and self.left is not None and self.left <= 0

    def call(self, prompt: str, timeouts: Timeouts) -> Call:
        """The request that goes on from here. ValueError where it cannot be one (see `is_exact`)."""
        if not self.is_exact:
            raise ValueError("the answer so far is not plain text: no other node can go on with it")
        options = dict(self.body.get("options") or {})
        if self.left is not None:
            options["num_predict"] = self.left
        # Rather an error than a prompt without its beginning: an answer that outgrows the context cannot go on exactly.
        body = {"model": self.model, "prompt": prompt + self.text, "raw": True, "stream": True, "truncate": False}
        body["options"] = options
        body |= {name: self.body[name] for name in ("keep_alive", "shift") if name in self.body}
        return Call("POST", "/api/generate", encode(body), stream=True, timeouts=timeouts)

    def translate(self, line: bytes, before: int, elapsed_us: int) -> bytes:
        """A line of raw generate in the words of the request. `before`: tokens said when this node took over."""
        found = decode(line)
        text = str(found.pop("response", ""))
        found.pop("context", None)
        if self.kind is Kind.CHAT:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            said = {"response": text}
        head = {name: found.pop(name) for name in ("model", "created_at") if name in found}
        if found.get("done"):
            # The node read the text so far as a part of its prompt.
            found["prompt_eval_count"] = max(0, found.get("prompt_eval_count", 0) - before)
            found["eval_count"] = before + found.get("eval_count", 0)
            found["eval_duration"] = self.decode_us * 1000 + found.get("eval_duration", 0)
            found["total_duration"] = elapsed_us * 1000
        return encode({**head, **said, **found})

    def finished(self, elapsed_us: int) -> bytes:
        """The last line, where the node died between the last token allowed and saying so."""
        said: dict[str, Any] = {"response": ""}
        if self.kind is Kind.CHAT:
            said = {"message": {"role": "assistant", "content": ""}}
        ending = {
            "done": True,
            "done_reason": "length",
            "total_duration": elapsed_us * 1000,
            "eval_count": self.tokens,
            "eval_duration": self.decode_us * 1000,
        }
        return encode({"model": self.model, **said, **ending})


class _Message(msgspec.Struct, gc=False):
    content: str | None = ""
    thinking: str | None = ""
    tool_calls: list[Any] | None = None


class _Line(msgspec.Struct, gc=False):
    response: str | None = ""
    message: _Message | None = None
    thinking: str | None = ""
    tool_calls: list[Any] | None = None


_lines = json_lines(_Line)
