"""Change how long nodes keep a model in memory."""

from __future__ import annotations

from sollol.backends.ollama import encode, load_call
from sollol.core.types import Task, canonical_model
from sollol.errors import ResponseError
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import fields_of
from sollol.gateway.node_queries import holders, nodes_of, wait_until_probed
from sollol.http_server.request import Request
from sollol.models import operations


def set_keep_alive(context: Context, node: str, model: str, task: Task, keep_alive: int | str) -> None:
    """Set how long a node keeps the model of its last answer, by a call in the background.

    `/v1` has no field for it.
    """
    state = context.engine.scheduler.view().nodes.get(node)
    if state is not None:
        replica = state.replicas.get(task.model)
        options = task.options if replica is None else replica.runner_options()  # others would load it again
        call = load_call(task.kind, model, options, keep_alive)
        context.engine.dispatcher.send_later(state.endpoint, call)


async def unload(context: Context, request: Request, model: str, only: tuple[str, ...] | None) -> None:
    """Unload a model from the nodes in `only`, by default from all that hold it.

    The request is one with `keep_alive: 0` and no prompt.
    """
    fields = {**fields_of(request, "model"), "model": model, "stream": False}
    name = canonical_model(model)
    missing = f"model '{name}' not found"
    if only is not None:
        holding = [node for node in await holders(context, model, missing) if node.key in only]
        if not holding:
            raise ResponseError(f"{missing} on {', '.join(only)}", 404)
    else:
        holding = [node.endpoint for node in nodes_of(context) if node.usable and name in node.loaded]
        holding = holding or (await holders(context, model, missing))[:1]
    answers = await operations.fetch_from_all(
        context.engine.transport, holding, "POST", request.path, fields, operations.WORKING
    )
    good = operations.require_answer(f"unload {model}", answers)
    await wait_until_probed(context, answers)
    request.answer(200, encode(next(iter(good.values()))))
