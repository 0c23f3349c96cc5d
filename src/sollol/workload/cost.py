"""The cost of an input, by which batches are cut and predictions scale."""

from __future__ import annotations

from typing import Final

ITEM_COST: Final = 64  # fixed part of an item, in bytes: tokenising, a sequence slot, a vector to print
COST_MAX: Final = 32_768  # longer texts are truncated by the node (8,192 tokens at the most usual)


def item_cost(text: str) -> int:
    """Return the cost units of one text: about its bytes, which tokens and time follow."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return ITEM_COST + min(size, COST_MAX)
