"""Change the models of the nodes: pull, push, create, copy and delete.

A change is sent to all its nodes at once (`targets`) and reported for each: progress is one stream whose lines name
their node, and different outcomes are listed by node. The answer is sent when the scheduler has seen the change, too.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sollol.backends.ollama import encode
from sollol.errors import ResponseError
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import fields_of, model_name
from sollol.gateway.node_queries import holders, wait_until_probed
from sollol.gateway.routes import targets
from sollol.gateway.routes.targets import Targets
from sollol.http_server.request import JSON, NDJSON, Request
from sollol.models import operations

PLAIN_JSON: Final = "application/json"  # Ollama's type for these routes

Outcomes = dict[str, Exception | str | None]  # by node: None is success, a text the reason why it was not reached


async def pull(context: Context, request: Request) -> None:
    """Pull a model."""
    fields = _renamed(context, fields_of(request, "model", "name"))
    to = targets.chosen(context, request) or targets.for_pull(context, fields["model"])
    await _stream_progress(context, request, fields, to)


async def push(context: Context, request: Request) -> None:
    """Push a model from one node that has it."""
    fields = _renamed(context, fields_of(request, "model", "name"))
    to = targets.chosen(context, request)
    if to is None:
        have = await holders(context, fields["model"], f"model '{fields['model']}' not found")
        to = Targets(tuple(have[:1]), {})
    await _stream_progress(context, request, fields, to)


async def create(context: Context, request: Request) -> None:
    """Create a model."""
    fields = fields_of(request, "model", "name")
    if isinstance(fields.get("from"), str):
        fields["from"] = context.settings.resolve_model(fields["from"])
    to = targets.chosen(context, request) or await targets.for_create(context, fields)
    await _stream_progress(context, request, fields, to)


async def copy(context: Context, request: Request) -> None:
    """Copy a model on the nodes that have it."""
    fields = fields_of(request, "source")
    name = str(fields["source"])
    fields["source"] = context.settings.resolve_model(name)
    to = targets.chosen(context, request)
    to = to or await targets.holding(context, fields["source"], f'model "{name}" not found')
    await _send_to_each(context, request, fields, to)


async def delete(context: Context, request: Request) -> None:
    """Delete a model. Aliases are not resolved, so that the model behind one is not deleted by mistake."""
    fields = fields_of(request, "model", "name")
    name = model_name(fields)
    to = targets.chosen(context, request)
    to = to or await targets.holding(context, name, f"model '{name}' not found")
    await _send_to_each(context, request, fields, to)


def _renamed(context: Context, fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "model": context.settings.resolve_model(model_name(fields))}


# --- calls and answers ---


async def _send_to_each(context: Context, request: Request, fields: dict[str, Any], to: Targets) -> None:
    """Send one call to each node, and answer with the results."""
    try:
        answers = await operations.fetch_from_all(
            context.engine.transport, to.nodes, request.method, request.path, fields
        )
    except asyncio.CancelledError:
        context.engine.refresh()
        raise
    outcomes: Outcomes = {node: answer if isinstance(answer, Exception) else None for node, answer in answers.items()}
    await wait_until_probed(context, answers)
    answer_outcomes(request, {**outcomes, **to.down}, JSON)


async def _stream_progress(context: Context, request: Request, fields: dict[str, Any], to: Targets) -> None:
    """Send a call with progress: answer with one stream for all nodes, or, with `"stream": false`, with the results."""
    streams = fields.get("stream") is not False
    lines = operations.stream_progress(context.engine.transport, to.nodes, request.path, fields, verbatim=True)
    keys = [node.key for node in to.nodes]
    outcomes: Outcomes = {**dict.fromkeys(keys, "ended without a result"), **to.down}
    sums = Sums(len(keys))
    late: list[dict[str, Any]] = []  # failures before the first progress
    try:
        async for node, line in lines:
            if isinstance(line, Exception):
                outcomes[node] = line
                late.append({"status": f"failed on {node}: {operations.error_message(line)}", "node": node})
            elif line.get("status") == "success":
                outcomes[node] = None
            elif streams:
                if not request.has_begun:
                    request.begin(200, NDJSON)
                await _write_line(request, sums.add({**line, "node": node}))
            while late and request.has_begun and len(keys) > 1:
                await _write_line(request, late.pop(0))
        await wait_until_probed(context, keys)
    except asyncio.CancelledError:
        context.engine.refresh()  # changes from before the client left
        raise
    finally:
        await lines.aclose()
    if streams and (request.has_begun or None in outcomes.values()):
        request.begin(200, NDJSON)
        await _write_line(request, _last_line(outcomes))
        request.end()
    else:
        answer_outcomes(request, outcomes, PLAIN_JSON)


async def _write_line(request: Request, line: dict[str, Any]) -> None:
    if not request.write(encode(line) + b"\n"):
        await request.drained()


def _texts(outcomes: Outcomes) -> dict[str, str]:
    """Return the outcome of each node in words."""
    return {
        node: "success" if found is None else found if isinstance(found, str) else operations.error_message(found)
        for node, found in outcomes.items()
    }


def _last_line(outcomes: Outcomes) -> dict[str, Any]:
    """Return the last line: success if one node succeeded, and the outcome of each node."""
    if None in outcomes.values():
        return {"status": "success", "nodes": _texts(outcomes)}
    return _error(outcomes)[1]


def answer_outcomes(request: Request, outcomes: Outcomes, content_type: str, status: int = 200) -> None:
    """Answer with the outcomes of all nodes. `status`: of success."""
    good = [node for node, found in outcomes.items() if found is None]
    if good:
        result = {"status": "success" if len(good) == len(outcomes) else "partial", "nodes": _texts(outcomes)}
        request.answer(status, encode(result), content_type)
    else:
        status, body = _error(outcomes)
        if len(set(_texts(outcomes).values())) == 1:
            del body["nodes"]  # all nodes gave the same error
        request.answer(status, encode(body), content_type)


def _error(outcomes: Outcomes) -> tuple[int, dict[str, Any]]:
    """Return the error of a node, preferably of one that answered, and the outcomes of all."""
    texts = _texts(outcomes)
    refused = [(found.status_code, node) for node, found in outcomes.items() if isinstance(found, ResponseError)]
    status, node = min(refused, default=(502, next(iter(texts))))
    return status, {"error": texts[node], "nodes": texts}


class Sums:
    """Sum the progress of one layer over several nodes, so that a progress bar never goes back."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._completed: dict[str, dict[str, int]] = {}

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return a line of one node with the sums of all."""
        digest, total, completed = line.get("digest"), line.get("total"), line.get("completed")
        if self._nodes == 1 or not digest or type(total) is not int:
            return line
        by_node = self._completed.setdefault(str(digest), {})
        node = str(line["node"])
        by_node[node] = max(by_node.get(node, 0), completed if type(completed) is int else 0)
        return {**line, "total": total * self._nodes, "completed": sum(by_node.values())}
