"""Runner options: those that make a node reload a model when they differ from the ones it was loaded with."""

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
_INT_MOST: Final = 2**63 - 1  # as in Go, in which Ollama is written


def runner_key(options: Any) -> str:
    """Return the runner options of a request in a fixed order, "" for none."""
    if not isinstance(options, Mapping):
        return ""
    given = [f"{name}={str(options[name])[:40]}" for name in RUNNER_OPTIONS if _is_plain(options.get(name))]
    return ",".join(given)


def _is_plain(option: Any) -> bool:
    """Check for what an option of a runner can be: a number that a node can read, a flag, or a word."""
    return isinstance(option, str | float) or (isinstance(option, int) and abs(option) <= _INT_MOST)
