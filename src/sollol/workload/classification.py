"""Classify requests by task type and complexity, from words and sizes, without a model.

The scheduler predicts the length of an answer by its task type. A wrong type costs little, because lengths are learned
for each (application, type, model). Time matters more, since this runs for every call: only both ends of the last user
message and of the system message are read, and each word is one lookup (`task_words`).

The instruction stands at the beginning of a message, or at its end, after the material. The material may contain words
about code, classes or summaries, too. Therefore the first type that reaches two points wins, quotations and fenced
code are skipped, and a fence alone counts only when no instruction was found. "Write a function that summarises" is
code, because "function" comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sollol.core.types import TaskType
from sollol.errors import BadInput
from sollol.workload.task_words import (
    ANYWHERE,
    CLASSIFY,
    CODE,
    EXTENSIONS,
    EXTRACT,
    LIST,
    MAKE,
    OTHER,
    PROSE,
    SOURCE,
    STEMS,
    STEPS,
    SUMMARISE,
    WORDS,
)

HEAD: Final = 400
TAIL: Final = 300  # characters read at the beginning (HEAD) and the end of a long message
LINE: Final = 200  # characters that may hold the instruction
ENOUGH: Final = 2  # points at which a type wins
NEAR: Final = 5  # words between "write" and its object
MESSAGES: Final = 40  # latest messages whose sizes are counted

_WORD: Final = re.compile(r"[\w.+#]+")
# Lower case for letters, a space for characters outside words.
_SPACED: Final = bytes(ord(c.lower() if c.isalnum() or c in "_.+#" else " ") for c in map(chr, range(128))) + b" " * 128
_QUOTED: Final = re.compile(r'"[^"\n]*"|“[^“”\n]*”|„[^„“”\n]*[“”]|«[^«»\n]*»|`[^`\n]+`|「[^「」\n]*」')
_QUOTES: Final = re.compile("[“„«「]")
_LATIN: Final = re.compile(r"[a-z][a-z+#]*")
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_CODE_LIKE: Final = re.compile(
    r"^[ \t]*(?:def|class|import|from|#include|SELECT|function|const|let|public|fn|func)\b.*[({;:]", re.M
)
CHAT: Final = TaskType.CHAT
_TRACE: Final = "Traceback (most recent"
_FENCE: Final = "```"
_TYPES: Final = {
    SUMMARISE: TaskType.SUMMARISE,
    CLASSIFY: TaskType.CLASSIFY,
    EXTRACT: TaskType.EXTRACT,
    CODE: TaskType.CODE,
}
_REMEMBERED: Final = 4096
LONGEST: Final = 20  # letters of a cached word
_NEUTRAL: Final = (0, 0)  # the sign of a word without a meaning for the type
_signs: Final[dict[str, tuple[int, int]]] = {}  # cache: word -> (sign, points)


def detect_task_type(request: Any) -> TaskType:
    """Return the task type of a text, a list of messages, or a payload of `/api/chat`, `/api/generate`, `/api/embed`.

    The default is CHAT.

    Raises:
        BadInput: The request is none of these.
    """
    payload = _payload(request)
    messages = payload.get("messages")
    if payload.get("input") is not None and not messages:
        return TaskType.EMBED
    return type_of(
        messages, payload.get("prompt"), payload.get("system"), payload.get("format"), bool(payload.get("suffix"))
    )


def type_of(messages: Any, prompt: Any, system: Any, schema: Any, fills: bool) -> TaskType:
    """Return the task type by the relevant fields of a payload.

    Args:
        messages: The conversation, None for a prompt.
        prompt: The prompt, where there are no messages.
        system: The system prompt beside `prompt`.
        schema: The `format` of the answer: "json", a JSON schema, or None.
        fills: True if the answer is inserted before a `suffix`.
    """
    if schema and not isinstance(schema, str):
        return _of_schema(schema)
    text, system_text = _texts(messages, prompt, system)
    found = _of_text(text) if text else None
    if found is not None:
        return found
    if fills:
        return TaskType.CODE
    if schema == "json":
        return TaskType.EXTRACT
    return (_of_system(_ends(system_text)) if system_text else None) or CHAT


def estimate_complexity(request: Any) -> int:
    """Return the complexity of a request, from 1 (a greeting) to 10.

    Points are added for the size of the conversation (one for each doubling from 400 characters), its turns, tools,
    the task type, thinking, and words that stand for several steps.
    """
    payload = _payload(request)
    if payload.get("input") is not None and not payload.get("messages"):
        return 1
    messages = payload.get("messages") or ()
    text, system = _texts(messages, payload.get("prompt"), payload.get("system"))
    size = len(text) + len(system) if not messages else sum(len(_content(m)) for m in messages[-MESSAGES:])
    points = 1 + min(4, (size // 200).bit_length() if size >= 400 else 0)
    points += (len(messages) >= 4) + (len(messages) >= 12)
    tools = payload.get("tools")
    if tools:
        points += 1 + (len(tools) > 4)
    points += {TaskType.CODE: 2, TaskType.SUMMARISE: 1, TaskType.EXTRACT: 1}.get(detect_task_type(payload), 0)
    points += bool(payload.get("think"))
    points += min(2, len(STEPS.intersection(_words(_ends(text), text.isascii()))))
    return min(10, points)


def _payload(request: Any) -> Mapping[str, Any]:
    if isinstance(request, str):
        return {"prompt": request}
    if isinstance(request, (dict, Mapping)):
        return request
    if isinstance(request, Sequence) and not isinstance(request, (bytes, bytearray)):
        return {"messages": request}
    raise BadInput(f"request is {type(request).__name__}; expected a text, a list of messages or a payload")


def _texts(messages: Any, prompt: Any, system: Any) -> tuple[str, str]:
    """Return the last user message and the system message."""
    if not messages:
        return prompt if isinstance(prompt, str) else "", system if isinstance(system, str) else ""
    if not isinstance(messages, list) and (isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence)):
        raise BadInput(f"messages is {type(messages).__name__}; expected a list of messages")
    conversation: list[Any] = messages if isinstance(messages, list) else list(messages)
    question = ""
    last = conversation[-1]
    if _field(last, "role") == "user":  # the usual case
        question = _content(last)
    else:
        for message in reversed(messages[-MESSAGES:]):
            if _field(message, "role") == "user":
                question = _content(message)
                break
    first = conversation[0]
    return question, _content(first) if _field(first, "role") == "system" else ""


def _field(message: Any, name: str) -> Any:
    if isinstance(message, dict):
        return message.get(name)
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def _content(message: Any) -> str:
    content = _field(message, "content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):  # content parts, as in OpenAI's format
        return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    return ""


def _of_schema(schema: Any) -> TaskType:
    """Return CLASSIFY for a schema of one field with an enum or a boolean, else EXTRACT."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if isinstance(properties, Mapping) and len(properties) == 1:
        (only,) = properties.values()
        if isinstance(only, Mapping) and ("enum" in only or only.get("type") == "boolean"):
            return TaskType.CLASSIFY
    return TaskType.EXTRACT


