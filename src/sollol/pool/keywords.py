"""Reject unknown keywords, and name the similar keyword that exists, and its place."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from sollol.errors import BadInput
from sollol.workload.validation import short

# Names of Ollama's `options`, to correct a caller who passes one beside them.
OPTIONS: Final = frozenset(
    [
        "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only",
        "use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep", "seed", "num_predict", "top_k", "top_p",
        "min_p", "tfs_z", "typical_p", "repeat_last_n", "temperature", "repeat_penalty", "presence_penalty",
        "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline", "stop",
    ]
)  # fmt: skip
CALL: Final = frozenset(["model", "priority", "mode", "timeout", "hedge", "node", "requires_gpu"])
OWN: Final[Mapping[str, frozenset[str]]] = {
    "chat": CALL | {"messages", "stream", "task_type"},
    "generate": CALL | {"prompt", "stream", "task_type"},
    "embed": CALL | {"input"},
    "embeddings": CALL | {"prompt"},
    "embed_batch": CALL | {"inputs", "use_adaptive", "max_workers", "on_error", "progress"},
    "batch_chat": CALL | {"inputs", "max_workers", "on_error", "progress", "task_type"},
    "batch_generate": CALL | {"inputs", "max_workers", "on_error", "progress", "task_type"},
    "embed_stream": CALL | {"inputs", "use_adaptive", "max_workers", "on_error"},
    "OllamaPool": frozenset(
        ["nodes", "routing_mode", "routing_strategy", "app_name", "timeout", "on_mixed_digests", "digests", "seed"]
    ),
}
OWN_POOL: Final = OWN["OllamaPool"]
# Names of older versions and of other clients -> current names: the first that the method has is suggested.
RENAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "routing_mode": ("mode",),
    "mode": ("routing_mode",),
    "routing_strategy": ("mode",),
    "strategy": ("routing_strategy", "mode"),
    "task_priority": ("priority",),
    "request_priority": ("priority",),
    "timeout_s": ("timeout",),
    "timeout_ms": ("timeout",),
    "request_timeout": ("timeout",),
    "deadline": ("timeout",),
    "deadline_ms": ("timeout",),
    "enable_hedging": ("hedge",),
    "hedging": ("hedge",),
    "num_hedges": ("hedge",),
    "host": ("node", "nodes"),
    "hosts": ("node", "nodes"),
    "url": ("node", "nodes"),
    "base_url": ("node", "nodes"),
    "nodes": ("node",),
    "node_url": ("node",),
    "target_node": ("node",),
    "preferred_node": ("node",),
    "servers": ("nodes",),
    "require_gpu": ("requires_gpu",),
    "gpu_required": ("requires_gpu",),
    "use_gpu": ("requires_gpu",),
    "app": ("app_name",),
    "name": ("app_name",),
    "prompt": ("messages", "input", "inputs"),
    "messages": ("prompt",),
    "input": ("inputs", "prompt", "messages"),
    "inputs": ("input", "prompt", "messages"),
    "texts": ("inputs", "input"),
    "documents": ("inputs", "input"),
    "text": ("input", "prompt"),
    "workers": ("max_workers",),
    "concurrency": ("max_workers",),
    "functions": ("tools",),
    "response_format": ("format",),
    "json_schema": ("format",),
    "reasoning": ("think",),
    "thinking": ("think",),
    "system_prompt": ("system",),
}
# Options by their names in other clients.
RENAMED_OPTIONS: Final = {
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "max_new_tokens": "num_predict",
    "n_predict": "num_predict",
    "context_length": "num_ctx",
    "n_ctx": "num_ctx",
    "num_threads": "num_thread",
    "stop_sequences": "stop",
}


PACKAGE: Final = Path(__file__).parents[1]
_warned: set[str] = set()


def accept_old(where: str, given: Mapping[str, Any], old: frozenset[str]) -> None:
    """Accept keywords of older versions, which have no effect; warn once for each.

    Raises:
        BadInput: A keyword is unknown.
    """
    for name, value in given.items():
        if name not in old:
            refuse(where, name, value, old)
        warn_once(f"{where}({name}=...) has no effect any more and can be removed")


def warn_once(text: str) -> None:
    """Issue a warning, the first time only. It names the line of the program that called this package."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=_depth())


def _depth() -> int:
    depth, frame = 2, sys._getframe(2)  # from the caller of warn_once
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        depth, frame = depth + 1, frame.f_back
    return depth


def refuse(verb: str, name: str, value: Any, known: frozenset[str]) -> NoReturn:
    """Raise BadInput for an unknown keyword. `known`: the further keywords of the method."""
    own = OWN.get(verb, OWN_POOL if verb.endswith("Pool") else frozenset())
    has = known | own
    takes_options = "options" in known
    raise BadInput(f"{verb}() got an unknown keyword {name!r}; {_advice(name, value, has, takes_options)}")


def _advice(name: str, value: Any, has: frozenset[str], takes_options: bool) -> str:
    option = name if name in OPTIONS else RENAMED_OPTIONS.get(name, "")
    if takes_options and option:
        return in_options(option, value)
    for now in RENAMED.get(name, ()):
        if now in has:
            unit = f", in seconds: {now}={value / 1000:g}" if name.endswith("_ms") and _is_number(value) else ""
            return f"it is {now}={unit}" if unit else f"it is {now}= here"
    if name in ("system", "system_prompt") and "messages" in has:
        return "a system prompt is a message of the role 'system'"
    choices = has | {old for old, now in RENAMED.items() if has.intersection(now)}
    choices |= OPTIONS | RENAMED_OPTIONS.keys() if takes_options else frozenset()
    near = difflib.get_close_matches(name.lower(), choices, 1)
    if near and near[0] in has:
        return f"did you mean {near[0]!r}?"
    if near:
        return f"did you mean {near[0]!r}? {_advice(near[0], value, has, takes_options).capitalize()}"
    return f"expected one of {', '.join(sorted(has))}"


def in_options(option: str, value: Any) -> str:
    """Return the place of an option in words."""
    text = "..." if value is ... else short(value)
    return f"it is one of Ollama's options: options={{{option!r}: {text if len(text) <= 40 else '...'}}}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
