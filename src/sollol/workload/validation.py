"""Validate arguments of callers. Each function returns the value in its final type, or raises BadInput."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypeVar

from sollol.core.endpoint import parse_endpoint
from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, RoutingStrategy, TaskType
from sollol.errors import BadInput

E = TypeVar("E", bound=Enum)
TIMEOUT_MOST_S: Final = 10**9  # 31 years
_DIGEST: Final = re.compile(r"(sha256:)?[0-9a-f]{7,64}")


def check_model(model: Any) -> str:
    """Validate the name of a model."""
    if not isinstance(model, str) or not model.strip():
        raise BadInput(f"model={short(model)}; expected the name of a model, such as 'llama3.2'")
    return model


def check_priority(priority: Any) -> int:
    """Validate a priority from 0 to 10, also a TaskPriority."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
        raise BadInput(f"priority={short(priority)}; expected a whole number from 0 (last) to 10 (first)")
    return int(priority)


def check_timeout(timeout: Any) -> float | None:
    """Return a time-out in seconds, or None for no bound."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= TIMEOUT_MOST_S:
        raise BadInput(
            f"timeout={short(timeout)}; expected seconds above 0 and up to {TIMEOUT_MOST_S}, or None for no bound"
        )
    return float(timeout)


def check_count(name: str, value: Any) -> int:
    """Validate a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{name}={short(value)}; expected a whole number of at least 1")
    return value


def check_text(field: str, index: int | None, text: Any) -> None:
    """Validate a text, which is the item `index` of a list unless that is None."""
    if not isinstance(text, str):
        where = field if index is None else f"{field}[{index}]"
        raise BadInput(f"{where} is {short(text)} ({type(text).__name__}); expected a string")


def check_mode(mode: Any) -> RoutingMode | None:
    """Validate a routing mode or its name, None for the pool's own."""
    return None if mode is None else _member(RoutingMode, "mode", mode)


def check_hedge(hedge: Any) -> bool | Hedger | None:
    """Validate a hedging choice: True, False, a policy, or None for the mode's own."""
    if hedge is None or isinstance(hedge, bool):
        return hedge
    if all(callable(getattr(hedge, name, None)) for name in ("deposit", "learn", "after", "withdraw")):
        found: Hedger = hedge
        return found
    raise BadInput(f"hedge={short(hedge)}; expected True, False, None (the mode decides) or a hedging policy")


def check_type(task_type: Any) -> TaskType | None:
    """Validate a task type or its name, None for a type found by classification."""
    return None if task_type is None else _member(TaskType, "task_type", task_type)


def check_only(node: Any) -> tuple[str, ...] | None:
    """Return the keys of the permitted nodes, of one address or several; None for any node."""
    if node is None:
        return None
    nodes = [node] if isinstance(node, (str, Mapping)) or not isinstance(node, Iterable) else list(node)
    if not nodes:
        raise BadInput("node=[]; expected a node such as '10.0.0.5:11434', several of them, or None for any")
    return tuple(dict.fromkeys(parse_endpoint(one).key for one in nodes))


def check_flag(name: str, value: Any) -> bool:
    """Validate True or False."""
    if not isinstance(value, bool):
        raise BadInput(f"{name}={short(value)}; expected True or False")
    return value


def check_mixed_digests(value: Any) -> str:
    """Validate the policy for chats when nodes have different versions of a model: "allow" or "one"."""
    if value not in ("allow", "one"):
        raise BadInput(
            f"on_mixed_digests={short(value)}; expected 'allow' (chats use every version of a model) or 'one'"
        )
    return str(value)


def check_digests(digests: Any) -> dict[str, str]:
    """Validate pinned versions: model -> digest, or the beginning of one."""
    if digests is None:
        return {}
    if not isinstance(digests, Mapping):
        raise BadInput(f"digests={short(digests)}; expected a dict such as {{'mxbai-embed-large': '468836162de7'}}")
    for model, digest in digests.items():
        check_model(model)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise BadInput(
                f"digests: {model!r} has {short(digest)}; expected 7 to 64 hex digits, as `ollama list` shows them"
            )
    return dict(digests)


def check_strategy(strategy: Any) -> RoutingStrategy:
    """Validate a routing strategy or its name."""
    return _member(RoutingStrategy, "routing_strategy", strategy)


def _member(kind: type[E], name: str, value: Any) -> E:
    try:
        return kind(value.lower() if isinstance(value, str) else value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in kind)
        raise BadInput(f"{name}={short(value)}; expected one of {names}") from None


def short(value: Any) -> str:
    """Return the representation of a value, cut to 80 characters for messages."""
    try:
        text = repr(value)
    except Exception:  # nested too deep, or a fault of its class
        text = f"<a {type(value).__name__} that cannot be shown>"
    return text if len(text) <= 80 else text[:77] + "..."
