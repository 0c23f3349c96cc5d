"""Tasks for several nodes, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass
class DistributedTask:
    """One task. `payload` is for your own function, `timeout` in seconds."""

    task_id: str
    payload: dict[str, Any]
    priority: int = 5
    timeout: float = 300.0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskResult:
    """The result of one task, or its `error`."""

    task_id: str
    node_url: str
    result: Any
    duration_ms: float
    success: bool
    error: str | None = None
    routing_metadata: dict[str, Any] = field(default_factory=dict)
    timestamp: datetime = field(default_factory=datetime.now)

    @property
    def agent_name(self) -> str:
        """The id of the task."""
        return self.task_id


@dataclass
class ExecutionResult:
    """The results of all tasks, in the order of the tasks. Its fields can also be read as items."""

    merged_result: Any
    individual_results: list[TaskResult]
    statistics: dict[str, Any]
    execution_mode: str

    @property
    def success_rate(self) -> float:
        """The share of tasks without an error, 0.0 to 1.0."""
        done = sum(result.success for result in self.individual_results)
        return done / len(self.individual_results) if self.individual_results else 0.0

    @property
    def total_duration_ms(self) -> float:
        """The time from the start to the last result."""
        return float(self.statistics.get("total_duration_ms", 0.0))

    @property
    def avg_task_duration_ms(self) -> float:
        """The mean time of a task."""
        return float(self.statistics.get("avg_task_duration_ms", 0.0))

    @property
    def speedup_factor(self) -> float:
        """The sum of the tasks' times divided by the total."""
        return float(self.statistics.get("speedup_factor", 1.0))

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)
