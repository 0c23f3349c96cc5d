"""What nodes say of their models, asked of all at once and put together.

The scheduler knows names and sizes, but not the details that interfaces show, so the nodes are asked each time. A node
that is down is not asked, and one that does not answer in time is left out. Interfaces poll these routes; the same
question asked again while it is being answered waits for that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sollol.backends.ollama import decode, encode
from sollol.backends.probe import probe
from sollol.core.types import canonical_model, is_cloud_model
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.gateway.auth.access import admin, check_allowed, visible, without_parent
from sollol.gateway.formats.bodies import read_json
from sollol.gateway.formats.error_responses import error_body
from sollol.http_server.request import JSON, TEXT, Request
from sollol.models import operations
from sollol.transport.base import Call, Fault, Timeouts, TransportFault

if TYPE_CHECKING:
    from sollol.core.endpoint import Endpoint
    from sollol.core.state.node import Node
    from sollol.gateway.app import Gateway

T = TypeVar("T")
READING: Final = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.5)  # milliseconds if well, as when probed
SHOWING: Final = Timeouts(connect_s=1.5, first_byte_s=15.0, idle_s=15.0)  # reads the file of the model
REMEMBERED: Final = frozenset(("/api/tags", "/v1/models"))
LEARN_S: Final = 2.5  # for which a change waits for the scheduler to know of it
_AGAIN_S: Final = 0.01


def _is_late(fault: TransportFault) -> bool:
    return fault.fault.is_timeout or fault.fault is Fault.TOO_LARGE


class Once:
    """Identical questions under way are asked once."""

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self._last: dict[str, dict[str, Any]] = {}  # by path and node: the lists that came last

    def remembered(self, path: str, answers: dict[str, Any]) -> dict[str, Any]:
        """Return the answers of nodes; where a node was too slow with what is on its disk, its last one."""
        if path not in REMEMBERED:
            return answers
        last = self._last.get(path, {})
        late = {key for key, answer in answers.items() if isinstance(answer, TransportFault) and _is_late(answer)}
        found = {key: last[key] if key in late and key in last else answer for key, answer in answers.items()}
        self._last[path] = {key: answer for key, answer in found.items() if not isinstance(answer, Exception)}
        return found

    async def ask(self, name: str, question: Callable[[], Awaitable[T]]) -> T:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.ensure_future(_run(question))
            task.add_done_callback(lambda done: self._answered(name, done))
        # One who leaves must not take the answer from the others.
        found: T = await asyncio.shield(task)
        return found

    def _answered(self, name: str, task: asyncio.Task[Any]) -> None:
        self._asking.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen here: all who asked may have left


async def _run(question: Callable[[], Awaitable[T]]) -> T:
    return await question()


def states(gateway: Gateway) -> list[Node]:
    """All nodes, as the scheduler knows them."""
    return list(gateway.engine.scheduler.view().nodes.values())


def up_nodes(gateway: Gateway) -> list[Endpoint]:
    """The nodes that answered last time; all, if none did: one may be back."""
    nodes = states(gateway)
    return [node.endpoint for node in nodes if node.up is not False] or [node.endpoint for node in nodes]


async def relearn(gateway: Gateway, keys: Iterable[str]) -> None:
    """Models of these nodes have changed: returns when the scheduler knows, or after LEARN_S.

    So a client that was told of a change and asks for the model in the next moment is not told that there is none."""
    engine = gateway.engine
    since = engine.dispatcher.now()
    changed = [node for node in states(gateway) if node.key in set(keys)]
    engine.refresh()
    try:
        async with asyncio.timeout(LEARN_S):
            while late := [node for node in changed if node.probing or node.asked_us < since]:
                if not all(node.probing for node in late):  # a question from before the change has just ended
                    engine.refresh()
                await asyncio.sleep(_AGAIN_S)
    except TimeoutError:
        pass  # it is silent, and will be asked again


def read_fields(body: bytes) -> dict[str, Any]:
    """Return the JSON body. Raises BadInput, or ResponseError for one of too many values."""
    try:
        found: dict[str, Any] = decode(read_json(body))
    except ValueError as error:
        raise BadInput(f"the request is not JSON: {error}") from None
    return found


def fields_of(request: Request, *names: str) -> dict[str, Any]:
    """Return the JSON body, with at least one of `names` in it. Raises BadInput."""
    found = read_fields(request.body) if request.fields is None else request.fields
    if names and not any(isinstance(found.get(name), str) and found[name] for name in names):
        raise BadInput(f"{names[0]} is required")
    return found


async def root(gateway: Gateway, request: Request) -> None:
    request.answer(200, b"Ollama is running", TEXT)


async def version(gateway: Gateway, request: Request) -> None:
    try:
        found = await _once(gateway, "/api/version")
    except NoNodeAvailable as nobody:
        raise NoNodeAvailable(str(nobody)) from None  # 503: there is no version to tell, and there may be one soon
    request.answer(200, encode({"version": operations.version_of(found)["version"]}))


async def tags(gateway: Gateway, request: Request) -> None:
    found = operations.models_of(await _once(gateway, "/api/tags"))
    request.answer(200, encode({**found, "models": visible(request, found["models"])}))


async def ps(gateway: Gateway, request: Request) -> None:
    found = operations.running_of(await _once(gateway, "/api/ps"))
    request.answer(200, encode({**found, "models": visible(request, found["models"])}))


async def show(gateway: Gateway, request: Request) -> None:
    """As the first node that has the model and answers says it, byte for byte."""
    fields = fields_of(request, "model", "name")
    name = str(fields.get("model") or fields["name"])
    model = gateway.settings.resolve_model(name)
    check_allowed(request, model, name)
    if is_cloud_model(canonical_model(model)) and not gateway.lists(model):
        request.body = encode({**fields, "model": model})
        await gateway.cloud(gateway, request)
        return
    missing = f"model '{canonical_model(name)}' not found"
    why: list[tuple[str, str]] = []
    for node in await holders(gateway, model, missing, asked=False):
        try:
            found = await operations.fetch_bytes(
                gateway.engine.transport, node, "POST", "/api/show", {**fields, "model": model}, SHOWING
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
    """Return what a node shows of a model: its bytes, unless they name a model that the key may not use."""
    if request.key is None or not request.key.models:
        return answer
    try:
        row = decode(answer)
    except ValueError:  # msgspec.DecodeError is one
        return answer
    seen = without_parent(request, row) if isinstance(row, dict) else row
    return answer if seen is row else encode(seen)


async def holders(gateway: Gateway, model: str, missing: str, *, asked: bool = True) -> list[Endpoint]:
    """The nodes up that have a model: by what they say now, or with `asked=False` by what is known of them, if that is
    enough. If none has: ResponseError 404 that says `missing`."""
    wanted = canonical_model(model)
    nodes = states(gateway)
    known = [node.endpoint for node in nodes if node.usable and wanted in node.models]
    if known and not asked:
        return known
    answers = await _ask_all(gateway, "/api/tags")
    have = {key for key, answer in answers.items() if wanted in _names(answer)}
    found = [node.endpoint for node in nodes if node.key in have]
    if not found:
        raise ResponseError(missing, 404)
    return found


def _names(answer: dict[str, Any]) -> set[str]:
    return {canonical_model(str(row.get("model"))) for row in answer.get("models") or ()}


async def models(gateway: Gateway, request: Request) -> None:
    """OpenAI's list, each model once; an alias of one of them is a model, too."""
    rows = _openai_models(gateway, request, await _once(gateway, "/v1/models"))
    _answer_openai(request, {"object": "list", "data": list(rows.values())})


