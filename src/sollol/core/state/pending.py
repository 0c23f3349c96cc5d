"""A task that is not complete, and the replica that it has reserved."""

from __future__ import annotations

from typing import Final

from sollol.core.policy import Hedger
from sollol.core.runner_options import parse
from sollol.core.state.batch import Batch
from sollol.core.state.replica import Attempt, ModelReplicas, Replica
from sollol.core.types import NEVER, Cause, Decision, Key, Micros, Outcome, Task, kept_bytes
from sollol.core.value import replaced

TEMPLATE_BYTES: Final = 1_024  # of a prompt, besides the request: the template of its model, and a system prompt


class FallbackAnswer:
    """Hold an answer for the caller, for the case that no node is left."""

    __slots__ = ("attempt", "outcome")

    def __init__(self, attempt: Attempt, outcome: Outcome) -> None:
        self.attempt = attempt
        self.outcome = outcome


class Reservation:
    """Hold a busy replica where a task should finish sooner than on any free one."""

    __slots__ = ("decision", "finish_us", "free_us", "replica", "second_best_us", "service_us")

    def __init__(self, replica: Replica, decision: Decision, free_us: Micros, service_us: Micros, now: Micros) -> None:
        self.replica = replica
        self.decision = decision
        self.free_us = free_us  # when the replica should have a slot
        self.service_us = service_us  # that the task takes there
        self.finish_us = now + decision.predicted_us
        scores = sorted(decision.scores)
        self.second_best_us = (
            now + scores[1] if len(scores) > 1 else float(NEVER)
        )  # when it would finish on the second best


class PendingTask:
    """Hold a task that is not complete: its attempts, its failures, its reservation."""

    __slots__ = (
        "attempts",
        "batch",
        "begun",
        "busy",
        "delivering",
        "fallback",
        "group",
        "hedger",
        "key",
        "requested",
        "reservation",
        "restarts",
        "since",
        "task",
        "tokens",
        "tried",
        "tries",
        "tries_here",
        "waits_for",
    )

    def __init__(self, task: Task, now: Micros) -> None:
        self.task = task
        self.requested = task.options  # the runner options in its body
        self.key: Key = task.id
        self.group: ModelReplicas | None = None
        self.since = now
        self.batch = Batch(task) if task.batch else None
        self.attempts: dict[Key, Attempt] = {}
        self.tried: dict[str, str] = {}  # node -> why it failed
        self.busy: set[str] | None = None  # nodes that were busy: others first
        self.tries = 0
        self.tries_here = 0  # that ended before anything was sent
        self.fallback: FallbackAnswer | None = None  # the answer if no node is left
        self.restarts = 0  # late attempts that were sent to the same node anew
        self.begun: Attempt | None = None  # the one by which its answer began
        self.delivering = False  # its caller has seen a part of the answer
        self.tokens = 0.0  # that its application was charged for it
        self.hedger: Hedger | None = None  # the policy of its second attempts, if it may have any
        self.reservation: Reservation | None = None
        self.waits_for: Replica | None = None  # the replica that it would rather wait for than start on another

    def wait_for(self, replica: Replica | None) -> Replica | None:
        """Set the replica that the task waits for. Return the last one if it has no waiter left."""
        before = self.waits_for
        if before is replica:
            return None
        if replica is not None:
            replica.waiters += 1
        self.waits_for = replica
        if before is None:
            return None
        before.waiters -= 1
        return None if before.waiters else before

    def bytes_kept(self) -> int:
        """Return the bytes that a larger context must not truncate otherwise, as `Task.bytes_kept`."""
        if self.batch is None or self.task.exact_context:
            return self.task.bytes_kept()
        return kept_bytes(self.batch.longest)

    def startup_us(self, replica: Replica) -> Micros:
        """Return the µs of the load that its work needs on a replica, 0 for none."""
        return 0 if replica.serves(self.task.options, self.bytes_kept()) else replica.load_us()

    def keep_context(self) -> None:
        """Resume the answer with the context in which it began, and only there if that may have cut its prompt."""
        begun, task = self.begun, self.task
        if begun is not None:
            context = parse(begun.options).context or begun.replica.default_context
            exact = task.exact_context or task.cost + TEMPLATE_BYTES > context
            self.task = replaced(task, options=begun.options, exact_context=exact)

    def cause(self) -> Cause:
        """Return the cause of an attempt that the task gets when its turn comes."""
        if self.delivering:
            return Cause.RESUME
        return Cause.RETRY if self.tried or self.busy else Cause.FIRST

    def avoids(self) -> set[str]:
        """Return the nodes that the task avoids as long as there are others."""
        return {*self.tried, *(self.busy or ())}
