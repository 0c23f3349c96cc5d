"""What a caller said, checked and made into one request: shared by both pools. No I/O.

Bad input is told at the call, by field, value and what was expected, before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sollol.core.endpoint import parse_endpoint
from sollol.core.policy import Hedger
from sollol.core.types import Kind, RoutingMode, RoutingStrategy, TaskType, canonical_model
from sollol.errors import BadInput
from sollol.nodes.dialect import encode, runner_key
from sollol.policies.batching import item_cost
from sollol.policies.prefix import prefix_of
from sollol.policies.tasks import detect_task_type
from sollol.pool import keywords, payload
from sollol.pool.answers import Answer, ChatResponse, EmbeddingsResponse, EmbedResponse, GenerateResponse
from sollol.pool.payload import short

CHAT_FIELDS = frozenset(
    ["tools", "think", "logprobs", "top_logprobs", "format", "options", "keep_alive", "truncate", "shift"]
)
GENERATE_FIELDS = CHAT_FIELDS - {"tools"} | frozenset(
    ["suffix", "system", "template", "context", "raw", "images", "width", "height", "steps"]
)
EMBED_FIELDS = frozenset(["truncate", "options", "keep_alive", "dimensions"])
# Keywords that existing applications pass and that have no meaning any more.
OLD_KEYWORDS = frozenset(
    [
        "enable_intelligent_routing",
        "exclude_localhost",
        "discover_all_nodes",
        "register_with_dashboard",
        "enable_ray",
        "enable_dask",
        "dask_address",
        "enable_gpu_redis",
        "redis_host",
        "redis_port",
        "enable_cache",
        "cache_max_size",
        "cache_ttl",
    ]
)
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{7,64}")


class Wish(NamedTuple):
    """What a caller says of a call besides what the node is told."""

    priority: int = 5
    timeout_s: float | None = None
    mode: RoutingMode | None = None
    hedge: bool | Hedger | None = None
    type: TaskType | None = None
    only: tuple[str, ...] | None = None
    gpu: bool = False


def wish(
    priority: Any,
    timeout: Any,
    mode: Any = None,
    hedge: Any = None,
    task_type: Any = None,
    node: Any = None,
    requires_gpu: Any = False,
) -> Wish:
    """Checked. Raises BadInput."""
    return Wish(
        check_priority(priority),
        check_timeout(timeout),
        check_mode(mode),
        check_hedge(hedge),
        check_type(task_type),
        check_only(node),
        check_flag("requires_gpu", requires_gpu),
    )


class Request(NamedTuple):
    """One call of the inference API, ready to be scheduled."""

    kind: Kind
    path: str
    model: str
    body: bytes
    cost: int
    stream: bool
    options: str
    tokens_out: int | None
    answer: type[Answer]
    wish: Wish
    type: TaskType
    prefix: tuple[tuple[int, int], ...]
    fields: Mapping[str, Any]  # the body before it was encoded


def chat_request(
    model: str,
    messages: Sequence[Any] | None,
    stream: bool,
    how: Wish,
    extra: Mapping[str, Any],
) -> Request:
    check_fields("chat", extra, CHAT_FIELDS)
    if messages is None or isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise BadInput(
            f"chat: messages={short(messages)}; expected a list such as [{{'role': 'user', 'content': 'Hello'}}]"
        )
    body = {"messages": [payload.message(m, i) for i, m in enumerate(messages)]}
    return _inference(Kind.CHAT, "/api/chat", ChatResponse, model, body, stream, how, extra)


def generate_request(model: str, prompt: str | None, stream: bool, how: Wish, extra: Mapping[str, Any]) -> Request:
    check_fields("generate", extra, GENERATE_FIELDS)
    if prompt is not None and not isinstance(prompt, str):
        raise BadInput(f"generate: prompt={short(prompt)}; expected a string")
    body = {"prompt": prompt or ""}
    return _inference(Kind.GENERATE, "/api/generate", GenerateResponse, model, body, stream, how, extra)


def embed_request(model: str, input: str | Sequence[str], how: Wish, extra: Mapping[str, Any]) -> Request:
    check_fields("embed", extra, EMBED_FIELDS)
    texts = [input] if isinstance(input, str) else input
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise BadInput(f"embed: input={short(input)}; expected a string or a list of strings")
    for index, text in enumerate(texts):
        check_text("input", index, text)
    payload.check_types("embed", extra)
    body = {"model": check_model(model), "input": input, **_present(extra)}
    cost = sum(map(item_cost, texts))
    return _request(Kind.EMBED, "/api/embed", EmbedResponse, model, body, cost, False, how)


def old_embed_request(model: str, prompt: str, how: Wish, extra: Mapping[str, Any]) -> Request:
    """`/api/embeddings`, the older call: one prompt, a vector that is not normalised."""
    check_fields("embeddings", extra, EMBED_FIELDS)
    check_text("prompt", None, prompt)
    payload.check_types("embeddings", extra)
    body = {"model": check_model(model), "prompt": prompt, **_present(extra)}
    return _request(Kind.EMBED, "/api/embeddings", EmbeddingsResponse, model, body, item_cost(prompt), False, how)


def _inference(
    kind: Kind,
    path: str,
    answer: type[Answer],
    model: str,
    body: dict[str, Any],
    stream: bool,
    how: Wish,
    extra: Mapping[str, Any],
) -> Request:
    body = {"model": check_model(model), **body, **_present(extra), "stream": bool(stream)}
    if "tools" in body:
        body["tools"] = payload.tools(body["tools"])
    if "images" in body:
        body["images"] = payload.images("images", body["images"])
    schema = getattr(body.get("format"), "model_json_schema", None)
    if schema is not None:
        body["format"] = schema()
    payload.check_types(path, body)
    return _request(kind, path, answer, model, body, None, bool(stream), how)


def _request(
    kind: Kind,
    path: str,
    answer: type[Answer],
    model: str,
    body: dict[str, Any],
    cost: int | None,
    stream: bool,
    how: Wish,
) -> Request:
    options = body.get("options")
    if options is not None and not isinstance(options, Mapping):
        options = body["options"] = options.model_dump(exclude_none=True) if hasattr(options, "model_dump") else options
        if not isinstance(options, Mapping):
            raise BadInput(f"options={short(options)}; expected a dict such as {{'num_ctx': 8192}}")
    predict = options.get("num_predict") if options else None
    try:
        encoded = encode(body)
    except RecursionError:
        raise BadInput(f"{path}: cannot be sent as JSON: something in it is nested too deep") from None
    except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
        raise BadInput(f"{path}: cannot be sent as JSON: {error}") from None
    return Request(
        kind,
        path,
        canonical_model(model),
        encoded,
        len(encoded) if cost is None else cost,
        stream,
        runner_key(options),
        predict if isinstance(predict, int) else None,
        answer,
        how,
        TaskType.EMBED if kind is Kind.EMBED else how.type or detect_task_type(body),
        prefix_of(body["messages"]) if kind is Kind.CHAT else (),
        body,
    )


def _present(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}


# --- checks ----------------------------------------------------------------------------------------------


def check_model(model: Any) -> str:
    if not isinstance(model, str) or not model.strip():
        raise BadInput(f"model={short(model)}; expected the name of a model, such as 'llama3.2'")
    return model


def check_priority(priority: Any) -> int:
    """0 to 10; a TaskPriority is one too."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
        raise BadInput(f"priority={short(priority)}; expected a whole number from 0 (last) to 10 (first)")
    return int(priority)


