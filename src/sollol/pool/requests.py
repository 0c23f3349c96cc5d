"""Validate a caller's arguments and encode them as one request, for both pools. No I/O.

Bad input raises at the call, with field, value and expected value, before anything is sent.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sollol.answers import Answer, ChatResponse, EmbeddingsResponse, EmbedResponse, GenerateResponse
from sollol.backends.ollama import encode
from sollol.core.types import Kind, TaskType, canonical_model
from sollol.engine.inference_request import InferenceRequest
from sollol.errors import BadInput
from sollol.pool import keywords, payload
from sollol.pool.former_keywords import take_former
from sollol.workload.call_options import CallOptions
from sollol.workload.classification import detect_task_type
from sollol.workload.cost import item_cost
from sollol.workload.prefix import prefix_of
from sollol.workload.runner_options import runner_key
from sollol.workload.validation import check_count, check_model, check_text, short

CHAT_FIELDS = frozenset(
    ["tools", "think", "logprobs", "top_logprobs", "format", "options", "keep_alive", "truncate", "shift"]
)
GENERATE_FIELDS = CHAT_FIELDS - {"tools"} | frozenset(
    ["suffix", "system", "template", "context", "raw", "images", "width", "height", "steps"]
)
EMBED_FIELDS = frozenset(["truncate", "options", "keep_alive", "dimensions"])
# Keywords of existing applications that have no effect any more.
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
        "setup_local_gpu_monitoring",
        "enable_vram_monitoring",
    ]
)


def chat_request(
    model: str,
    messages: Sequence[Any] | None,
    stream: bool,
    call: CallOptions,
    extra: Mapping[str, Any],
) -> InferenceRequest:
    """Build the request of a chat."""
    call, extra = take_former("chat", call, extra, CHAT_FIELDS)
    check_fields("chat", extra, CHAT_FIELDS)
    if messages is None or isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise BadInput(
            f"chat: messages={short(messages)}; expected a list such as [{{'role': 'user', 'content': 'Hello'}}]"
        )
    body = {"messages": [payload.message(m, i) for i, m in enumerate(messages)]}
    return _inference(Kind.CHAT, "/api/chat", ChatResponse, model, body, stream, call, extra)


def generate_request(
    model: str, prompt: str | None, stream: bool, call: CallOptions, extra: Mapping[str, Any]
) -> InferenceRequest:
    """Build the request of a completion."""
    call, extra = take_former("generate", call, extra, GENERATE_FIELDS)
    check_fields("generate", extra, GENERATE_FIELDS)
    if prompt is not None and not isinstance(prompt, str):
        raise BadInput(f"generate: prompt={short(prompt)}; expected a string")
    body = {"prompt": prompt or ""}
    return _inference(Kind.GENERATE, "/api/generate", GenerateResponse, model, body, stream, call, extra)


def embed_request(
    model: str, input: str | Sequence[str], call: CallOptions, extra: Mapping[str, Any]
) -> InferenceRequest:
    """Build the request of one `/api/embed` call."""
    call, extra = take_former("embed", call, extra, EMBED_FIELDS)
    check_fields("embed", extra, EMBED_FIELDS)
    texts = [input] if isinstance(input, str) else input
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise BadInput(f"embed: input={short(input)}; expected a string or a list of strings")
    for index, text in enumerate(texts):
        check_text("input", index, text)
    payload.check_types("embed", extra)
    body = {"model": check_model(model), "input": input, **_present(extra)}
    cost = sum(map(item_cost, texts))
    return _request(Kind.EMBED, "/api/embed", EmbedResponse, model, body, cost, False, call)


def old_embed_request(model: str, prompt: str, call: CallOptions, extra: Mapping[str, Any]) -> InferenceRequest:
    """Build the request of the older `/api/embeddings`: one prompt, a vector without normalisation."""
    call, extra = take_former("embeddings", call, extra, EMBED_FIELDS)
    check_fields("embeddings", extra, EMBED_FIELDS)
    check_text("prompt", None, prompt)
    payload.check_types("embeddings", extra)
    body = {"model": check_model(model), "prompt": prompt, **_present(extra)}
    return _request(Kind.EMBED, "/api/embeddings", EmbeddingsResponse, model, body, item_cost(prompt), False, call)


def _inference(
    kind: Kind,
    path: str,
    answer: type[Answer],
    model: str,
    body: dict[str, Any],
    stream: bool,
    call: CallOptions,
    extra: Mapping[str, Any],
) -> InferenceRequest:
    body = {"model": check_model(model), **body, **_present(extra), "stream": bool(stream)}
    if "tools" in body:
        body["tools"] = payload.tools(body["tools"])
    if "images" in body:
        body["images"] = payload.images("images", body["images"])
    schema = getattr(body.get("format"), "model_json_schema", None)
    if schema is not None:
        body["format"] = schema()
    payload.check_types(path, body)
    return _request(kind, path, answer, model, body, None, bool(stream), call)


def _request(
    kind: Kind,
    path: str,
    answer: type[Answer],
    model: str,
    body: dict[str, Any],
    cost: int | None,
    stream: bool,
    call: CallOptions,
) -> InferenceRequest:
    options = body.get("options")
    if options is not None and not isinstance(options, Mapping):
        options = body["options"] = options.model_dump(exclude_none=True) if hasattr(options, "model_dump") else options
        if not isinstance(options, Mapping):
            raise BadInput(f"options={short(options)}; expected a dict such as {{'num_ctx': 8192}}")
    predict = options.get("num_predict") if options else None
    encoded = encode_body(path, body)
    return InferenceRequest(
        kind,
        path,
        canonical_model(model),
        encoded,
        len(encoded) if cost is None else cost,
        stream,
        runner_key(options, body.get("shift")),
        predict if type(predict) is int else None,
        answer,
        call,
        TaskType.EMBED if kind is Kind.EMBED else call.type or detect_task_type(body),
        prefix_of(body["messages"]) if kind is Kind.CHAT else (),
        body,
    )


def encode_body(path: str, body: Mapping[str, Any]) -> bytes:
    """Return the body of a request as JSON. Raises BadInput for what has no such form."""
    try:
        return encode(body)
    except RecursionError:
        raise BadInput(f"{path}: cannot be sent as JSON: something in it is nested too deep") from None
    except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
        raise BadInput(f"{path}: cannot be sent as JSON: {error}") from None


def _present(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}


def check_fields(verb: str, extra: Mapping[str, Any], known: frozenset[str]) -> None:
    """Validate the names of further keywords.

    Raises:
        BadInput: A keyword is unknown.
    """
    for name, value in extra.items():
        if name not in known:
            keywords.refuse(verb, name, value, known)


class BatchCall(NamedTuple):
    """A validated call of `embed_batch` or `embed_stream`. `width`: the fixed number of requests in flight, or None."""

    model: str
    fields: dict[str, Any]
    call: CallOptions
    width: int | None
    on_error: str


def batch_call(
    nodes: int,
    model: str,
    call: CallOptions,
    use_adaptive: bool,
    max_workers: int | None,
    on_error: str,
    extra: Mapping[str, Any],
    verb: str = "embed_batch",
) -> BatchCall:
    """Validate a batch call.

    Args:
        nodes: Number of nodes, by which the fixed number of requests in flight is chosen if none is given.
    """
    check_model(model)
    if call.hedge is not None and not isinstance(call.hedge, bool):
        raise BadInput("hedge=<a policy>; for a batch expected True, False or None")
    call, extra = take_former(verb, call, extra, EMBED_FIELDS)
    check_fields(verb, extra, EMBED_FIELDS)
    payload.check_types(verb, extra)
    if on_error not in ("raise", "return"):
        raise BadInput(f"on_error={short(on_error)}; expected 'raise' or 'return'")
    if max_workers is not None:
        check_count("max_workers", max_workers)
    elif not use_adaptive:
        max_workers = 2 * max(1, nodes)
    if use_adaptive and max_workers is not None:
        warnings.warn("max_workers= has no effect with use_adaptive=True; pass use_adaptive=False", stacklevel=4)
        max_workers = None
    fields = {name: value for name, value in extra.items() if value is not None}
    return BatchCall(model, fields, call, max_workers, on_error)
