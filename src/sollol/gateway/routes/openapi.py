"""Describe the gateway's own routes by OpenAPI. The other routes are documented by Ollama, OpenAI and Anthropic.

The description is exact enough to check answers by it, as the tests do: every field that a reader may rely on is
required, times are milliseconds, and other fields are permitted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sollol.version import __version__

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_MS: Schema = {"type": "number", "description": "milliseconds"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _object(**properties: Schema) -> Schema:
    """Return the schema of an object with these fields, all required; it may have more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _state(*names: str) -> Schema:
    return {"type": "string", "enum": list(names)}


_TASK = {"id": _COUNT, "kind": _state("chat", "generate", "embed"), "model": _TEXT, "app": _TEXT}
_QUEUED = {**_TASK, "priority": {"type": "integer", "minimum": 0, "maximum": 10}}
_RESULT = {"node": _TEXT, "predicted_ms": _MS, "queue_ms": _MS, "actual_ms": _MS, "attempts": _COUNT, "outcome": _TEXT}
_AT = {**_NUMBER, "description": "seconds since 1970"}
_FINISHED = {**_TASK, **_RESULT, "reason": _TEXT, "task_type": _TEXT, "at": _AT}
_ATTEMPT = {"node": _TEXT, "reason": _TEXT, "predicted_ms": _MS, "elapsed_ms": _MS}

