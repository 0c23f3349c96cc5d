"""Judge how late an attempt is: when its node is probed, when it is suspected, when another node takes over.

A node may answer every probe while its runner is frozen, so silence is compared with the prediction.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, SECOND, Micros

LATE_LEAST: Final[Micros] = 1 * SECOND  # beyond the prediction, before the node is probed
HUNG_TIMES: Final = 20  # times its prediction that a request may be silent, before another node gets it too
HUNG_LEAST: Final[Micros] = 60 * SECOND  # and so much later than predicted: it may load, or serve others
RESUMED_LEAST: Final[Micros] = 8 * SECOND  # the same for a resumed answer, whose caller has seen it stop
# How long a caller must have waited before leaving, for it to count against the node. The time of a whole answer is
# predicted less well than the start of a stream.
SUSPECT_TIMES: Final = 5
SUSPECT_TIMES_WHOLE: Final = 10
SUSPECT_LEAST: Final[Micros] = 5 * SECOND

# A request whose answer has not begun after SLOT_LEAST and SLOT_TIMES its predicted first token waits for a slot.
SLOT_LEAST: Final[Micros] = 30 * MILLISECOND
SLOT_TIMES: Final = 3
SLOT_BELIEVED: Final[Micros] = 100 * MILLISECOND  # at least, for a slot that is proven

# A chunk is given up when it has taken so many times its prediction, but never before OVERDUE_LEAST.
OVERDUE_TIMES: Final = 8
OVERDUE_LEAST: Final[Micros] = 20 * SECOND

# Silence alone proves nothing: a tool call is composed, a machine swaps.
STALL_TIMES: Final = 50
STALL_LEAST: Final[Micros] = 8 * SECOND
PATIENT: Final = 4


class LatenessByPrediction:
    """Compare the time waited with multiples of the prediction."""

    __slots__ = (
        "_hung_least_us",
        "_hung_times",
        "_late_least_us",
        "_overdue_least_us",
        "_overdue_times",
        "_resumed_least_us",
        "_slot_believed_us",
        "_slot_least_us",
        "_slot_times",
        "_suspect_least_us",
        "_suspect_times",
        "_suspect_times_whole",
    )

    def __init__(
        self,
        *,
        late_least_us: Micros = LATE_LEAST,
        hung_times: float = HUNG_TIMES,
        hung_least_us: Micros = HUNG_LEAST,
        resumed_least_us: Micros = RESUMED_LEAST,
        suspect_times: float = SUSPECT_TIMES,
        suspect_times_whole: float = SUSPECT_TIMES_WHOLE,
        suspect_least_us: Micros = SUSPECT_LEAST,
        overdue_times: float = OVERDUE_TIMES,
        overdue_least_us: Micros = OVERDUE_LEAST,
        slot_least_us: Micros = SLOT_LEAST,
        slot_times: int = SLOT_TIMES,
        slot_believed_us: Micros = SLOT_BELIEVED,
    ) -> None:
        self._late_least_us = late_least_us
        self._hung_times = hung_times
        self._hung_least_us = hung_least_us
        self._resumed_least_us = resumed_least_us
        self._suspect_times = suspect_times
        self._suspect_times_whole = suspect_times_whole
        self._suspect_least_us = suspect_least_us
        self._overdue_times = overdue_times
        self._overdue_least_us = overdue_least_us
        self._slot_least_us = slot_least_us
        self._slot_times = slot_times
        self._slot_believed_us = slot_believed_us

    def probes(self, overdue_us: Micros, predicted_us: Micros, quiet_us: Micros) -> bool:
        """Check that the node of an overdue attempt should be probed. `quiet_us`: since its last probe."""
        return overdue_us > max(self._late_least_us, predicted_us // 2) and quiet_us > self._late_least_us

    def is_late(self, waited_us: Micros, first_response_us: Micros) -> bool:
        """Check that the first response is clearly overdue."""
        return waited_us > first_response_us + self._late_least_us

    def hangs(self, waited_us: Micros, first_response_us: Micros, overdue_us: Micros, resumed: bool) -> bool:
        """Check that a silent attempt should be repeated or moved to another node."""
        least_us = self._resumed_least_us if resumed else self._hung_least_us
        return overdue_us > least_us and waited_us > self._hung_times * first_response_us

    def suspects(self, waited_us: Micros, first_response_us: Micros, stream: bool) -> bool:
        """Check that a caller who left had waited long enough to count it against the node."""
        times = self._suspect_times if stream else self._suspect_times_whole
        return waited_us > self._suspect_least_us and waited_us > times * first_response_us

    def slot_wait_us(self, first_us: Micros, predicted_us: Micros, trial: bool) -> Micros:
        """Return the µs without a response after which a request is taken to wait for a slot inside its node.

        Args:
            first_us: Predicted time to the first token in a free slot.
            predicted_us: Predicted time to the whole answer.
            trial: All proven slots are answering. Otherwise the prompts before it may be long.
        """
        least_us = self._slot_least_us + self._slot_times * first_us
        return least_us if trial else max(least_us, predicted_us // 2, self._slot_believed_us)

    def is_given_up(self, waited_us: Micros, predicted_us: Micros) -> bool:
        """Check that a chunk of a batch has taken so long that it is closed and sent again."""
        return waited_us > max(self._overdue_least_us, self._overdue_times * predicted_us)


class StallByGap:
    """Move a silent stream after a multiple of the mean gap between its parts."""

    __slots__ = ("_least_us", "_patient", "_times")

    def __init__(self, times: int = STALL_TIMES, least_us: Micros = STALL_LEAST, patient: int = PATIENT) -> None:
        self._times = times
        self._least_us = least_us
        self._patient = patient

    def patience_us(self, gap_us: Micros, patient: bool) -> Micros:
        """Return the µs of silence after which a stream moves.

        Args:
            gap_us: Mean time between its parts.
            patient: Its runner answers others, or every other node is busy.
        """
        patience = max(self._least_us, self._times * gap_us)
        return patience * self._patient if patient else patience
