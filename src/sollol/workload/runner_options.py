"""Runner options: a node reloads a model when one of them differs from those of its last load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

RUNNER_OPTIONS: Final = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
_INT_MOST: Final = 2**63 - 1  # int64 of Go, in which Ollama is written


def runner_key(options: Any, shift: Any = None) -> str:
    """Return the runner options of a request as one text in a fixed order, "" for none.

    `shift`: the field of `/api/chat` and `/api/generate` beside the options, which also starts a runner.
    """
    given: list[str] = []
    if isinstance(options, Mapping):
        given = [f"{name}={str(options[name])[:40]}" for name in RUNNER_OPTIONS if _is_plain(options.get(name))]
    if isinstance(shift, bool):
        given.append(f"shift={shift}")
    return ",".join(given)


def _is_plain(option: Any) -> bool:
    """Check for a value that a node accepts: a string, a flag, or a number in the range of int64."""
    return isinstance(option, str | float) or (isinstance(option, int) and abs(option) <= _INT_MOST)