SCHEMAS: dict[str, Schema] = {
    "Error": _object(error=_TEXT),
    "Plan": _object(
        dry_run=_FLAG,
        planned_at=_NUMBER,
        expected_s=_or_null(_object(before=_NUMBER, after=_NUMBER)),
        steps=_list(_ref("PlanStep")),
        not_carried_out=_TEXT,
        actions=_list(_ref("PlanStep")),
    ),
    "PlanStep": _object(do=_state("load", "unload"), node=_TEXT, model=_TEXT, reason=_TEXT, gain_s=_NUMBER),
    "Woken": _object(node=_TEXT, woken=_FLAG),
    "Health": _object(status={"const": "ok"}, version=_TEXT, instance=_TEXT),
    "Ready": _object(
        status=_state("ready", "not ready"),
        nodes_up=_COUNT,
        nodes=_COUNT,
        why={"type": "object", "additionalProperties": _TEXT, "description": "of each node that is not up, or gateway"},
    ),
    "Loaded": _object(
        model=_TEXT, size=_COUNT, size_vram=_COUNT, expires_at=_TEXT, context_length=_COUNT, processor=_TEXT
    ),
    "Node": _object(
        host=_TEXT,
        url=_TEXT,
        state=_state("up", "down", "unknown"),
        available=_FLAG,
        why=_TEXT,
        version=_TEXT,
        models=_list(_TEXT),
        loaded=_list(_ref("Loaded")),
        loaded_models=_list(_TEXT),
        unable=_list(_TEXT),
        latency_ms=_MS,
        success_rate=_SHARE,
        total_requests=_COUNT,
        failed_requests=_COUNT,
        active_requests=_COUNT,
        batch_throughput={**_NUMBER, "description": "texts embedded per second"},
        items=_COUNT,
        slots={"type": "object", "additionalProperties": _COUNT},
    ),
    "Nodes": _object(nodes=_list(_ref("Node"))),
    "Waiting": _object(**_QUEUED, waited_ms=_MS, position={"type": "integer", "minimum": 1}, eta_ms=_MS),
    "Running": _object(**_QUEUED, **_ATTEMPT, items=_COUNT),
    "FinishedRequest": _object(**_FINISHED),
    "Calibration": _object(median=_or_null(_NUMBER), p90=_or_null(_NUMBER), count=_COUNT),
    "Totals": _object(total_requests=_COUNT, successful_requests=_COUNT, failed_requests=_COUNT, faults=_COUNT),
    "Snapshot": _object(
        app_name=_TEXT,
        version=_TEXT,
        routing_mode=_or_null(_TEXT),
        routing_strategy=_TEXT,
        totals=_ref("Totals"),
        nodes=_list(_ref("Node")),
        waiting=_list(_ref("Waiting")),
        running=_list(_ref("Running")),
        recent=_list(_ref("FinishedRequest")),
        calibration=_ref("Calibration"),
        keys={"type": "object", "additionalProperties": _ref("Account")},
    ),
    "Account": _object(calls=_COUNT, tokens=_COUNT, running=_COUNT, reserved=_COUNT),
    "Queue": _object(
        id=_COUNT,
        state=_state("waiting", "running", "done"),
        model=_TEXT,
        position=_or_null({"type": "integer", "minimum": 1}),
        eta_ms=_or_null(_MS),
        queue_ms=_or_null(_MS),
    ),
    "Candidate": _object(node=_TEXT, finish_ms=_MS, terms={"type": "object", "additionalProperties": _MS}),
    "Done": _object(
        state={"const": "done"}, **_FINISHED, reasons=_list(_TEXT), tried=_list({"type": "object"}),
        candidates=_list(_ref("Candidate")),
    ),
    "Open": _object(
        state=_state("waiting", "running"), **_QUEUED, task_type=_TEXT, queue_ms=_MS,
        tried=_list(_object(node=_TEXT, why=_TEXT)),
        running=_list(_object(**_ATTEMPT, candidates=_list(_ref("Candidate")))),
    ),
    "Explained": {"oneOf": [_ref("Done"), _ref("Open")]},
    "Drained": _object(node=_TEXT, drained={"type": "boolean"}),
    "Unload": {
        "type": "object",
        "properties": {"model": {"type": "string", "minLength": 1}, "node": {"type": ["string", "null"]}},
        "required": ["model"],
    },
    "Restarted": _object(exit_code={"type": "integer"}, output=_TEXT),
    "Unloaded": _object(model=_TEXT, nodes={"type": "array", "items": _TEXT}),
    "ModelOnNode": _object(
        model=_TEXT, node=_TEXT, size=_COUNT, digest=_TEXT, format=_TEXT, processor=_or_null(_TEXT),
        gpu_share=_or_null(_SHARE), pinned=_FLAG, last_used=_or_null(_NUMBER),
    ),
    "Inventory": _object(models=_list(_ref("ModelOnNode")), down={"type": "object", "additionalProperties": _TEXT}),
    "Kept": _object(model=_TEXT, status=_TEXT, nodes={"type": "object", "additionalProperties": _TEXT}),
    "Free": {
        "type": "object",
        "properties": {"node": {"type": "string"}, "bytes": {"type": "integer", "minimum": 1}},
        "required": ["node", "bytes"],
    },
    "Freed": _object(
        status=_state("success", "partial"), node=_TEXT, freed=_COUNT, unloaded=_list(_TEXT),
        kept={"type": "object", "additionalProperties": _TEXT},
    ),
    "Pull": {
        "type": "object",
        "properties": {
            "model": {"type": "string", "minLength": 1},
            "nodes": {"type": ["array", "null"], "items": {"type": "string"}},
        },
        "required": ["model"],
    },
    "Sync": {"type": ["object", "null"], "properties": {"dry_run": {"type": "boolean"}}},
    "Change": _object(verb=_state("pull", "warm", "unpin", "unload"), model=_TEXT, node=_TEXT, reason=_TEXT),
    "Synced": _object(changes=_list(_ref("Change")), unmet=_list(_TEXT)),
    "Cancelled": _object(id={"type": "integer"}, cancelled={"type": "boolean"}),
    "Mode": {
        "type": "object",
        "properties": {"mode": {"enum": ["fast", "reliable", "async", None]}},
        "required": ["mode"],
    },
    "Document": _object(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"}),
}  # fmt: skip

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
        answers["401"] = _answer("A key is needed.", "Error")
    if of_id:
        answers["404"] = _answer("No such request, another key's, or too old (the last 1,000 are kept).", "Error")
        operation["parameters"] = [_ID]
    answers |= refusals or {}
    return {"get": operation}


def _post(
    name: str, summary: str, schema: str, *, body: str = "", parameters: tuple[Schema, ...] = (), lines: bool = False
) -> Schema:
    """Return an action that needs an admin key where keys are required. `lines`: its answer is one object a line."""
    answers: Schema = {
        "200": _answer("The answer.", schema),
        "401": _answer("A key is needed.", "Error"),
        "404": _answer("No such node, model or request.", "Error"),
        "409": _answer("It cannot be done now.", "Error"),
        **_NOT_ADMIN,
    }
    operation: Schema = {"operationId": name, "summary": summary, "responses": answers}
    if lines:
        answers["200"] = {"description": "Lines of progress.", "content": {"application/x-ndjson": {}}}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        answers["400"] = _answer("The body cannot be used.", "Error")
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
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keys else [],
        "paths": {
            "/sollol/health": _get("health", "Whether the gateway serves.", "Health", public=True),
            "/sollol/ready": _get("ready", "Whether a node is up.", "Ready", public=True, refusals={"503": not_ready}),
            "/sollol/snapshot": _get("snapshot", "Nodes, queue and requests.", "Snapshot", refusals=_NOT_ADMIN),
            "/sollol/nodes": _get("nodes", "The nodes.", "Nodes", refusals=_NOT_ADMIN),
            "/sollol/explain/{id}": _get("explain", "Why a request was sent to its node.", "Explained", of_id=True),
            "/sollol/queue/{id}": _get("queue", "The position of a request in the queue.", "Queue", of_id=True),
            "/sollol/nodes/{node}/drain": _post(
                "drain", "Keep new work away from a node.", "Drained", parameters=(_NODE,)
            ),
            "/sollol/nodes/{node}/resume": _post(
                "resume", "Let work come to a node again.", "Drained", parameters=(_NODE,)
            ),
            "/sollol/nodes/{node}/restart": _post(
                "restart", "Let the agent of a node restart its Ollama.", "Restarted", parameters=(_NODE,)
            ),
            "/sollol/nodes/{node}/wake": _post(
                "wake", "Send the packet that starts a sleeping node.", "Woken", parameters=(_NODE,)
            ),
            "/sollol/models/unload": _post(
                "unload", "Put a model out of memory, on one node or on all.", "Unloaded", body="Unload"
            ),
            "/sollol/plan": _get(
                "plan",
                "The plan of the controller.",
                "Plan",
                refusals={**_NOT_ADMIN, "404": _answer("There is no controller.", "Error")},
            ),
            "/sollol/models": _get("models", "The models of each node.", "Inventory", refusals=_NOT_ADMIN),
            "/sollol/models/warm": _post("warm", "Load a model.", "Kept", body="Unload"),
            "/sollol/models/pin": _post("pin", "Load a model, and keep it in memory.", "Kept", body="Unload"),
            "/sollol/models/unpin": _post("unpin", "Let a model leave the memory.", "Kept", body="Unload"),
            "/sollol/models/free": _post("free", "Unload models until bytes are free.", "Freed", body="Free"),
            "/sollol/models/pull": _post("pull", "Pull a model to nodes.", "Error", body="Pull", lines=True),
            "/sollol/models/sync": _post("sync", "Make the models as [models] names them.", "Synced", body="Sync"),
            "/sollol/requests/{id}/cancel": _post(
                "cancel", "Cancel a waiting or running request.", "Cancelled", parameters=(_ID,)
            ),
            "/sollol/mode": _post("mode", "Set the routing mode of requests without one.", "Mode", body="Mode"),
            "/sollol/openapi.json": _get("openapi", "This document.", "Document"),
        },
    }
