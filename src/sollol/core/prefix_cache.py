"""Record which prompts a replica has read recently, so that their beginnings count as read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sollol.core.state.replica import PREFIXES_MAX, Replica
from sollol.core.types import PrefixHash

NOT_READ: Final = -1000  # the number of no prompt
PROMPTS_WARM: Final = 4  # recent prompts whose beginnings a node is expected to hold
MARKS_WARM: Final = 256  # of beginnings to remember, before those of older prompts are dropped


def warm_cost(replica: Replica, prefix: Sequence[tuple[PrefixHash, int]]) -> int:
    """Return the cost units of a prompt that this replica has read recently.

    Args:
        prefix: The beginnings of the prompt, the longest first.
    """
    since, warm = replica.prompts - PROMPTS_WARM, replica.warm
    for prefix_hash, cost in prefix:
        if warm.get(prefix_hash, NOT_READ) > since:
            return cost
    return 0


def read_prompt(replica: Replica, prefix: tuple[tuple[PrefixHash, int], ...]) -> int:
    """Record a prompt with these beginnings. Return the cost units of it that were read recently."""
    since = replica.prompts - PROMPTS_WARM
    replica.prompts = number = replica.prompts + 1
    warm, prefix_hashes = replica.warm, replica.group.prefix_hashes
    if len(prefix_hashes) > PREFIXES_MAX:
        prefix_hashes.clear()
    if len(warm) > MARKS_WARM:
        replica.warm = warm = {prefix_hash: read for prefix_hash, read in warm.items() if read > since}
    known = 0
    for prefix_hash, cost in prefix:
        if warm.get(prefix_hash, NOT_READ) > since:
            known = cost
        warm[prefix_hash] = number
        prefix_hashes[prefix_hash] = replica
    return known
