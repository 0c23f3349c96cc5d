"""How a node says a text: load, wait for a slot, read the prompt, say the words; in any protocol's words.

A Voice turns tokens and the end into bytes (see voices.py); this file owns the time. In prefill nothing stops the
runner: when the client leaves there, its slot stays taken until that prefill would have ended. While waiting and in
decode leaving takes effect at once. A stream is written by a task of its own, so it does not wait for its reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sollol.sim.ask import Refusal
from sollol.sim.machine import NodeDied
from sollol.sim.models import ModelSpec
from sollol.sim.reply import PLAIN_JSON, SimReply
from sollol.sim.runner import Runner, ServerBusy
from sollol.sim.words import Speech, common_prefix, count_tokens, json_speech, speech
from sollol.transport.base import Fault, TransportFault

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

RUNNER_GONE = "an error was encountered while running the model: unexpected EOF"
_WARM_LOAD_NS = 1_000_000  # what a warm model reports: one to seven milliseconds, never zero
REPEATS = 30  # tokens like the one before, after which Ollama ends an answer
_THOUGHTS = 8


class End(NamedTuple):
    """How an answer ended; durations in nanoseconds."""

    reason: str
    prompt_tokens: int
    tokens: int
    total_ns: int
    load_ns: int
    prefill_ns: int
    decode_ns: int


@dataclass
class Answer:
    """Everything that was said."""

    tokens: list[str]
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    prompt: str = ""

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)


class Voice(Protocol):
    """A protocol's way to write an answer."""

    stream_type: str
    stream_headers: dict[str, str]
    events_apart: bool  # each event is a chunk of its own, even those written together

    def piece(self, text: str, *, thinking: bool = False) -> bytes: ...
    def last(self, answer: Answer, end: End) -> bytes: ...
    def whole(self, answer: Answer, end: End) -> SimReply: ...
    def broken(self, message: str) -> bytes: ...
    def refused(self, refusal: Refusal) -> SimReply: ...


@dataclass
class Wish:
    """What is to be said."""

    model: ModelSpec
    prompt: str
    options: dict[str, Any]
    keep_alive_s: float | None
    voice: Voice
    stream: bool
    format: Any = None
    truncate: bool = True
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False
    reason: str = "stop"

    def say(self, num_ctx: int) -> Answer:
        """The whole answer, decided at once; saying it takes time later."""
        asked = self.options.get("num_predict")
        limit = asked if asked is not None and asked > 0 else num_ctx
        if self.tools:
            return Answer([], tool_calls=self.tools, prompt=self.prompt)
        seed, prompt = self.options.get("seed") or 0, self.prompt
        thoughts: list[str] = []
        if self.think:
            thoughts = speech(self.model, seed + 1, prompt, min(_THOUGHTS, limit)).tokens
        found = self._speech(seed, prompt, limit - len(thoughts))
        self.reason = found.reason
        return Answer(found.tokens, thoughts, prompt=prompt)

    def _speech(self, seed: int, prompt: str, limit: int) -> Speech:
        if self.format:
            return json_speech(self.format, limit)
        stop = self.options.get("stop") or ()
        return speech(self.model, seed, prompt, limit, (stop,) if isinstance(stop, str) else stop)


async def generate(node: SimNode, wish: Wish) -> SimReply:
    """Carry out a wish; the reply is complete, or a stream whose head is there."""
    if not wish.stream:
        return await _Saying(node, wish).whole()
    reply = SimReply()
    head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    reply.writer = node.spawn(_Saying(node, wish, reply, head).stream())
    try:
        await head
    except BaseException:
        node.disown(reply.writer)
        raise
    return reply


