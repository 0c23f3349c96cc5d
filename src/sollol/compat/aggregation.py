"""Merge the results of several tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sollol.compat.tasks import TaskResult
from sollol.errors import BadInput
from sollol.workload.validation import short

STRATEGIES = ("collect", "merge", "vote", "best", "first")


class ResultAggregator:
    """Merge good results: `collect` (a list), `merge` (dicts or texts), `vote`, `best` (the quickest), `first`."""

    def merge(self, results: Sequence[TaskResult], strategy: str = "collect") -> Any:
        """Return the merged results, None if no task succeeded.

        Raises:
            BadInput: There is no such strategy.
        """
        if strategy not in STRATEGIES:
            raise BadInput(f"strategy={short(strategy)}; expected one of {', '.join(STRATEGIES)}")
        good = [result for result in results if result.success]
        values = [result.result for result in good]
        if strategy == "collect":
            return values
        if not values:
            return None
        if strategy == "vote":
            return values[_most([repr(value) for value in values])]
        if strategy == "best":
            return min(good, key=lambda result: result.duration_ms).result
        if strategy == "first":
            return values[0]
        if all(isinstance(value, dict) for value in values):
            return {key: item for value in values for key, item in value.items()}
        if all(isinstance(value, list) for value in values):
            return [item for value in values for item in value]
        return "\n\n".join(str(value) for value in values)

    def quality_weighted_merge(self, results: Sequence[TaskResult], quality_scores: Sequence[float]) -> Any:
        """Return the result with the highest score, None if no task succeeded."""
        if len(results) != len(quality_scores):
            raise BadInput(f"{len(quality_scores)} scores for {len(results)} results; expected one for each")
        rated = [(score, result) for result, score in zip(results, quality_scores, strict=True) if result.success]
        return max(rated, key=lambda one: one[0])[1].result if rated else None


def _most(words: list[str]) -> int:
    """Return the place of the most frequent word, the first of several."""
    return words.index(Counter(words).most_common(1)[0][0])
