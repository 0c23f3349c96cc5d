"""What a node says of its models, asked of all nodes at once and put together. Dead nodes are left out.

Interfaces poll these routes; the same question asked again while it is being answered waits for that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sollol.core.types import canonical_model
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.gateway.request import JSON, TEXT, Request
from sollol.nodes.dialect import decode, encode
from sollol.nodes.transport import Timeouts
from sollol.pool import manage

if TYPE_CHECKING:
    from sollol.core.endpoint import Endpoint
    from sollol.gateway.app import Gateway

T = TypeVar("T")
READING: Final = Timeouts(connect_s=1.5, first_byte_s=5.0, idle_s=5.0)


class Once:
    """Identical questions under way are asked once."""

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Task[Any]] = {}

    async def ask(self, name: str, question: Callable[[], Awaitable[T]]) -> T:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.ensure_future(_run(question))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        # One who leaves must not take the answer from the others.
        found: T = await asyncio.shield(task)
        return found


async def _run(question: Callable[[], Awaitable[T]]) -> T:
    return await question()


def up_nodes(gateway: Gateway) -> list[Endpoint]:
    """The nodes that answered last time; all, if none did: one may be back."""
    nodes = gateway.engine.scheduler.fleet.nodes.values()
    return [node.endpoint for node in nodes if node.up is not False] or [node.endpoint for node in nodes]


def fields_of(request: Request, *names: str) -> dict[str, Any]:
    """The JSON body, with at least one of `names` in it. Raises BadInput."""
    if not request.body:
        raise BadInput("missing request body")
    try:
        found = decode(request.body)
    except ValueError as error:
        raise BadInput(f"the request is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"the request is a JSON {type(found).__name__}; expected an object")
    if names and not any(isinstance(found.get(name), str) and found[name] for name in names):
        raise BadInput(f"{names[0]} is required")
    return found


async def root(gateway: Gateway, request: Request) -> None:
    request.answer(200, b"Ollama is running", TEXT)


async def version(gateway: Gateway, request: Request) -> None:
    found = await gateway.once.ask("version", lambda: manage.version(gateway.engine.transport, up_nodes(gateway)))
    request.answer(200, encode({"version": found["version"]}))


async def tags(gateway: Gateway, request: Request) -> None:
    found = await gateway.once.ask("tags", lambda: manage.list_models(gateway.engine.transport, up_nodes(gateway)))
    request.answer(200, encode(found))


async def ps(gateway: Gateway, request: Request) -> None:
    found = await gateway.once.ask("ps", lambda: manage.running_models(gateway.engine.transport, up_nodes(gateway)))
    request.answer(200, encode(found))


async def show(gateway: Gateway, request: Request) -> None:
    fields = fields_of(request, "model", "name")
    name = str(fields.get("model") or fields["name"])
    model = gateway.settings.resolve_model(name)
    for node in await holders(gateway, model, name, asked=False):
        try:
            found = await manage.ask(gateway.engine.transport, node, "POST", "/api/show", {**fields, "model": model})
        except ResponseError as error:
            if error.status_code < 500:
                raise
            continue
        request.answer(200, encode(found))
        return
    raise NoNodeAvailable(f"show {name}: no node answered")


async def holders(gateway: Gateway, model: str, told: str = "", *, asked: bool = True) -> list[Endpoint]:
    """The nodes up that have a model: by what they say now, or with `asked=False` by what is known of them, if that is
    enough. Raises ResponseError 404 if none has."""
    wanted = canonical_model(model)
    nodes = gateway.engine.scheduler.fleet.nodes.values()
    known = [node.endpoint for node in nodes if node.usable and wanted in node.models]
    if known and not asked:
        return known
    answers = await _ask_all(gateway, "/api/tags")
    have = {key for key, answer in answers.items() if wanted in _names(answer)}
    found = [node.endpoint for node in nodes if node.key in have]
    if not found:
        raise ResponseError(f"model '{told or model}' not found", 404)
    return found


def _names(answer: dict[str, Any]) -> set[str]:
    return {str(row.get("model")) for row in answer.get("models") or ()}


async def models(gateway: Gateway, request: Request) -> None:
    """OpenAI's list, each model once; aliases are models, too."""
    answers = await gateway.once.ask("models", lambda: _ask_all(gateway, "/v1/models"))
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers.values():
        for row in answer.get("data") or []:
            rows.setdefault(str(row.get("id")), row)
    for alias in gateway.settings.aliases:
        rows.setdefault(alias, {"id": alias, "object": "model", "created": 0, "owned_by": "alias"})
    request.answer(200, encode({"object": "list", "data": list(rows.values())}), "application/json")


async def model(gateway: Gateway, request: Request, name: str) -> None:
    target = gateway.settings.resolve_model(name)
    node = (await holders(gateway, target, canonical_model(name), asked=False))[0]
    found = await manage.ask(gateway.engine.transport, node, "GET", f"/v1/models/{target}", timeouts=READING)
    request.answer(200, encode({**found, "id": name}), "application/json")


async def _ask_all(gateway: Gateway, path: str) -> dict[str, Any]:
    answers = await manage.ask_all(gateway.engine.transport, up_nodes(gateway), "GET", path, timeouts=READING)
    return manage.need_one(path, answers)


async def first_answer(gateway: Gateway, request: Request) -> None:
    """What only one node can say: the first that answers."""
    why: list[tuple[str, str]] = []
    refused: ResponseError | None = None
    for node in up_nodes(gateway):
        try:
            body = fields_of(request) if request.method == "POST" and request.body else None
            found = await manage.ask(gateway.engine.transport, node, request.method, request.path, body, READING)
        except manage.Unanswered as error:
            why.append((node.key, str(error)))
            refused = error if isinstance(error, ResponseError) else refused
            continue
        request.answer(200, encode(found), JSON)
        return
    if refused is not None:
        raise refused
    raise NoNodeAvailable(f"{request.path}: no node answered", why)
