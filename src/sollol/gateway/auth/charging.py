"""Compute the tokens that a call is charged to its key.

The node's counts are used, as far as they can be true (`core.timing_check`). Without them, one rule holds for all
routes and all ends of a call:

- a token for each BYTES_A_TOKEN bytes of the request, at most PROMPT_MOST of them;
- a token for each received part of the answer, and for each BYTES_A_TOKEN bytes that a part has beyond ENVELOPE;
- for a whole answer that is given up, the tokens that the node has written in that time, at its usual rate.

Nothing is charged for a call that no node began, that was refused, that only loads a model, or that failed before its
client received anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from sollol.core.actions import Start
from sollol.core.types import EMBED, OK, Micros, Outcome, Status, Task
from sollol.engine.engine import Engine
from sollol.engine.jobs import CallJob
from sollol.gateway.auth.rate_limit import RateLimited, RateLimiter
from sollol.http_server.request import Request

BYTES_A_TOKEN: Final = 4  # of English text, about
PROMPT_MOST: Final = 100_000  # bytes of a request that are charged; images have many bytes and few tokens
ENVELOPE: Final = 400  # bytes of a part that are not text, at most
_LOADED: Final = b'"done_reason":"load"'
GIVEN_UP: Final = (Status.LEFT, Status.DEADLINE)


def text_tokens(size: int) -> int:
    """Estimate the tokens of a text of so many bytes."""
    return -(-size // BYTES_A_TOKEN)


def prompt_tokens(size: int) -> int:
    """Estimate the tokens of a request of so many bytes."""
    return text_tokens(min(size, PROMPT_MOST))


def answer_tokens(parts: int, size: int) -> int:
    """Estimate the tokens of an answer that came in so many parts, with so many bytes together."""
    return max(parts, (size - ENVELOPE * parts) // BYTES_A_TOKEN)


def size_of(texts: Iterable[Any]) -> int:
    """Return the bytes of texts to embed. A list of numbers is a tokenized text."""
    size = 0
    for text in texts:
        if isinstance(text, str):
            size += len(text.encode("utf-8", "surrogatepass"))
        elif isinstance(text, list):
            size += BYTES_A_TOKEN * len(text)
        else:
            size += BYTES_A_TOKEN
    return size


def reserve(limiter: RateLimiter, request: Request, prompt: int, tokens_out: int | None = None) -> None:
    """Reserve the tokens that a call of a key should use; a call that has a reservation keeps it.

    Args:
        limiter: The accounts of all keys.
        request: The request, with its key.
        prompt: The tokens of the request.
        tokens_out: A bound of those of the answer.

    Raises:
        RateLimited: The key has no token left.
    """
    key = request.key
    if key is None or request.charge is not None:
        return
    now_s = asyncio.get_running_loop().time()
    wait_s = limiter.tokens_wait_s(key, now_s)
    if wait_s:
        raise RateLimited(key, wait_s)
    request.charge = limiter.reserve(key, prompt, tokens_out, now_s)


def settle(request: Request, tokens: int, complete: bool = False) -> None:
    """Charge the tokens of an ended call to its key. `complete`: the answer came to its own end."""
    charge = request.charge
    if charge is not None:
        charge.settle(tokens, asyncio.get_running_loop().time(), complete=complete)


def used(job: CallJob, engine: Engine, *, prompt: int, parts: int, size: int, last: bytes = b"") -> int:
    """Return the tokens of a call that has ended.

    Args:
        job: The call.
        engine: The engine with the node's rates.
        prompt: An estimate of the tokens of the request.
        parts: The parts that the client received.
        size: The bytes of those parts.
        last: The end of the answer.
    """
    assert job.settled is not None
    outcome = job.settled.outcome
    timing = outcome.timing
    if outcome.status is OK:
        read, written = timing.prompt_tokens, timing.tokens
        if not (read or written) and _LOADED in last:
            return 0
        if job.task.kind is EMBED:
            return read or prompt
        return (read or prompt) + (written or answer_tokens(parts or 1, size or len(last)))
    if parts:
        return prompt + answer_tokens(parts, size)
    if outcome.status in GIVEN_UP:
        left = attempts_given_up(job)
        return prompt + max(_written(engine, job.task, *entry) for entry in left) if left else 0
    return 0


def attempts_given_up(job: CallJob) -> list[tuple[Start, Outcome, Micros, Micros]]:
    """Return the attempts that SOLLOL ended."""
    return [entry for entry in job.attempt_log.attempts if entry[1].status is Status.LEFT]


def _written(engine: Engine, task: Task, start: Start, outcome: Outcome, began: Micros, ended: Micros) -> int:
    """Estimate the tokens that a node has written of an answer that was not delivered."""
    group = engine.scheduler.view().groups.get(task.model)
    replica = group.replicas.get(start.node) if group is not None else None
    if replica is None or task.kind is EMBED:
        return 0
    rate = replica.decode.value or replica.group.typical().decode
    tokens = round(rate * max(0, ended - began - start.decision.first_us))
    return tokens if task.tokens_out is None else min(tokens, task.tokens_out)
