"""Predict how long a slot stays taken after its caller left while the node read the prompt.

Older nodes read the prompt to its end. Newer ones stop at the next batch of tokens (measured on a real node: 1.3 s
instead of 6). No API reports which, so a node is tested once, where much can be gained: the slot counts as free after a
batch, and the first token of the next request shows whether it was.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import SECOND, Micros

PREFILL_BATCH: Final = 512  # tokens after which a newer node notices that the caller left
PROBE_LEAST: Final[Micros] = 5 * SECOND  # to be gained, for a request to find out whether a node does


class AbandonedPrefill:
    """Expect a slot after one batch of tokens, where that is known or worth a test.

    Args:
        batch: Tokens of a prompt that a node reads at once.
        probe_least_us: Least gain for which a node is tested.
    """

    __slots__ = ("_batch", "_probe_least_us")

    def __init__(self, *, batch: int = PREFILL_BATCH, probe_least_us: Micros = PROBE_LEAST) -> None:
        self._batch = batch
        self._probe_least_us = probe_least_us

    def taken_us(self, rest_us: Micros, rate: float, reads_on: bool | None) -> Micros:
        """Return the µs that the slot stays taken; less than `rest_us` on an untested node is a test.

        Args:
            rest_us: Time until the whole prompt would be read.
            rate: Tokens of a prompt that the node reads per µs.
            reads_on: Whether the node reads an abandoned prompt to its end; None if untested.
        """
        batch_us = round(self._batch / rate)
        if reads_on or batch_us >= rest_us or (reads_on is None and rest_us - batch_us < self._probe_least_us):
            return rest_us
        return batch_us
