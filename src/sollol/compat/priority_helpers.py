"""Names for priorities: by level, by the role of an agent, by the kind of a task. One scale, 0 to 10, everywhere."""

from __future__ import annotations

from typing import Final

from sollol.errors import BadInput
from sollol.workload.validation import check_priority, short


class Priority:
    """Names of priorities; higher goes first."""

    BATCH = 1
    LOWEST = 2
    LOW = 3
    BELOW_NORMAL = 4
    NORMAL = 5
    ABOVE_NORMAL = 6
    HIGH = 7
    HIGHER = 8
    URGENT = 9
    CRITICAL = 10


LEVELS: Final = {name: level for name, level in vars(Priority).items() if name.isupper()}
AGENT_ROLE_PRIORITIES: dict[str, int] = {
    **dict.fromkeys(["researcher", "analyst", "assistant", "qa"], Priority.HIGHER),
    **dict.fromkeys(["critic", "reviewer", "planner"], Priority.HIGH),
    **dict.fromkeys(["editor", "writer", "coder"], Priority.ABOVE_NORMAL),
    **dict.fromkeys(["summarizer", "translator", "storyteller"], Priority.NORMAL),
    **dict.fromkeys(["classifier", "extractor"], Priority.BELOW_NORMAL),
    **dict.fromkeys(["background", "indexer"], Priority.LOWEST),
    "batch": Priority.BATCH,
}
TASK_TYPE_PRIORITIES: dict[str, int] = {
    "interactive": Priority.URGENT,
    **dict.fromkeys(["chat", "query"], Priority.HIGHER),
    **dict.fromkeys(["analysis", "reasoning"], Priority.HIGH),
    **dict.fromkeys(["generation", "code"], Priority.ABOVE_NORMAL),
    **dict.fromkeys(["summarization", "translation", "classification"], Priority.NORMAL),
    **dict.fromkeys(["extraction", "embedding"], Priority.BELOW_NORMAL),
    **dict.fromkeys(["indexing", "background"], Priority.LOWEST),
    "batch": Priority.BATCH,
}


class PriorityMapper:
    """Tables of priorities of an application's own, beginning with those of this module."""

    def __init__(self) -> None:
        self._roles = dict(AGENT_ROLE_PRIORITIES)
        self._tasks = dict(TASK_TYPE_PRIORITIES)

    def add_role(self, role: str, priority: int) -> None:
        """Set the priority of a role."""
        self._roles[_word(role)] = check_priority(priority)

    def add_task(self, task_type: str, priority: int) -> None:
        """Set the priority of a kind of task."""
        self._tasks[_word(task_type)] = check_priority(priority)

    def get_role_priority(self, role: str, default: int = Priority.NORMAL) -> int:
        """Return the priority of a role."""
        return self._roles.get(_word(role), default)

    def get_task_priority(self, task_type: str, default: int = Priority.NORMAL) -> int:
        """Return the priority of a kind of task."""
        return self._tasks.get(_word(task_type), default)

    def remove_role(self, role: str) -> None:
        """Remove a role, if it is there."""
        self._roles.pop(_word(role), None)

    def remove_task(self, task_type: str) -> None:
        """Remove a kind of task, if it is there."""
        self._tasks.pop(_word(task_type), None)

    def list_roles(self) -> dict[str, int]:
        """Return a copy of the roles with their priorities."""
        return dict(self._roles)

    def list_tasks(self) -> dict[str, int]:
        """Return a copy of the kinds of tasks with their priorities."""
        return dict(self._tasks)


def get_priority_for_role(role: str, default: int = Priority.NORMAL) -> int:
    """Return the priority of an agent's role."""
    return AGENT_ROLE_PRIORITIES.get(_word(role), default)


def get_priority_for_task(task_type: str, default: int = Priority.NORMAL) -> int:
    """Return the priority of a kind of task."""
    return TASK_TYPE_PRIORITIES.get(_word(task_type), default)


def register_role_priority(role: str, priority: int) -> None:
    """Set the priority of a role in this process.

    Raises:
        BadInput: It is no number from 0 to 10.
    """
    AGENT_ROLE_PRIORITIES[_word(role)] = check_priority(priority)


def register_task_priority(task_type: str, priority: int) -> None:
    """Set the priority of a kind of task in this process.

    Raises:
        BadInput: It is no number from 0 to 10.
    """
    TASK_TYPE_PRIORITIES[_word(task_type)] = check_priority(priority)


def list_available_roles() -> list[str]:
    """Return the known roles in alphabetical order."""
    return sorted(AGENT_ROLE_PRIORITIES)


def list_available_tasks() -> list[str]:
    """Return the known kinds of tasks in alphabetical order."""
    return sorted(TASK_TYPE_PRIORITIES)


def explain_priority_system() -> str:
    """Return a text about priorities."""
    lines = [f"  {level:>2}  {name}" for name, level in sorted(LEVELS.items(), key=lambda one: -one[1])]
    return "\n".join(
        [
            "A call has a priority from 0 to 10; the highest goes first:",
            *lines,
            "Within a priority, applications share the nodes by tokens, and an application's calls keep their order.",
            "A priority that waits gains one step every 5 seconds, so that none starves.",
            "Use: pool.chat(model, messages, priority=Priority.HIGH), also in batches and for the gateway.",
        ]
    )


def _word(text: str) -> str:
    if not isinstance(text, str):
        raise BadInput(f"{short(text)} names no role or kind of task; expected a text, such as 'researcher'")
    return text.lower().strip()
