"""Convert the messages of a batch to the items of `embed_stream`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sollol.engine.batch_job import BatchEnded, ItemsRefused, Message, VectorsDelivered
from sollol.errors import BatchError


def rows_of(message: Message, on_error: str) -> Iterator[tuple[int, Any]]:
    """Yield the (index, vector or error) pairs of a message.

    Raises:
        BatchError: An item failed, and `on_error` is "raise".
        SollolError: The batch failed.
    """
    if isinstance(message, VectorsDelivered):
        flat, dim = _rows(message)
        yield from (
            (item, flat[row] if dim == 0 else flat[row * dim : (row + 1) * dim])
            for row, item in enumerate(message.items.items())
        )
    elif isinstance(message, ItemsRefused):
        if on_error == "raise":
            first = message.items[0][0]
            raise BatchError({first: message.error}, None) from message.error
        yield from ((item, message.error) for item in message.items.items())
    elif isinstance(message, BatchEnded) and message.error is not None:
        raise message.error


def _rows(message: VectorsDelivered) -> tuple[Any, int]:
    """Return the rows as a numpy matrix and 0, or the flat array and the row width."""
    try:
        import numpy as np
    except ImportError:
        return message.flat, message.dim
    return np.frombuffer(message.flat, dtype=np.float32).reshape(-1, message.dim), 0
