"""The tokens that a call of a key is charged.

What the node reports counts, as far as it can be true (`core.timing_check`). Where no count is reported, one rule holds
for all routes and all ends of a call:

- a token for each BYTES_A_TOKEN bytes of the request, at most PROMPT_MOST of them;
- a token for each part of the answer that came, and for each BYTES_A_TOKEN bytes that a part has beyond ENVELOPE;
- of an answer that is given up before it came whole, what the node wrote in that time, at its usual rate.

Nothing is charged for a call that no node began, that was refused, that only loads a model, or that failed before its
client received anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from sollol.core.actions import Start
from sollol.core.types import EMBED, OK, Micros, Outcome, Status, Task

if TYPE_CHECKING:
    from sollol.engine.engine import Engine
    from sollol.engine.jobs import CallJob

BYTES_A_TOKEN: Final = 4  # of English text, about
PROMPT_MOST: Final = 100_000  # bytes of a request that are charged so: the bytes of images are few tokens
ENVELOPE: Final = 400  # bytes of a part of an answer that are not text, at most
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
    """Return the bytes of texts to embed; a list of numbers is a text, as its tokens."""
    size = 0
    for text in texts:
        if isinstance(text, str):
            size += len(text.encode("utf-8", "surrogatepass"))
        elif isinstance(text, list):
            size += BYTES_A_TOKEN * len(text)
        else:
            size += BYTES_A_TOKEN
    return size


def used(job: CallJob, engine: Engine, prompt: int, parts: int, size: int, last: bytes = b"") -> int:
    """Return the tokens of a call that has ended.

    `prompt`: an estimate of its tokens. `parts`, `size`: of what came. `last`: the end of the answer."""
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
        left = under_way(job)
        return prompt + max(_written(engine, job.task, *entry) for entry in left) if left else 0
    return 0


def under_way(job: CallJob) -> list[tuple[Start, Outcome, Micros, Micros]]:
    """Return the attempts that were ended from this side."""
    return [entry for entry in job.attempt_log.attempts if entry[1].status is Status.LEFT]


def _written(engine: Engine, task: Task, start: Start, outcome: Outcome, began: Micros, ended: Micros) -> int:
    """Estimate the tokens that a node has written of an answer that did not come."""
    group = engine.scheduler.view().groups.get(task.model)
    replica = group.replicas.get(start.node) if group is not None else None
    if replica is None or task.kind is EMBED:
        return 0
    rate = replica.decode.value or replica.group.typical().decode
    tokens = round(rate * max(0, ended - began - start.decision.first_us))
    return tokens if task.tokens_out is None else min(tokens, task.tokens_out)
