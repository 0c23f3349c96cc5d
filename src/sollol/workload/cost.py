"""Cost of an input, in cost units: batches are cut by it, predictions scale with it."""

from __future__ import annotations

from typing import Final

from sollol.core.types import BYTES_COUNTED

ITEM_COST: Final = 64  # fixed cost of an item, in bytes: tokenisation, a sequence slot, printing a vector
COST_MAX: Final = BYTES_COUNTED  # nodes truncate longer texts (usually at 8,192 tokens or fewer)


def item_cost(text: str) -> int:
    """Return the cost units of one text: about its bytes, to which tokens and time are proportional."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return ITEM_COST + min(size, COST_MAX)
