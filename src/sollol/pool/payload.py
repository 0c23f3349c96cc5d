"""Validate images, tools and typed fields of a request, as the official client does.

A ValueError of that client before anything is sent is a BadInput here (which is a ValueError).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sollol.errors import BadInput
from sollol.files import read_bounded
from sollol.pool.tools import as_tool
from sollol.workload.validation import short

IMAGE_ENDINGS: Final = ("png", "jpg", "jpeg", "webp")  # a text with such an ending is a path, also of a missing file
PATH_MOST: Final = 4096  # characters of a path
IMAGE_MOST: Final = 64 * 1024 * 1024  # bytes of an image; a gateway takes 100 MB of base64 for all of a request
_NUMBER: Final = (int, float)
# Field -> permitted types, and their description in messages.
FIELD_TYPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "think": ((bool, str), "True, False or a level such as 'high'"),
    "logprobs": ((bool,), "True or False"),
    "top_logprobs": ((int,), "a whole number"),
    "keep_alive": ((*_NUMBER, str), "seconds or a duration such as '10m'"),
    "truncate": ((bool,), "True or False"),
    "shift": ((bool,), "True or False"),
    "raw": ((bool,), "True or False"),
    "suffix": ((str,), "a string"),
    "system": ((str,), "a string"),
    "template": ((str,), "a string"),
    "context": ((Sequence,), "the list of numbers of an earlier answer"),
    "width": ((int,), "a whole number"),
    "height": ((int,), "a whole number"),
    "steps": ((int,), "a whole number"),
    "dimensions": ((int,), "a whole number"),
}


def check_types(where: str, fields: Mapping[str, Any]) -> None:
    """Validate the types of Ollama's fields.

    Raises:
        BadInput: A field has another type.
    """
    for name, value in fields.items():
        if value is None or name not in FIELD_TYPES:
            continue
        types, expected = FIELD_TYPES[name]
        is_right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if not is_right or (name == "context" and isinstance(value, (str, bytes))):
            raise BadInput(f"{where}: {name}={short(value)}; expected {expected}")
    value = fields.get("format")
    if value is not None and not isinstance(value, Mapping) and value not in ("", "json"):
        raise BadInput(f"{where}: format={short(value)}; expected 'json', a JSON schema or a pydantic class")


def images(where: str, given: Any) -> list[str]:
    """Return images as base64.

    Raises:
        BadInput: An image cannot be used.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise BadInput(f"{where}={short(given)}; expected a list of images: [{short(given)}] for one")
    return [image(f"{where}[{index}]", one) for index, one in enumerate(given)]


def image(where: str, given: Any) -> str:
    """Return an image as base64, from bytes, a path, base64, or the official client's Image.

    Raises:
        BadInput: It cannot be used.
    """
    value = getattr(given, "value", given)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return _read(where, value)
    if not isinstance(value, str):
        raise BadInput(f"{where}: {short(value)} ({type(value).__name__}); expected bytes, a path or base64 text")
    if len(value) < PATH_MOST and _is_file(value):
        return _read(where, Path(value))
    if value.rsplit(".", 1)[-1].lower() in IMAGE_ENDINGS:
        what = "is a URL, and images are not fetched" if "://" in value[:10] else "does not exist"
        raise BadInput(f"{where}: the file {short(value)} {what}; expected a path, bytes or base64 text")
    try:
        base64.b64decode(value)
    except (binascii.Error, ValueError):
        raise BadInput(
            f"{where}: {short(value)} is neither base64 nor a file; expected a path, bytes or base64 text"
        ) from None
    return value


def _read(where: str, path: Path) -> str:
    try:
        return base64.b64encode(read_bounded(path, IMAGE_MOST)).decode()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{where}: cannot read {str(path)!r}: {why}; expected an image file") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # ValueError: a null byte
        return False


def tools(given: Any) -> list[Any]:
    """Return tools as schemas: functions are converted, schemas stay.

    Raises:
        BadInput: A tool is neither.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise BadInput(f"tools={short(given)}; expected a list of functions or schemas")
    return [_tool(index, one) for index, one in enumerate(given)]


def _tool(index: int, given: Any) -> Any:
    found = as_tool(given)
    if hasattr(found, "model_dump"):
        found = found.model_dump(exclude_none=True)
    function = found.get("function", {}) if isinstance(found, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name", ""), str):
        raise BadInput(
            f"tools[{index}]={short(given)}; expected a function, or a schema such as "
            "{'type': 'function', 'function': {'name': ..., 'parameters': {...}}}"
        )
    return found


def message(given: Any, index: int) -> Any:
    """Return a message as a mapping with its images as base64.

    Raises:
        BadInput: A field has another type.
    """
    where = f"chat: messages[{index}]"
    if hasattr(given, "model_dump"):
        given = given.model_dump(exclude_none=True)
    if not isinstance(given, Mapping):
        raise BadInput(f"{where}={short(given)}; expected {{'role': ..., 'content': ...}}")
    if "role" not in given:
        raise BadInput(f"{where} has no 'role'; expected 'system', 'user', 'assistant' or 'tool'")
    for name in ("role", "content", "thinking", "tool_name"):
        value = given.get(name)
        if not isinstance(value, str) and not (value is None and name != "role"):
            raise BadInput(f"{where}[{name!r}] is {short(value)} ({type(value).__name__}); expected a string")
    calls = given.get("tool_calls")
    if calls is not None and (isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable)):
        raise BadInput(f"{where}['tool_calls'] is {short(calls)}; expected a list")
    if given.get("images"):
        return {**given, "images": images(f"{where}['images']", given["images"])}
    return given