def _ends(text: str) -> str:
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def _of_text(text: str) -> TaskType | None:
    """Return the task type of a message, None if no sign was found."""
    text = _ends(text)
    ascii = text.isascii()
    ticked = "`" in text
    fenced = ticked and _FENCE in text
    instruction = _outside(text) if fenced else text
    if '"' in instruction or (ticked and "`" in instruction) or (not ascii and _QUOTES.search(instruction)):
        instruction = _QUOTED.sub(" ", instruction)
    instruction = instruction.strip()
    for zone in _zones(instruction):
        found = _scan(zone, ascii or zone.isascii())
        if found is not None:
            return found
    if fenced or _TRACE in text:
        return TaskType.CODE
    brackets = "{" in text or ";" in text or "):" in text
    return TaskType.CODE if brackets and _CODE_LIKE.search(text) else None


@lru_cache(256)  # an application sends the same system message with each call
def _of_system(text: str) -> TaskType | None:
    """Return the task type of a system message with signs of one type; many list all abilities of an assistant."""
    types = {found[0] for found in map(_sign, _words(text, text.isascii())) if found and found[0] in _TYPES}
    return _of_text(text) if len(types) == 1 else None


def _outside(text: str) -> str:
    """Return the text before the first fence and after the last one."""
    first, last = text.find(_FENCE), text.rfind(_FENCE)
    after = text[last + 3 :] if last > first else ""
    return f"{text[:first]}\n{after}"