async def model(gateway: Gateway, request: Request, name: str) -> None:
    check_allowed(request, gateway.settings.resolve_model(name), name)
    rows = _openai_models(gateway, request, await _once(gateway, "/v1/models"))
    row = rows.get(canonical_model(name)) or rows.get(canonical_model(gateway.settings.resolve_model(name)))
    if row is None and is_cloud_model(canonical_model(gateway.settings.resolve_model(name))):
        await gateway.cloud(gateway, request)
        return
    if row is None:
        message = f"model '{canonical_model(name)}' not found"
        request.answer(404, error_body(request.path, 404, message) + b"\n", "application/json")
        return
    _answer_openai(request, {**row, "id": name})


def _openai_models(gateway: Gateway, request: Request, answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the list, by the canonical name of the model."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers.values():
        for row in visible(request, answer.get("data") or (), "id"):
            rows.setdefault(canonical_model(str(row.get("id"))), row)
    for alias, target in gateway.settings.aliases.items():
        found = rows.get(canonical_model(target))
        if found is not None:
            rows.setdefault(alias, {**found, "id": alias, "owned_by": "alias"})
    return rows


def _answer_openai(request: Request, found: dict[str, Any]) -> None:
    request.answer(200, encode(found) + b"\n", "application/json")


async def _once(gateway: Gateway, path: str) -> dict[str, dict[str, Any]]:
    return await gateway.once.ask(path, lambda: _ask_all(gateway, path))


async def _ask_all(gateway: Gateway, path: str) -> dict[str, dict[str, Any]]:
    """The answers of the nodes that gave one, by node."""
    nodes = up_nodes(gateway)
    if not any(node.up is not False for node in states(gateway)):
        nodes = await _back(gateway, nodes)
    answers = await operations.fetch_from_all(gateway.engine.transport, nodes, "GET", path, None, READING)
    if any(isinstance(answer, TransportFault) for answer in answers.values()):
        gateway.engine.refresh()  # one that was thought to be up: while nobody works, it is asked once a minute
    answers = gateway.once.remembered(path, answers)
    try:
        return operations.require_answer(path, answers)
    except NoNodeAvailable as nobody:
        down = [(node.key, node.lost_why) for node in states(gateway) if node.key not in answers]
        raise NoNodeAvailable(f"{path}: no node answered", [*nobody.tried, *down]) from None


async def _back(gateway: Gateway, nodes: list[Endpoint]) -> list[Endpoint]:
    """Return those of nodes that were down that answer as Ollama now: another server may have the address."""
    found = await asyncio.gather(*(probe(gateway.engine.transport, node) for node in nodes), return_exceptions=True)
    return [node for node, facts in zip(nodes, found, strict=True) if not isinstance(facts, BaseException)]


async def first_answer(gateway: Gateway, request: Request) -> None:
    """What tells of an account or of Ollama's cloud, not of a node: as one node says it, with its status.

    /api/status is read by interfaces, so all are asked at once; the others are asked in turn, until one answers that is
    not in trouble."""
    if request.method == "GET":
        answers = await _once(gateway, request.path)
        request.answer(200, encode(next(iter(answers.values()))))
        return
    admin(request, "see or change the account of the nodes")  # the way to sign in is in the answer, too
    why: list[tuple[str, str]] = []
    said: tuple[int, bytes, str] | None = None
    call = Call(request.method, request.path, request.body, timeouts=SHOWING)
    for node in up_nodes(gateway):
        try:
            reply = await gateway.engine.transport.send(node, call)
            said = reply.status, await reply.read(), reply.headers.get("content-type", JSON)
        except TransportFault as fault:
            why.append((node.key, str(fault)))
            continue
        if reply.status < 500:
            break
    if said is None:
        raise NoNodeAvailable(f"{request.path}: no node answered", why)
    request.answer(*said)
