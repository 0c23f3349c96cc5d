"""Find the passages nearest to a vector by cosine: exact, in one pass, with the memory of one block.

A million passages of 768 numbers are compared in seconds; an approximate index would be a second file to keep
consistent and a dependency, for a command with one query.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sollol.errors import BadInput
from sollol.index import format as index_format
from sollol.index.documents import Passage


class Hit(NamedTuple):
    """A passage and its score."""

    score: float
    passage: Passage


def nearest(path: Path, query: Any, count: int) -> list[Hit]:
    """Return the best passages, best first; among equals, the first in the file.

    Raises:
        BadInput: The dimensions differ.
    """
    target = np.asarray(query, np.float32).ravel()
    dim = index_format.about(path).dim
    if len(target) != dim:
        raise BadInput(
            f"{path} has vectors of {dim} numbers, and the model returned {len(target)}; search with its own model"
        )
    target = target / (np.linalg.norm(target) or 1.0)
    best: list[tuple[float, int, Passage]] = []
    seen = 0
    for block in index_format.blocks(path):
        scores = block.vectors @ target / np.maximum(np.linalg.norm(block.vectors, axis=1), 1e-12)
        top = np.argsort(-scores, kind="stable")[:count]
        found = [(float(scores[i]), -(seen + int(i)), block.passages[i]) for i in top]
        best = heapq.nlargest(count, best + found)
        seen += len(block.passages)
    return [Hit(score, passage) for score, _, passage in best]
