"""Parse a request as the routes need it, and refuse one with the messages that Ollama sends."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgspec

from sollol.backends.decoding import read_any
from sollol.backends.go_json import normalised
from sollol.sim.reply import JSON, SimReply
from sollol.transport.base import Call

_encode = msgspec.json.Encoder().encode
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOREVER_S = 292 * 365.25 * 86400.0  # the longest duration Go has


def encode(value: Any) -> bytes:
    """Encode JSON with keys in the order given. `<`, `>` and `&` are escaped, as Go does it."""
    found: bytes = _encode(value)
    if b"<" in found or b">" in found or b"&" in found:
        found = found.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    return found


class Refusal(Exception):
    """The node answers with an error.

    `early`: it was found while the request was parsed, before the handler of the route.
    """

    def __init__(self, status: int, message: str, *, early: bool = False) -> None:
        self.status = status
        self.message = message
        self.early = early
        super().__init__(message)


def ollama_error(refusal: Refusal) -> SimReply:
    """Return a refusal as Ollama sends it on its own routes."""
    return SimReply.of(refusal.status, encode({"error": refusal.message}), JSON)


@dataclass
class SimRequest:
    """Hold one request with its decoded body."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    query: str = ""
    rest: str = ""  # the name in the path of a route

    @classmethod
    async def of(cls, call: Call) -> SimRequest:
        """Return the request of a call, with its whole body."""
        body = call.body
        if not isinstance(body, bytes):
            body = b"".join([piece async for piece in body])
        path, _, query = call.path.partition("?")
        headers = {name.lower(): value for name, value in call.headers}
        return cls(call.method.upper(), unquote(path) if "%" in path else path, body, headers, query=query)

    def read_json(self, kind: str) -> None:
        """Decode the body into `data`; `kind` is the Go struct that its errors name."""
        if not self.body.strip():
            raise Refusal(400, "missing request body" if kind != "OpenAI" else "EOF", early=True)
        try:
            data = read_any(_readable(self.body))
            _check_numbers(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, _go_json_error(str(error)), early=True) from None
        if not isinstance(data, dict):
            raise Refusal(400, f"json: cannot unmarshal {_go_kind(data)} into Go value of type api.{kind}", early=True)
        self.data = data

    def field_of(self, name: str, expected: type, kind: str, go_type: str, default: Any) -> Any:
        """Return a field, or the default for null and absent. Raises Refusal for another type."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise Refusal(
                400,
                f"json: cannot unmarshal {_go_kind(value)} into Go struct field {kind}.{name} of type {go_type}",
                early=True,
            )
        return value

    def messages_of(self, kind: str, go_type: str) -> list[dict[str, Any]]:
        """Return the `messages`. Raises Refusal unless each is an object with a text or a list of parts."""
        found: list[dict[str, Any]] = self.field_of("messages", list, kind, f"[]{go_type}", [])
        for message in found:
            if not isinstance(message, dict):
                problem = f"{_go_kind(message)} into Go struct field {kind}.messages of type {go_type}"
            elif not isinstance(message.get("content"), str | list | None):
                content = _go_kind(message["content"])
                problem = f"{content} into Go struct field {kind}.messages.content of type string"
            else:
                continue
            raise Refusal(400, f"json: cannot unmarshal {problem}", early=True)
        return found

    def tools_of(self, kind: str) -> None:
        """Check that `tools` is a list of objects. Raises Refusal otherwise."""
        for tool in self.field_of("tools", list, kind, "api.Tools", []):
            if not isinstance(tool, dict):
                problem = f"{_go_kind(tool)} into Go struct field {kind}.tools of type api.Tool"
                raise Refusal(400, f"json: cannot unmarshal {problem}", early=True)

    @property
    def streams(self) -> bool:
        """Return whether the answer is streamed, which is the default."""
        return self.data.get("stream") is not False


def _readable(body: bytes) -> bytes:
    """Return the one object that Go decodes, or the body unchanged if there is none."""
    try:
        return normalised(body)
    except msgspec.ValidationError:
        return body


def _go_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if value is None:
        return "null"
    return {str: "string", int: "number", float: "number", list: "array"}.get(type(value), "object")


def _check_numbers(value: Any) -> None:
    """Refuse whole numbers that no type of Go's holds."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Refusal(400, f"json: cannot unmarshal number {str(value)[:40]} into Go value", early=True)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_numbers(each)


def _go_json_error(text: str) -> str:
    if "truncated" in text:
        return "unexpected EOF"
    return "invalid character in request body"


def keep_alive_s(value: Any) -> float | None:
    """Return the seconds of a `keep_alive`: a number, or a duration like "5m"; negative is for ever, null is None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Refusal(400, f"Unsupported type for duration: {_go_kind(value)}", early=True)
    seconds = float(value) if not isinstance(value, str) else _duration_s(value)
    return seconds if 0 <= seconds <= FOREVER_S else FOREVER_S


def _duration_s(text: str) -> float:
    body = text[1:] if text[:1] in "+-" else text
    parts = _DURATION.findall(body)
    if "".join(number + unit for number, unit in parts) != body or not body:
        if body == "0":
            return 0.0
        problem = "missing unit in" if body.replace(".", "").isdigit() else "invalid"
        raise Refusal(400, f'time: {problem} duration "{text}"', early=True)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    return -seconds if text[0] == "-" else seconds


_INTEGERS = frozenset(
    ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k")
)


def options_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the `options`, checked as far as Ollama checks them. Unknown ones are ignored."""
    options = data.get("options")
    shift = {} if data.get("shift") is None else {"shift": data["shift"]}  # a field of the request, not an option
    if options is None:
        return shift
    if not isinstance(options, dict):
        raise Refusal(400, f"json: cannot unmarshal {_go_kind(options)} into Go struct field", early=True)
    for name in _INTEGERS:
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refusal(500, f'option "{name}" must be of type integer')
    given = {
        name: int(v) if name in _INTEGERS and v is not None else v for name, v in options.items() if name != "shift"
    }
    return {**given, **shift}
