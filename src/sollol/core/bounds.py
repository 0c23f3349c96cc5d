"""Bound what callers can invent: names of models and applications, options, deadlines. What is over is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sollol.core.ledger import Ledger
    from sollol.core.market import Market


def forget_model(ledger: Ledger, market: Market) -> None:
    """Forget a model that no node has, once its last task is settled."""
    model = market.model
    if market.lanes or market.tasks or ledger.fleet.markets.get(model) is not market:
        return
    for node in ledger.fleet.nodes.values():
        if model in node.lanes:
            return
    del ledger.fleet.markets[model]
    ledger.lines.pop(model, None)
    ledger.batches.pop(model, None)


def keep_largest(values: dict[str, float], most: int) -> dict[str, float]:
    """Return the `most` largest of these values."""
    return values if len(values) <= most else dict(sorted(values.items(), key=_value)[-most:])


def _value(item: tuple[str, float]) -> float:
    return item[1]
