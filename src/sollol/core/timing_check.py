"""Check a node's timings against our clock and the bytes sent and received.

A count or a duration is used as a whole or not at all. Without it only the time of the answer counts, which no node can
change.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, Micros, Outcome, Timing
from sollol.core.value import replaced

SLACK: Final = 1.25  # of a duration: clocks differ a little
SLACK_US: Final[Micros] = 100 * MILLISECOND
FASTEST: Final = 0.02  # tokens per microsecond that one answer may come at
PROMPT_TIMES: Final = 2  # tokens for each byte of a request
PROMPT_MORE: Final = 65_536  # of templates that a node adds to a prompt, and of images
TOKENS_MORE: Final = 64
NOTHING: Final = Timing()


def most_prompt_tokens(cost: float) -> float:
    """Return the most tokens that a request of about so many bytes can have."""
    return PROMPT_TIMES * cost + PROMPT_MORE


def believed(timing: Timing, elapsed_us: Micros, cost: float) -> Timing:
    """Return the timing of an answer, or an empty one if it cannot be true.

    Args:
        elapsed_us: Time of the answer by our clock.
        cost: About the bytes of the request.
    """
    parts = (timing.load_us, timing.prompt_us, timing.decode_us)
    longest = elapsed_us * SLACK + SLACK_US
    if min(parts) < 0 or sum(parts) > longest or not 0 <= timing.total_us <= longest:
        return NOTHING
    most = elapsed_us * FASTEST + TOKENS_MORE
    if timing.received:
        most = min(most, float(timing.received + TOKENS_MORE))
    if not 0 <= timing.tokens <= most:
        return NOTHING
    if not 0 <= timing.prompt_tokens <= most_prompt_tokens(cost):
        return NOTHING
    return timing


def with_checked_timing(outcome: Outcome, elapsed_us: Micros, cost: float) -> Outcome:
    """Return a good outcome with its timing, or with none if that cannot be true."""
    timing = outcome.timing
    found = believed(timing, elapsed_us, cost)
    return outcome if found is timing else replaced(outcome, timing=found)
