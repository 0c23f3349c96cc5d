"""Generate a text: load the model, wait for a slot, read the prompt, write the tokens.

An AnswerWriter turns tokens into the bytes of a protocol; this file owns the time. In prefill nothing stops the runner:
when the client leaves, the slot stays taken until the prefill would have ended. While waiting and in decode, leaving
takes effect at once. A stream is written by a task of its own, so it does not wait for its reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sollol.sim.machine import NodeDied
from sollol.sim.models import ModelSpec
from sollol.sim.reply import PLAIN_JSON, SimReply
from sollol.sim.request import Refusal
from sollol.sim.runner import LoadFailed, Runner, ServerBusy
from sollol.sim.words import GeneratedText, common_prefix, count_tokens, generated_json, generated_text
from sollol.transport.base import Fault, TransportFault

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

RUNNER_GONE = "an error was encountered while running the model: unexpected EOF"
_WARM_LOAD_NS = 1_000_000  # a warm model reports one to seven milliseconds, never zero
REPEATS = 30  # tokens like the one before, after which Ollama ends an answer
_THOUGHTS = 8


class AnswerEnd(NamedTuple):
    """Hold the reason, the counts and the durations (nanoseconds) of a complete answer."""

    reason: str
    prompt_tokens: int
    tokens: int
    total_ns: int
    load_ns: int
    prefill_ns: int
    decode_ns: int


@dataclass
class SimAnswer:
    """Hold the tokens, thoughts and tool calls of an answer."""

    tokens: list[str]
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    prompt: str = ""

    @property
    def text(self) -> str:
        """Return the text of the answer."""
        return "".join(self.tokens)

    @property
    def thinking(self) -> str:
        """Return the thoughts before the answer."""
        return "".join(self.thoughts)


class AnswerWriter(Protocol):
    """Write an answer in the form of one protocol."""

    stream_type: str
    stream_headers: dict[str, str]
    events_apart: bool  # each event is a chunk of its own, even those written together

    def piece(self, text: str, *, thinking: bool = False) -> bytes:
        """Return the bytes of one token."""
        ...

    def last(self, answer: SimAnswer, end: AnswerEnd) -> bytes:
        """Return the bytes that end a stream."""
        ...

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        ...

    def broken(self, message: str) -> bytes:
        """Return the bytes of an error inside a stream."""
        ...

    def refused(self, refusal: Refusal) -> SimReply:
        """Return the answer to a request that fails before its first byte."""
        ...


@dataclass
class GenerationRequest:
    """Hold what a text is generated from."""

    model: ModelSpec
    prompt: str
    options: dict[str, Any]
    keep_alive_s: float | None
    writer: AnswerWriter
    stream: bool
    format: Any = None
    truncate: bool = True
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False
    reason: str = "stop"

    def answer(self, num_ctx: int) -> SimAnswer:
        """Return the whole answer, which depends on the prompt, the seed and the model alone."""
        most = self.options.get("num_predict")
        limit = most if most is not None and most > 0 else num_ctx
        if self.tools:
            return SimAnswer([], tool_calls=self.tools, prompt=self.prompt)
        seed, prompt = self.options.get("seed") or 0, self.prompt
        thoughts: list[str] = []
        if self.think:
            thoughts = generated_text(self.model, seed + 1, prompt, min(_THOUGHTS, limit)).tokens
        found = self._generated(seed, prompt, limit - len(thoughts))
        self.reason = found.reason
        return SimAnswer(found.tokens, thoughts, prompt=prompt)

    def _generated(self, seed: int, prompt: str, limit: int) -> GeneratedText:
        if self.format:
            return generated_json(self.format, limit)
        stop = self.options.get("stop") or ()
        return generated_text(self.model, seed, prompt, limit, (stop,) if isinstance(stop, str) else stop)


async def generate(node: SimNode, generation: GenerationRequest) -> SimReply:
    """Generate a text. The reply is complete, or a stream whose head is written."""
    if not generation.stream:
        return await _AnswerRun(node, generation).whole()
    reply = SimReply()
    head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    reply.writer = node.spawn(_AnswerRun(node, generation, reply, head).stream())
    try:
        await head
    except BaseException:
        node.discard_writer(reply.writer)
        raise
    return reply


class _AnswerRun:
    """Write one answer in the time that it takes."""

    def __init__(
        self,
        node: SimNode,
        generation: GenerationRequest,
        reply: SimReply | None = None,
        head: asyncio.Future[None] | None = None,
    ) -> None:
        self.node, self.generation, self.writer, self.reply, self.head = (
            node,
            generation,
            generation.writer,
            reply,
            head,
        )
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
        answer = await self._through(self._write_at_once)
        return self.writer.whole(answer, self._end(answer))

    async def stream(self) -> None:
        """Write a stream. Errors become part of the reply."""
        assert self.reply is not None
        try:
            answer = await self._through(self._write_in_pieces)
            if not self.repeated:
                self._write(self.writer.last(answer, self._end(answer)))
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

    async def _through(self, write: Callable[[Runner, SimAnswer], Awaitable[None]]) -> SimAnswer:
        generation = self.generation
        try:
            async with self.node.runners.use(generation.model, generation.options, generation.keep_alive_s) as runner:
                self.loaded_s = asyncio.get_running_loop().time()
                self._measure(runner)
                await runner.slots.acquire()
                return await self._in_slot(runner, write)
        except ServerBusy as busy:
            raise Refusal(503, str(busy)) from None
        except LoadFailed as failed:
            raise Refusal(500, str(failed)) from None

    def _measure(self, runner: Runner) -> None:
        """Count the tokens of the prompt. Refuse or halve one that does not fit."""
        tokens, num_ctx = count_tokens(self.generation.prompt), runner.num_ctx
        if tokens > num_ctx and not self.generation.truncate:
            raise Refusal(
                400,
                f'{{"error":{{"code":400,"message":"request ({tokens} tokens) exceeds the available context size '
                f'({num_ctx} tokens), try increasing it","type":"exceed_context_size_error",'
                f'"n_prompt_tokens":{tokens},"n_ctx":{num_ctx}}}}}',
            )
        self.prompt_tokens = tokens if tokens <= num_ctx else num_ctx // 2 + 3

    async def _in_slot(self, runner: Runner, write: Callable[[Runner, SimAnswer], Awaitable[None]]) -> SimAnswer:
        await self._prefill(runner)
        runner.decoding += 1
        try:
            answer = self.generation.answer(runner.num_ctx)
            await write(runner, answer)
            runner.cached_texts.append(self.generation.prompt + answer.text)
            return answer
        finally:
            runner.decoding -= 1
            runner.slots.release()

    async def _prefill(self, runner: Runner) -> None:
        prompt, rate = self.generation.prompt, self.node.spec.prefill_tokens_per_s
        seconds = 0.0
        if rate and prompt:
            share = max((common_prefix(prompt, written) for written in runner.cached_texts), default=0) / len(prompt)
            fresh = max(1.0, self.prompt_tokens * (1.0 - share))
            seconds = fresh / rate * runner.slowdown * self.node.duration_factor()
        target_s = self.machine.now() + seconds
        began_s = asyncio.get_running_loop().time()
        try:
            if seconds or self.machine.frozen:
                await self.machine.until(target_s)
        except asyncio.CancelledError:
            self.node.hold_slot(runner, self._notices_s(target_s, seconds))
            raise
        except BaseException:
            runner.slots.release()
            raise
        self.read_s = asyncio.get_running_loop().time()
        self.prefill_ns = round((self.read_s - began_s) * 1e9)

    def _notices_s(self, target_s: float, seconds: float) -> float:
        """Return when the runner notices, in prefill, that its client left: after a batch, or the whole prompt."""
        batch = self.node.spec.prefill_batch
        if batch is None or not seconds:
            return target_s
        batch_s = seconds * batch / max(1, self.prompt_tokens)
        done_s = self.machine.now() - (target_s - seconds)
        return min(target_s, target_s - seconds + batch_s * (int(done_s / batch_s) + 1))

    def _token_s(self, runner: Runner) -> float:
        """Return the seconds for one token, with the present number of answers in decode."""
        rate = self.node.spec.decode_tokens_per_s
        if not rate:
            return 0.0
        beside = max(runner.decoding, 1)
        total = rate * (1.0 + (beside - 1) * self.node.spec.parallel_gain)
        return beside / total * runner.slowdown * self.straggle

    async def _write_at_once(self, runner: Runner, answer: SimAnswer) -> None:
        self.straggle = self.node.duration_factor()
        left = self._cost(answer)
        step = left if runner.slots.count == 1 else 8
        target_s = self.machine.now()
        while left > 0:
            target_s += min(step, left) * self._token_s(runner)
            left -= step
            await self.machine.until(target_s)

    def _cost(self, answer: SimAnswer) -> int:
        """Return the tokens of an answer: the end mark counts one, a tool call a dozen."""
        written = len(answer.tokens) + len(answer.thoughts) + 12 * len(answer.tool_calls)
        return written + (1 if self._reason(answer) == "stop" else 0)

    def _reason(self, answer: SimAnswer) -> str:
        return "stop" if answer.tool_calls else self.generation.reason

    async def _write_in_pieces(self, runner: Runner, answer: SimAnswer) -> None:
        self.straggle = self.node.duration_factor()
        target_s, timed = self.machine.now(), self.node.spec.decode_tokens_per_s is not None
        writer, written = self.writer, 0
        before, equal = "", 0
        for token, thinking in [*((t, True) for t in answer.thoughts), *((t, False) for t in answer.tokens)]:
            if timed or self.machine.frozen:
                target_s += self._token_s(runner)
                await self.machine.until(target_s)
            elif written % 64 == 63:
                await asyncio.sleep(0)  # an instant node still lets others words_after
            await self._break_after(written)
            equal = equal + 1 if token.strip() == before else 0
            before = token.strip()
            if equal > REPEATS:
                self.repeated = True
                return
            self._write(writer.piece(token, thinking=thinking))
            written += 1
        if timed and (rest := self._cost(answer) - written) > 0:
            await self.machine.until(target_s + rest * self._token_s(runner))
        await self._break_after(written, at_end=True)

    async def _break_after(self, written: int, *, at_end: bool = False) -> None:
        """Apply the faults of streams after `written` tokens."""
        faults = self.node.faults
        if faults.cut_after is not None and written >= faults.cut_after:
            raise TransportFault(Fault.CUT, "the connection was closed inside the answer")
        if faults.late_error_after is not None and (written >= faults.late_error_after or at_end):
            raise Refusal(500, RUNNER_GONE)
        while (stall := self.node.faults.stall_after) is not None and written >= stall:  # healing makes new faults
            await self.machine.wait(self.node.healed())

    def _end(self, answer: SimAnswer) -> AnswerEnd:
        now_s, cost = asyncio.get_running_loop().time(), self._cost(answer)
        self.node.counters.tokens += cost
        return AnswerEnd(
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
            self.reply.begin(200, self.writer.stream_type, **self.writer.stream_headers)
            self.head.set_result(None)
        if self.writer.events_apart:
            for event in piece.split(b"\n\n")[:-1]:
                self.reply.push(event + b"\n\n")
        else:
            self.reply.push(piece)

    def _refuse(self, refusal: Refusal) -> None:
        """Send an error: with a status before the first byte, as the last line of a 200 after it."""
        assert self.reply is not None
        assert self.head is not None
        if self.head.done():
            self.reply.push(self.writer.broken(refusal.message))
        else:
            answer = self.writer.refused(refusal)
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