class _Saying:
    """One answer under way."""

    def __init__(
        self, node: SimNode, wish: Wish, reply: SimReply | None = None, head: asyncio.Future[None] | None = None
    ) -> None:
        self.node, self.wish, self.voice, self.reply, self.head = node, wish, wish.voice, reply, head
        self.machine = node.machine
        self.began_s = asyncio.get_running_loop().time()
        self.loaded_s = self.read_s = self.began_s
        self.prompt_tokens = self.prefill_ns = 0
        self.straggle = 1.0
        self.repeated = False  # it ran into the limit of equal tokens: the stream ends without an end

    async def whole(self) -> SimReply:
        faults = self.node.faults
        if faults.late_error_after is not None:
            raise Refusal(500, RUNNER_GONE)
        answer = await self._through(self._say_at_once)
        return self.voice.whole(answer, self._end(answer))

    async def stream(self) -> None:
        """The writer of a stream; all that can happen becomes part of the reply."""
        assert self.reply is not None
        try:
            answer = await self._through(self._say_in_pieces)
            if not self.repeated:
                self._write(self.voice.last(answer, self._end(answer)))
            self.reply.finish()
        except Refusal as refusal:
            self._refuse(refusal)
        except NodeDied:
            self._fail(TransportFault(Fault.CUT, "the node died inside the answer"))
        except TransportFault as fault:
            self._fail(fault)
        except Exception as bug:
            self._fail(TransportFault(Fault.PROTOCOL, f"the simulated node has a bug: {bug!r}"))
            raise

    async def _through(self, say: Callable[[Runner, Answer], Awaitable[None]]) -> Answer:
        wish = self.wish
        try:
            async with self.node.runners.use(wish.model, wish.options, wish.keep_alive_s) as runner:
                self.loaded_s = asyncio.get_running_loop().time()
                self._measure(runner)
                await runner.slots.acquire()
                return await self._in_slot(runner, say)
        except ServerBusy as busy:
            raise Refusal(503, str(busy)) from None

    def _measure(self, runner: Runner) -> None:
        """Count the prompt; refuse or halve one that does not fit."""
        tokens, num_ctx = count_tokens(self.wish.prompt), runner.num_ctx
        if tokens > num_ctx and not self.wish.truncate:
            raise Refusal(
                400,
                f'{{"error":{{"code":400,"message":"request ({tokens} tokens) exceeds the available context size '
                f'({num_ctx} tokens), try increasing it","type":"exceed_context_size_error",'
                f'"n_prompt_tokens":{tokens},"n_ctx":{num_ctx}}}}}',
            )
        self.prompt_tokens = tokens if tokens <= num_ctx else num_ctx // 2 + 3

    async def _in_slot(self, runner: Runner, say: Callable[[Runner, Answer], Awaitable[None]]) -> Answer:
        await self._prefill(runner)
        runner.decoding += 1
        try:
            answer = self.wish.say(runner.num_ctx)
            await say(runner, answer)
            runner.said.append(self.wish.prompt + answer.text)
            return answer
        finally:
            runner.decoding -= 1
            runner.slots.release()

    async def _prefill(self, runner: Runner) -> None:
        prompt, rate = self.wish.prompt, self.node.spec.prefill_tokens_per_s
        seconds = 0.0
        if rate and prompt:
            share = max((common_prefix(prompt, said) for said in runner.said), default=0) / len(prompt)
            fresh = max(1.0, self.prompt_tokens * (1.0 - share))
            seconds = fresh / rate * runner.slowdown * self.node.toss()
        target_s = self.machine.now() + seconds
        began_s = asyncio.get_running_loop().time()
        try:
            if seconds or self.machine.frozen:
                await self.machine.until(target_s)
        except asyncio.CancelledError:
            self.node.linger(runner, self._notices_s(target_s, seconds))
            raise
        except BaseException:
            runner.slots.release()
            raise
        self.read_s = asyncio.get_running_loop().time()
        self.prefill_ns = round((self.read_s - began_s) * 1e9)

    def _notices_s(self, target_s: float, seconds: float) -> float:
        """When the runner notices, in prefill, that its client left: at the end of a batch, or of the prompt."""
        batch = self.node.spec.prefill_batch
        if batch is None or not seconds:
            return target_s
        batch_s = seconds * batch / max(1, self.prompt_tokens)
        done_s = self.machine.now() - (target_s - seconds)
        return min(target_s, target_s - seconds + batch_s * (int(done_s / batch_s) + 1))

    def _token_s(self, runner: Runner) -> float:
        """Seconds for one token, with as many others decoding beside it as now."""
        rate = self.node.spec.decode_tokens_per_s
        if not rate:
            return 0.0
        beside = max(runner.decoding, 1)
        total = rate * (1.0 + (beside - 1) * self.node.spec.parallel_gain)
        return beside / total * runner.slowdown * self.straggle

    async def _say_at_once(self, runner: Runner, answer: Answer) -> None:
        self.straggle = self.node.toss()
        left = self._cost(answer)
        step = left if runner.slots.count == 1 else 8
        target_s = self.machine.now()
        while left > 0:
            target_s += min(step, left) * self._token_s(runner)
            left -= step
            await self.machine.until(target_s)

    def _cost(self, answer: Answer) -> int:
        """Tokens it took: the end mark is one, a tool call a dozen."""
        said = len(answer.tokens) + len(answer.thoughts) + 12 * len(answer.tool_calls)
        return said + (1 if self._reason(answer) == "stop" else 0)

    def _reason(self, answer: Answer) -> str:
        return "stop" if answer.tool_calls else self.wish.reason

    async def _say_in_pieces(self, runner: Runner, answer: Answer) -> None:
        self.straggle = self.node.toss()
        target_s, timed = self.machine.now(), self.node.spec.decode_tokens_per_s is not None
        voice, said = self.voice, 0
        before, equal = "", 0
        for token, thinking in [*((t, True) for t in answer.thoughts), *((t, False) for t in answer.tokens)]:
            if timed or self.machine.frozen:
                target_s += self._token_s(runner)
                await self.machine.until(target_s)
            elif said % 64 == 63:
                await asyncio.sleep(0)  # an instant node still lets others speak
            await self._break_after(said)
            equal = equal + 1 if token.strip() == before else 0
            before = token.strip()
            if equal > REPEATS:
                self.repeated = True
                return
            self._write(voice.piece(token, thinking=thinking))
            said += 1
        if timed and (rest := self._cost(answer) - said) > 0:
            await self.machine.until(target_s + rest * self._token_s(runner))
        await self._break_after(said, at_end=True)

    async def _break_after(self, said: int, *, at_end: bool = False) -> None:
        """The faults of streams."""
        faults = self.node.faults
        if faults.cut_after is not None and said >= faults.cut_after:
            raise TransportFault(Fault.CUT, "the connection was closed inside the answer")
        if faults.late_error_after is not None and (said >= faults.late_error_after or at_end):
            raise Refusal(500, RUNNER_GONE)
        while (stall := self.node.faults.stall_after) is not None and said >= stall:  # healing makes new faults
            await self.machine.wait(self.node.healed())

    def _end(self, answer: Answer) -> End:
        now_s, cost = asyncio.get_running_loop().time(), self._cost(answer)
        self.node.counters.tokens += cost
        return End(
            self._reason(answer),
            self.prompt_tokens,
            cost,
            round((now_s - self.began_s) * 1e9) + _WARM_LOAD_NS,
            round((self.loaded_s - self.began_s) * 1e9) + _WARM_LOAD_NS,
            max(self.prefill_ns, 1000),
            max(round((now_s - self.read_s) * 1e9), 1000),
        )

    def _write(self, piece: bytes) -> None:
        assert self.reply is not None
        if self.head is not None and not self.head.done():
            self.reply.begin(200, self.voice.stream_type, **self.voice.stream_headers)
            self.head.set_result(None)
        if self.voice.events_apart:
            for event in piece.split(b"\n\n")[:-1]:
                self.reply.push(event + b"\n\n")
        else:
            self.reply.push(piece)

    def _refuse(self, refusal: Refusal) -> None:
        """Before the first byte an error has a status; after it, it is the last line of a 200."""
        assert self.reply is not None
        assert self.head is not None
        if self.head.done():
            self.reply.push(self.voice.broken(refusal.message))
        else:
            answer = self.voice.refused(refusal)
            self.reply.begin(refusal.status, PLAIN_JSON)
            if refusal.status != 400:  # refused before the stream's own writer, which names no charset
                self.reply.headers = answer.headers
            self.reply.push(answer.peek())
            self.head.set_result(None)
        self.reply.finish()

    def _fail(self, fault: TransportFault) -> None:
        assert self.reply is not None
        assert self.head is not None
        if self.head.done():
            self.reply.fail(str(fault), fault.fault)
        elif not self.head.cancelled():
            self.head.set_exception(fault)
