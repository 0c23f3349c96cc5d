"""Convert a Python function to a tool: its signature and docstring become the JSON schema of Ollama's API.

As in the official client: parameters from the annotations, descriptions from a Google-style `Args:` section.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def as_tool(tool: Any) -> Any:
    """Return the schema of a function. Schemas and pydantic objects are returned unchanged."""
    if isinstance(tool, Mapping) or hasattr(tool, "model_dump") or not callable(tool):
        return tool
    doc = inspect.getdoc(tool) or ""
    described = _argument_docs(doc)
    hints = typing.get_type_hints(tool)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(tool).parameters.items():
        properties[name] = {"type": _json_type(hints.get(name, str)), "description": described.get(name, "")}
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    return {
        "type": "function",
        "function": {
            "name": tool.__name__,
            "description": re.split(r"\n\s*\n|\n\s*(?:Args|Returns|Raises):", doc, maxsplit=1)[0].strip(),
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def _json_type(hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_json_type(part) for part in typing.get_args(hint) if part is not type(None)]
        return kinds[0] if len(kinds) == 1 else kinds
    return _JSON_TYPES.get(origin or hint, "string")


def _argument_docs(doc: str) -> dict[str, str]:
    section = re.search(r"^\s*Args:\s*\n(.*?)(?=^\s*(?:Returns|Raises|Yields):|\Z)", doc, re.M | re.S)
    if section is None:
        return {}
    lines = re.findall(r"^\s+(\w+)\s*(?:\([^)]*\))?:\s*(.+)$", section.group(1), re.M)
    return {name: text.strip() for name, text in lines}
