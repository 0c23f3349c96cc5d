"""Judge silence inside streams by what else is known: when a silent stream is moved, and what that says of its node.

Silence alone proves nothing: a tool call is composed, a thought is long, a machine swaps. So a stream is moved only
if its text can go on exactly on another node that is there, and it is plain text, in which silence is no part. It
must have been silent for STALL_TIMES its mean gap and STALL_LEAST; PATIENT times longer while its runner answers
others, or while every other node is busy. A stream that cannot be moved is left alone: its caller's own timeout, and
the connection, decide. If no stream of a runner yields, the calls it was given and has not begun to answer are moved
too.
"""

from __future__ import annotations

from typing import Final

from sollol.core.events import Silence
from sollol.core.state.attempt import Attempt
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Micros

STALL_TIMES: Final = 50
STALL_LEAST: Final[Micros] = 8 * SECOND
PATIENT: Final = 4


class StallDetection:
    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def judge(self, silences: tuple[Silence, ...], now: Micros) -> list[tuple[Attempt, str]]:
        """Return the attempts to be moved, and why. `silences`: all streams of which nothing came for a while."""
        state = self._state
        silent = {each.attempt for each in silences}
        moved: list[tuple[Attempt, str]] = []
        hanging: dict[str, Replica] = {}
        for each in silences:
            attempt = state.attempts.get(each.attempt)
            if attempt is None or not attempt.started or not each.plain:
                continue
            patience = max(STALL_LEAST, STALL_TIMES * each.gap_us)
            if each.silent_us < patience:
                continue
            replica = attempt.replica
            if now - replica.node.asked_us > SECOND:
                state.health.ask(replica.node, now, state.out)
            works = any(other.started and other.id not in silent for other in replica.attempts.values())
            if not works:
                hanging[f"{replica.key} {replica.model}"] = replica
            others = self._others(attempt, same=True) if each.sure and attempt.movable else []
            if works or not any(other.free(now) for other in others):
                patience *= PATIENT
            if others and each.silent_us >= patience:
                moved.append((attempt, f"fell silent for {each.silent_us / SECOND:.0f} s inside its answer"))
        for replica in hanging.values():
            why = "is given up: nothing comes of any answer of its model"
            moved += [(attempt, why) for attempt in replica.attempts.values() if self._waits_in_vain(attempt, now)]
        return moved

    def _waits_in_vain(self, attempt: Attempt, now: Micros) -> bool:
        """Check that nothing was received of it, though it is late, and that another node can take it."""
        if attempt.started or attempt.task.batch or now - attempt.started_us < attempt.first_response_us():
            return False
        return len(attempt.pending.attempts) == 1 and bool(self._others(attempt))

    def _others(self, attempt: Attempt, same: bool = False) -> list[Replica]:
        """The other nodes that could take it now or soon. `same`: with the same version of the model."""
        replica, pending = attempt.replica, attempt.pending
        digest = replica.node.digests.get(replica.model, "")
        tried = {*pending.tried, replica.node.key}
        found = replica.group.shortlist(pending.task, tried, True, self._state.now)
        if same:
            found = [other for other in found if digest and other.node.digests.get(other.model) == digest]
        return found
