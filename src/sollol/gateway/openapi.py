"""OpenAPI of the gateway's own routes. The routes of Ollama, OpenAI and Anthropic are documented by those."""

from __future__ import annotations

from typing import Any

import sollol

_NUMBER = {"type": ["number", "null"]}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _answer(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _get(summary: str, answers: dict[str, Any], *, id_in_path: bool = False, public: bool = False) -> dict[str, Any]:
    refused = {"401": _answer("A key is needed.", _ERROR), "403": {"description": "Foreign Host or Origin."}}
    if id_in_path:
        answers["400"] = _answer("Not an id.", _ERROR)
        answers["404"] = _answer("No such request, or too long ago.", _ERROR)
    operation: dict[str, Any] = {"summary": summary, "responses": answers | refused}
    if public:
        operation["security"] = []
    if id_in_path:
        operation["parameters"] = [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The number in X-Sollol-Request-Id, or the id that the client gave there.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9._-]+$"},
            }
        ]
    return {"get": operation}


def document(keys: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document. `keys`: they are asked for."""
    rows = {"type": "array", "items": {"type": "object"}}
    ready = _object(
        ["status", "nodes_up", "nodes"],
        status={"enum": ["ready", "not ready"]},
        nodes_up={"type": "integer"},
        nodes={"type": "integer"},
    )
    health = _object(["status", "version"], status={"const": "ok"}, version={"type": "string"})
    names = ["nodes", "waiting", "running", "recent", "calibration", "totals", "app_name", "version"]
    snapshot = _object(
        names, nodes=rows, waiting=rows, running=rows, recent=rows, calibration={"type": "object"},
        totals={"type": "object"}, app_name={"type": "string"}, version={"type": "string"},
    )  # fmt: skip
    queue = _object(
        ["id", "state", "model", "position", "eta_ms", "queue_ms"],
        id={"type": "integer"},
        state={"enum": ["waiting", "running", "done"]},
        model={"type": "string"},
        position={"type": ["integer", "null"]},
        eta_ms=_NUMBER,
        queue_ms=_NUMBER,
    )
    explained = _object(["id", "state"], id={"type": "integer"}, state={"enum": ["waiting", "running", "done"]})
    return {
        "openapi": "3.1.0",
        "info": {"title": "SOLLOL gateway", "version": sollol.__version__},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}] if keys else [],
        "paths": {
            "/sollol/health": _get("Does it serve?", {"200": _answer("Yes.", health)}, public=True),
            "/sollol/ready": _get(
                "Can it answer?",
                {"200": _answer("A node is up.", ready), "503": _answer("None is.", ready)},
                public=True,
            ),
            "/sollol/snapshot": _get("Nodes, queue and requests.", {"200": _answer("Now.", snapshot)}),
            "/sollol/nodes": _get(
                "The nodes.", {"200": _answer("Each with its state.", _object(["nodes"], nodes=rows))}
            ),
            "/sollol/explain/{id}": _get(
                "Why a request went where it went.", {"200": _answer("Its story.", explained)}, id_in_path=True
            ),
            "/sollol/queue/{id}": _get(
                "Where a request stands.", {"200": _answer("Position and ETA.", queue)}, id_in_path=True
            ),
            "/sollol/openapi.json": _get("This document.", {"200": _answer("OpenAPI 3.1.", {"type": "object"})}),
        },
    }