def _zones(text: str) -> tuple[str, ...]:
    """Return the parts that may hold the instruction, the likeliest first.

    A message with a line break or a colon near its beginning begins with the instruction; one that begins with a long
    paragraph ends with it.
    """
    if len(text) <= LINE + TAIL // 2:
        return (text,)
    head, tail = text[:LINE], text[-LINE:]
    tail = tail[tail.rfind("\n") + 1 :]
    if "\n" in head or ":" in head:
        return head, tail
    return tail, head


def _words(text: str, ascii: bool) -> list[str]:
    """Return the words in lower case. ASCII has a way of its own because it is ten times as fast."""
    if ascii:
        return text.encode("ascii").translate(_SPACED).decode("ascii").split()
    return _WORD.findall(text.lower())


def _sign(word: str) -> tuple[int, int] | None:
    """Return the sign of a lower-case word and its points."""
    bare = word
    if "." in word:
        bare = word.rstrip(".")
        if "." in bare and bare.rpartition(".")[2] in EXTENSIONS:
            return CODE, ENOUGH
    found = WORDS.get(bare) or STEMS.get(bare[:8]) or STEMS.get(bare[:7]) or STEMS.get(bare[:6])
    return found


def _remember(word: str) -> tuple[int, int]:
    found = _sign(word) or _NEUTRAL
    if len(word) <= LONGEST:
        if len(_signs) >= _REMEMBERED:
            _signs.clear()
        _signs[word] = found
    return found


def _scan(text: str, ascii: bool) -> TaskType | None:
    """Return the first type with ENOUGH points, None if there is none."""
    if not ascii and _UNSPACED.search(text) is not None:
        return _scan_unspaced(text)
    words = _words(text, ascii)
    points: list[int] | None = None
    made = -NEAR - 1
    for place, word in enumerate(words):
        found = _signs.get(word)
        if found is None:
            found = _remember(word)
        sign, weight = found
        if not weight:
            continue
        if points is None:
            points = [0, 0, 0, 0, 0, 0, 0, 0, 0]
        if sign == MAKE:
            made = place
        elif sign == PROSE:
            if place - made <= NEAR:
                return TaskType.CHAT
        elif sign == OTHER:
            return _of_translation(words)
        elif sign >= LIST:
            points[sign] = max(points[sign], weight)
        else:
            points[sign] += weight + (sign == CODE and place - made <= NEAR)
            if points[sign] >= ENOUGH:
                return _TYPES[sign]
    if points is None:
        return None
    if points[SUMMARISE] and points[SOURCE]:
        return TaskType.SUMMARISE
    if points[LIST] and points[LIST] + points[SOURCE] + points[EXTRACT] > ENOUGH:
        return TaskType.EXTRACT
    return None


def _of_translation(words: list[str]) -> TaskType:
    """Return CODE for a translation between programming languages, else CHAT."""
    code = sum(found[1] for found in map(_sign, words[:15]) if found and found[0] == CODE)
    return TaskType.CODE if code >= ENOUGH else TaskType.CHAT


def _scan_unspaced(text: str) -> TaskType | None:
    """Return the type of a text without spaces: most points win, then the earliest place.

    These languages have the verb at the end, so that the order of words decides less.
    """
    points = [0] * 9
    first = [len(text)] * 9
    for part, sign, weight in ANYWHERE:
        at = text.find(part)
        if at >= 0:
            points[sign] += weight
            first[sign] = min(first[sign], at)
    for found in map(_sign, _LATIN.findall(text.lower())):
        if found is not None:
            points[found[0]] += found[1]
    if points[OTHER] or (points[PROSE] and points[MAKE]):
        return TaskType.CHAT
    if points[MAKE] and points[CODE]:
        points[CODE] += ENOUGH
    best = max((SUMMARISE, CLASSIFY, EXTRACT, CODE), key=lambda sign: (points[sign], -first[sign]))
    return _TYPES[best] if points[best] >= ENOUGH else None
