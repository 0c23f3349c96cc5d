"""Remember which prompts a replica has read just before: it need not read their beginnings again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sollol.core.market import MARKS_MAX
from sollol.core.types import Mark

if TYPE_CHECKING:
    from sollol.core.lane import Lane

NOT_READ: Final = -1000  # the number of no prompt
PROMPTS_WARM: Final = 4  # prompts whose beginnings a node is expected to know still
MARKS_WARM: Final = 256  # of beginnings to remember, before those of older prompts are dropped


def warm_cost(lane: Lane, prefix: Sequence[tuple[Mark, int]]) -> int:
    """How much of a prompt, in cost units, this lane has read just before. `prefix`: the longest first."""
    since, warm = lane.prompts - PROMPTS_WARM, lane.warm
    for mark, cost in prefix:
        if warm.get(mark, NOT_READ) > since:
            return cost
    return 0


def read_prompt(lane: Lane, prefix: tuple[tuple[Mark, int], ...]) -> int:
    """It is given a prompt with these beginnings: how much of it, in cost units, it has read just before."""
    since = lane.prompts - PROMPTS_WARM
    lane.prompts = number = lane.prompts + 1
    warm, marks = lane.warm, lane.market.marks
    if len(marks) > MARKS_MAX:
        marks.clear()
    if len(warm) > MARKS_WARM:
        lane.warm = warm = {mark: read for mark, read in warm.items() if read > since}
    known = 0
    for mark, cost in prefix:
        if warm.get(mark, NOT_READ) > since:
            known = cost
        warm[mark] = number
        marks[mark] = lane
    return known
