"""Answer what the nodes report of their models, merged over all nodes.

Also what concerns an account at Ollama's cloud and is the same on every node: one node's answer.
"""

from __future__ import annotations

from typing import Any, Final

from sollol.backends.ollama import decode, encode
from sollol.core.types import canonical_model, is_cloud_model
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.gateway.auth.access import check_admin, check_allowed, visible, without_parent
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import fields_of, model_name
from sollol.gateway.formats.error_responses import error_body
from sollol.gateway.inference.passthrough import send_to_any
from sollol.gateway.node_queries import holders, is_listed, read_shared, up_nodes
from sollol.http_server.request import JSON, TEXT, Request
from sollol.models import operations
from sollol.printable import printable_body
from sollol.transport.base import Call, Timeouts, TransportFault

SHOWING: Final = Timeouts(connect_s=1.5, first_byte_s=15.0, idle_s=15.0)  # the node reads the file of the model


async def root(context: Context, request: Request) -> None:
    """Answer as the root of a node."""
    request.answer(200, b"Ollama is running", TEXT)


async def version(context: Context, request: Request) -> None:
    """Answer with the oldest version of the nodes."""
    try:
        found = await read_shared(context, "/api/version")
    except NoNodeAvailable as error:
        raise NoNodeAvailable(str(error)) from None  # 503 with Retry-After: a node may answer soon
    request.answer(200, encode({"version": operations.version_of(found)["version"]}))


async def tags(context: Context, request: Request) -> None:
    """Answer with the models on disk."""
    found = operations.models_of(await read_shared(context, "/api/tags"))
    request.answer(200, encode({**found, "models": visible(request, found["models"])}))


async def ps(context: Context, request: Request) -> None:
    """Answer with the models in memory."""
    found = operations.running_of(await read_shared(context, "/api/ps"))
    request.answer(200, encode({**found, "models": visible(request, found["models"])}))


async def show(context: Context, request: Request) -> None:
    """Relay the description of a model from the first node that has it and answers."""
    fields = fields_of(request, "model", "name")
    name = model_name(fields)
    model = context.settings.resolve_model(name)
    check_allowed(request, model, name)
    if is_cloud_model(canonical_model(model)) and not is_listed(context.engine, model):
        request.body = encode({**fields, "model": model})
        await send_to_any(context, request)
        return
    missing = f"model '{canonical_model(name)}' not found"
    why: list[tuple[str, str]] = []
    for node in await holders(context, model, missing, fresh=False):
        try:
            found = await operations.fetch_bytes(
                context.engine.transport, node, "POST", "/api/show", {**fields, "model": model}, SHOWING
            )
        except ResponseError as error:
            if error.status_code < 500 and error.status_code != 404:
                raise
            why.append((node.key, error.error))
        except TransportFault as fault:
            why.append((node.key, str(fault)))
        else:
            request.answer(200, _shown(request, found))
            return
    raise NoNodeAvailable(f"show {name}: no node answered", why)


def _shown(request: Request, answer: bytes) -> bytes:
    """Return a node's description of a model without a parent model that the key may not use."""
    if request.key is None or not request.key.models:
        return answer
    try:
        row = decode(answer)
    except ValueError:  # msgspec.DecodeError is one
        return answer
    seen = without_parent(request, row) if isinstance(row, dict) else row
    return answer if seen is row else encode(seen)


async def models(context: Context, request: Request) -> None:
    """Answer with OpenAI's list: each model once, and the aliases."""
    rows = _openai_models(context, request, await read_shared(context, "/v1/models"))
    _answer_openai(request, {"object": "list", "data": list(rows.values())})


async def model(context: Context, request: Request, name: str) -> None:
    """Answer with the row of one model in OpenAI's list."""
    check_allowed(request, context.settings.resolve_model(name), name)
    rows = _openai_models(context, request, await read_shared(context, "/v1/models"))
    row = rows.get(canonical_model(name)) or rows.get(canonical_model(context.settings.resolve_model(name)))
    if row is None and is_cloud_model(canonical_model(context.settings.resolve_model(name))):
        await send_to_any(context, request)
        return
    if row is None:
        message = f"model '{canonical_model(name)}' not found"
        request.answer(404, error_body(request.path, 404, message) + b"\n", "application/json")
        return
    _answer_openai(request, {**row, "id": name})


def _openai_models(context: Context, request: Request, answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the list, by the canonical name of the model."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers.values():
        for row in visible(request, answer.get("data") or (), "id"):
            rows.setdefault(canonical_model(str(row.get("id"))), row)
    for alias, target in context.settings.aliases.items():
        found = rows.get(canonical_model(target))
        if found is not None:
            rows.setdefault(alias, {**found, "id": alias, "owned_by": "alias"})
    return rows


def _answer_openai(request: Request, found: dict[str, Any]) -> None:
    request.answer(200, encode(found) + b"\n", "application/json")


async def first_answer(context: Context, request: Request) -> None:
    """Relay one node's answer about the account at Ollama's cloud.

    Interfaces poll /api/status, so it is read from all nodes at once. The other routes try one node after another.
    """
    if request.method == "GET":
        answers = await read_shared(context, request.path)
        request.answer(200, encode(next(iter(answers.values()))))
        return
    check_admin(request, "see or change the account of the nodes")  # the answer contains the URL to sign in
    why: list[tuple[str, str]] = []
    answer: tuple[int, bytes, str] | None = None
    call = Call(request.method, request.path, request.body, timeouts=SHOWING)
    for node in up_nodes(context):
        try:
            status, body, headers = await operations.fetch(context.engine.transport, node, call)
        except TransportFault as fault:
            why.append((node.key, str(fault)))
            continue
        answer = status, body if status == 200 else printable_body(body), headers.get("content-type", JSON)
        if status < 500:
            break
    if answer is None:
        raise NoNodeAvailable(f"{request.path}: no node answered", why)
    request.answer(*answer)