def check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise BadInput(f"timeout={short(timeout)}; expected seconds above 0, or None for no bound")
    return float(timeout)


def check_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{name}={short(value)}; expected a whole number of at least 1")
    return value


def check_text(field: str, index: int | None, text: Any) -> None:
    if not isinstance(text, str):
        where = field if index is None else f"{field}[{index}]"
        raise BadInput(f"{where} is {short(text)} ({type(text).__name__}); expected a string")


def check_mode(mode: Any) -> RoutingMode | None:
    if mode is None:
        return None
    try:
        return RoutingMode(mode.lower() if isinstance(mode, str) else mode)
    except ValueError:
        names = ", ".join(repr(m.value) for m in RoutingMode)
        raise BadInput(f"mode={short(mode)}; expected one of {names}") from None


def check_hedge(hedge: Any) -> bool | Hedger | None:
    if hedge is None or isinstance(hedge, bool):
        return hedge
    if all(callable(getattr(hedge, name, None)) for name in ("deposit", "learn", "after", "withdraw")):
        found: Hedger = hedge
        return found
    raise BadInput(f"hedge={short(hedge)}; expected True, False, None (as the mode says) or a hedging policy")


def check_type(task_type: Any) -> TaskType | None:
    if task_type is None:
        return None
    try:
        return TaskType(task_type.lower() if isinstance(task_type, str) else task_type)
    except ValueError:
        names = ", ".join(repr(t.value) for t in TaskType)
        raise BadInput(f"task_type={short(task_type)}; expected one of {names}") from None


def check_only(node: Any) -> tuple[str, ...] | None:
    """The names of the nodes that a call may go to: of one, or of several; None for any."""
    if node is None:
        return None
    nodes = [node] if isinstance(node, (str, Mapping)) or not isinstance(node, Iterable) else list(node)
    if not nodes:
        raise BadInput("node=[]; expected a node such as '10.0.0.5:11434', several of them, or None for any")
    return tuple(dict.fromkeys(parse_endpoint(one).key for one in nodes))


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{name}={short(value)}; expected True or False")
    return value


def check_mixed_digests(value: Any) -> str:
    if value not in ("allow", "one"):
        raise BadInput(
            f"on_mixed_digests={short(value)}; expected 'allow' (chats use every version of a model) or 'one'"
        )
    return str(value)


def check_digests(digests: Any) -> dict[str, str]:
    """The pinned versions: model -> digest, or its beginning."""
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
    try:
        return RoutingStrategy(strategy.lower() if isinstance(strategy, str) else strategy)
    except ValueError:
        names = ", ".join(repr(s.value) for s in RoutingStrategy)
        raise BadInput(f"routing_strategy={short(strategy)}; expected one of {names}") from None


def check_fields(verb: str, extra: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in extra.items():
        if name not in known:
            keywords.refuse(verb, name, value, known)
