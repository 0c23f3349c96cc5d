"""Check what a node says of its own work against what this side knows: its clock, and what it sent and received.

A count or a duration is believed as a whole or not at all. What is not believed is neither learned nor charged: then
only how long the answer took counts, which no node can change.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, Micros, Outcome, Timing
from sollol.core.value import replaced

SLACK: Final = 1.25  # of a duration: clocks differ a little
SLACK_US: Final[Micros] = 100 * MILLISECOND
FASTEST: Final = 0.02  # tokens per microsecond that one answer may come at
PROMPT_TIMES: Final = 2  # tokens for each byte of a request
PROMPT_MORE: Final = 65_536  # of what a node puts before a prompt by itself, and of images
TOKENS_MORE: Final = 64
NOTHING: Final = Timing()


def believed(timing: Timing, elapsed_us: Micros, cost: float) -> Timing:
    """Return the timing of an answer, or an empty one where it cannot be true.

    `elapsed_us`: how long the answer took by our clock. `cost`: about the bytes of the request."""
    parts = (timing.load_us, timing.prompt_us, timing.decode_us)
    longest = elapsed_us * SLACK + SLACK_US
    if min(parts) < 0 or sum(parts) > longest or not 0 <= timing.total_us <= longest:
        return NOTHING
    most = elapsed_us * FASTEST + TOKENS_MORE
    if timing.received:
        most = min(most, float(timing.received + TOKENS_MORE))
    if not 0 <= timing.tokens <= most:
        return NOTHING
    if not 0 <= timing.prompt_tokens <= PROMPT_TIMES * cost + PROMPT_MORE:
        return NOTHING
    return timing


def true_outcome(outcome: Outcome, elapsed_us: Micros, cost: float) -> Outcome:
    """Return a good outcome with what is believed of its timing."""
    timing = outcome.timing
    found = believed(timing, elapsed_us, cost)
    return outcome if found is timing else replaced(outcome, timing=found)
