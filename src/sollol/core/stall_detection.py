"""Find streams that fell silent, and move those that another node can continue exactly.

Silence alone proves nothing: a tool call is composed, a thought is long, a machine swaps. A stream moves only if its
text can continue exactly on another node that is there, and it is plain text, in which silence has no meaning.
A stream that cannot be moved is left alone: the caller's timeout and the connection bound it. If no stream of a runner
yields, the requests that it has not begun to answer move too.
"""

from __future__ import annotations

from sollol.core.events import Silence
from sollol.core.state.replica import Attempt, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.state.shortlist import shortlist
from sollol.core.types import SECOND, Micros


class StallDetection:
    """Compare the silence of streams with the bounds of `policies.lateness`."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def judge(self, silences: tuple[Silence, ...], now: Micros) -> list[tuple[Attempt, str]]:
        """Return the attempts to move, each with the reason.

        Args:
            silences: All streams without a part for a while.
        """
        state, stalls = self._state, self._state.policies.stalls
        silent = {each.attempt for each in silences}
        moved: list[tuple[Attempt, str]] = []
        hanging: dict[str, Replica] = {}
        for each in silences:
            attempt = state.attempts.get(each.attempt)
            if attempt is None or not attempt.delivering or not each.plain:
                continue
            if each.silent_us < stalls.patience_us(each.gap_us, False):
                continue
            replica = attempt.replica
            if now - replica.node.asked_us > SECOND:
                state.health.ask(replica.node, now, state.out)
            works = any(other.delivering and other.id not in silent for other in replica.attempts.values())
            if not works:
                hanging[f"{replica.key} {replica.model}"] = replica
            others = self._others(attempt, same=True) if each.sure and attempt.movable else []
            patient = works or not any(other.free(now) for other in others)
            if others and each.silent_us >= stalls.patience_us(each.gap_us, patient):
                moved.append((attempt, f"fell silent for {each.silent_us / SECOND:.0f} s inside its answer"))
        for replica in hanging.values():
            why = "is given up: nothing comes of any answer of its model"
            moved += [(attempt, why) for attempt in replica.attempts.values() if self._waits_in_vain(attempt, now)]
        return moved

    def _waits_in_vain(self, attempt: Attempt, now: Micros) -> bool:
        """Check that an attempt is late without a response, and that another node can take it."""
        if attempt.delivering or attempt.task.batch or now - attempt.started_us < attempt.first_response_us():
            return False
        return len(self._state.tasks[attempt.task.id].attempts) == 1 and bool(self._others(attempt))

    def _others(self, attempt: Attempt, same: bool = False) -> list[Replica]:
        """Return the other replicas that can take it; with `same`, those with the same version of the model."""
        replica, pending = attempt.replica, self._state.tasks[attempt.task.id]
        digest = replica.node.digests.get(replica.model, "")
        tried = {*pending.tried, replica.node.key}
        found = shortlist(replica.group, pending.task, tried, True, self._state.now)
        if same:
            found = [other for other in found if digest and other.node.digests.get(other.model) == digest]
        return found
