"""Describe the gateway's own routes by OpenAPI. The other routes are documented by Ollama, OpenAI and Anthropic.

The schemas are those of the structures that the routes send and read: every field that a reader may rely on is
required, times are milliseconds, and other fields are permitted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from sollol.engine.controller import ControllerStatus
from sollol.gateway.own_view import GatewayOverview
from sollol.gateway.routes import answers
from sollol.observe.rows import FinishedRow, OpenExplanation, RoutingRecord
from sollol.version import __version__

Schema = dict[str, Any]
_SENT = (GatewayOverview, ControllerStatus, FinishedRow, OpenExplanation, RoutingRecord)
_OWN = (kind for kind in vars(answers).values() if isinstance(kind, type) and kind.__module__ == answers.__name__)
_TYPES = (*_SENT, *_OWN)
_REF = "#/components/schemas/{name}"


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(name=name)}


def schemas() -> dict[str, Schema]:
    """Return the schemas of all bodies and answers, by the names of their types."""
    _, found = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    found["SyncBody"]["type"] = ["object", "null"]
    state: Schema = {"type": "object", "required": ["state"], "properties": {"state": {"const": "done"}}}
    found["DoneExplanation"] = {"allOf": [state, _ref("FinishedRow"), _ref("RoutingRecord")]}
    found["Explained"] = {"oneOf": [_ref("DoneExplanation"), _ref("OpenExplanation")]}
    return found


_ID: Schema = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The number in X-Sollol-Request-Id, or the id that the client gave there.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9._-]+$"},
}


def _answer(what: str, schema: str) -> Schema:
    return {"description": what, "content": {"application/json": {"schema": _ref(schema)}}}


_NOT_ADMIN: Schema = {"403": {"description": "A key without admin rights; foreign Host or Origin."}}


def _get(
    name: str, summary: str, schema: str, *, public: bool = False, of_id: bool = False, refusals: Schema | None = None
) -> Schema:
    answers: Schema = {"200": _answer("The answer.", schema), "403": {"description": "Foreign Host or Origin."}}
    operation: Schema = {"operationId": name, "summary": summary, "responses": answers}
    if public:
        operation["security"] = []
    else:
        answers["401"] = _answer("A key is needed.", "ErrorAnswer")
    if of_id:
        answers["404"] = _answer("No such request, another key's, or too old (the last 1,000 are kept).", "ErrorAnswer")
        operation["parameters"] = [_ID]
    answers |= refusals or {}
    return {"get": operation}


def _post(name: str, summary: str, schema: str, *parameters: Schema, body: str = "", lines: bool = False) -> Schema:
    """Return an action that needs an admin key where keys are required. `lines`: its answer is one object a line."""
    answers: Schema = {
        "200": _answer("The answer.", schema),
        "401": _answer("A key is needed.", "ErrorAnswer"),
        "404": _answer("No such node, model or request.", "ErrorAnswer"),
        "409": _answer("It cannot be done now.", "ErrorAnswer"),
        **_NOT_ADMIN,
    }
    operation: Schema = {"operationId": name, "summary": summary, "responses": answers}
    if lines:
        answers["200"] = {"description": "Lines of progress.", "content": {"application/x-ndjson": {}}}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        answers["400"] = _answer("The body cannot be used.", "ErrorAnswer")
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return {"post": operation}


_NODE: Schema = {
    "name": "node",
    "in": "path",
    "required": True,
    "description": "A node as /sollol/nodes lists it: host:port.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9.:-]{1,200}$"},
}


@cache
def document(keys: bool) -> Schema:
    """Return the OpenAPI 3.1 document. `keys`: keys are required."""
    not_ready = _answer("No node is up, or the gateway is about to end: see `why`.", "Ready")
    return {
        "openapi": "3.1.0",
        "info": {"title": "SOLLOL gateway", "version": __version__},
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keys else [],
        "paths": {
            "/sollol/health": _get("health", "Whether the gateway serves.", "Health", public=True),
            "/sollol/ready": _get("ready", "Whether a node is up.", "Ready", public=True, refusals={"503": not_ready}),
            "/sollol/snapshot": _get("snapshot", "Nodes, queue and requests.", "GatewayOverview", refusals=_NOT_ADMIN),
            "/sollol/nodes": _get("nodes", "The nodes.", "Nodes", refusals=_NOT_ADMIN),
            "/sollol/explain/{id}": _get("explain", "Why a request was sent to its node.", "Explained", of_id=True),
            "/sollol/queue/{id}": _get("queue", "The position of a request in the queue.", "QueuePlace", of_id=True),
            "/sollol/nodes/{node}/drain": _post("drain", "Keep new work away from a node.", "Drained", _NODE),
            "/sollol/nodes/{node}/resume": _post("resume", "Let work come to a node again.", "Drained", _NODE),
            "/sollol/nodes/{node}/restart": _post(
                "restart", "Let the agent of a node restart its Ollama.", "Restarted", _NODE
            ),
            "/sollol/nodes/{node}/wake": _post("wake", "Send the packet that starts a sleeping node.", "Woken", _NODE),
            "/sollol/models/unload": _post(
                "unload", "Unload a model from a node, or from all.", "Unloaded", body="ModelBody"
            ),
            "/sollol/plan": _get(
                "plan",
                "The plan of the controller.",
                "ControllerStatus",
                refusals={**_NOT_ADMIN, "404": _answer("There is no controller.", "ErrorAnswer")},
            ),
            "/sollol/models": _get("models", "The models of each node.", "Inventory", refusals=_NOT_ADMIN),
            "/sollol/models/warm": _post("warm", "Load a model.", "Kept", body="ModelBody"),
            "/sollol/models/pin": _post("pin", "Load a model, and keep it in memory.", "Kept", body="ModelBody"),
            "/sollol/models/unpin": _post("unpin", "Let a model leave the memory.", "Kept", body="ModelBody"),
            "/sollol/models/free": _post("free", "Unload models until bytes are free.", "Freed", body="FreeBody"),
            "/sollol/models/pull": _post("pull", "Pull a model to nodes.", "ErrorAnswer", body="PullBody", lines=True),
            "/sollol/models/sync": _post("sync", "Make the models as [models] names them.", "Synced", body="SyncBody"),
            "/sollol/requests/{id}/cancel": _post(
                "cancel", "Cancel a waiting or running request.", "CancelledRequest", _ID
            ),
            "/sollol/mode": _post("mode", "Set the routing mode of requests without one.", "ModeBody", body="ModeBody"),
            "/sollol/openapi.json": _get("openapi", "This document.", "Document"),
        },
    }
