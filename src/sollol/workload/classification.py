"""What is a request about, and how demanding is it? Told from cheap signs, before any model has read it.

The scheduler predicts the length of an answer by the type of its task, so a guess is worth something and an error costs
little: the lengths of (application, type, model) are learned anyway. What it must not cost is time, since it runs for
every call. So only the ends of the last user message and of the system message are looked at, whatever their length,
and words are looked up, not searched for (`task_words`).

What is asked stands at the beginning of a message, or at its end, after the material. The material itself speaks too:
of code, of classes, of summaries. Therefore the first signs that reach two points decide, quotations and fenced code
are left out, and a fence alone counts only where nothing was asked in words. "Write a function that summarises" is
about code because the function comes first.
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
TAIL: Final = 300  # characters looked at, at both ends of a long message
LINE: Final = 200  # characters in which what is asked may stand
ENOUGH: Final = 2  # points that decide
NEAR: Final = 5  # words between "write" and what is written
MESSAGES: Final = 40  # of a conversation whose sizes are counted

_WORD: Final = re.compile(r"[\w.+#]+")
# Small letters for all, and a space for what is not part of a word.
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
LONGEST: Final = 20  # letters of a word that is remembered
_SILENT: Final = (0, 0)  # the sign of a word that speaks for nothing, as most do
_signs: Final[dict[str, tuple[int, int]]] = {}  # words that came before, and what they speak for


def detect_task_type(request: Any) -> TaskType:
    """The type of a request: a text, a list of messages, or a payload as of `/api/chat`, `/api/generate`, `/api/embed`.

    CHAT where nothing speaks for another. Raises BadInput for something else.
    """
    payload = _payload(request)
    messages = payload.get("messages")
    if payload.get("input") is not None and not messages:
        return TaskType.EMBED
    return type_of(
        messages, payload.get("prompt"), payload.get("system"), payload.get("format"), bool(payload.get("suffix"))
    )


def type_of(messages: Any, prompt: Any, system: Any, schema: Any, fills: bool) -> TaskType:
    """The same of the fields that tell it. `schema`: how the answer is to be given; `fills`: something follows it."""
    if schema and not isinstance(schema, str):
        return _of_schema(schema)
    text, said = _texts(messages, prompt, system)
    found = _of_text(text) if text else None
    if found is not None:
        return found
    if fills:
        return TaskType.CODE
    if schema == "json":
        return TaskType.EXTRACT
    return (_of_system(_ends(said)) if said else None) or CHAT


def estimate_complexity(request: Any) -> int:
    """How demanding a request is, from 1 (a greeting) to 10, by the same signs and its size.

    Points for: the size of the conversation (one for each doubling from 400 characters), its turns, tools, the type of
    task, thinking, and words that ask for several steps.
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
    """What the user asks last, and the system message."""
    if not messages:
        return prompt if isinstance(prompt, str) else "", system if isinstance(system, str) else ""
    if not isinstance(messages, list) and (isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence)):
        raise BadInput(f"messages is {type(messages).__name__}; expected a list of messages")
    said: list[Any] = messages if isinstance(messages, list) else list(messages)
    asked = ""
    last = said[-1]
    if _field(last, "role") == "user":  # as nearly always
        asked = _content(last)
    else:
        for message in reversed(messages[-MESSAGES:]):
            if _field(message, "role") == "user":
                asked = _content(message)
                break
    first = said[0]
    return asked, _content(first) if _field(first, "role") == "system" else ""


def _field(message: Any, name: str) -> Any:
    if isinstance(message, dict):
        return message.get(name)
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def _content(message: Any) -> str:
    content = _field(message, "content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):  # parts, as OpenAI has them
        return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    return ""


def _of_schema(schema: Any) -> TaskType:
    """One field with a few possible values is a label; anything else takes something out of a text."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if isinstance(properties, Mapping) and len(properties) == 1:
        (only,) = properties.values()
        if isinstance(only, Mapping) and ("enum" in only or only.get("type") == "boolean"):
            return TaskType.CLASSIFY
    return TaskType.EXTRACT


def _ends(text: str) -> str:
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def _of_text(text: str) -> TaskType | None:
    """What is asked in a message; CHAT where that is sure, None where nothing was found."""
    text = _ends(text)
    ascii = text.isascii()
    ticked = "`" in text
    fenced = ticked and _FENCE in text
    asked = _outside(text) if fenced else text
    if '"' in asked or (ticked and "`" in asked) or (not ascii and _QUOTES.search(asked)):
        asked = _QUOTED.sub(" ", asked)
    asked = asked.strip()
    for zone in _zones(asked):
        found = _scan(zone, ascii or zone.isascii())
        if found is not None:
            return found
    if fenced or _TRACE in text:
        return TaskType.CODE
    brackets = "{" in text or ";" in text or "):" in text
    return TaskType.CODE if brackets and _CODE_LIKE.search(text) else None


@lru_cache(256)  # an application says the same to all its calls
def _of_system(text: str) -> TaskType | None:
    """A system message decides only where it speaks of one thing: many list all that an assistant can."""
    spoken = {found[0] for found in map(_sign, _words(text, text.isascii())) if found and found[0] in _TYPES}
    return _of_text(text) if len(spoken) == 1 else None


def _outside(text: str) -> str:
    """Before the first fence and after the last one."""
    first, last = text.find(_FENCE), text.rfind(_FENCE)
    after = text[last + 3 :] if last > first else ""
    return f"{text[:first]}\n{after}"


def _zones(text: str) -> tuple[str, ...]:
    """Where to look, in order. A message that begins with a line or a colon begins with what is asked; one that
    begins with a long paragraph ends with it."""
    if len(text) <= LINE + TAIL // 2:
        return (text,)
    head, tail = text[:LINE], text[-LINE:]
    tail = tail[tail.rfind("\n") + 1 :]
    if "\n" in head or ":" in head:
        return head, tail
    return tail, head


def _words(text: str, ascii: bool) -> list[str]:
    """In small letters. The first way is ten times as quick."""
    if ascii:
        return text.encode("ascii").translate(_SPACED).decode("ascii").split()
    return _WORD.findall(text.lower())


def _sign(word: str) -> tuple[int, int] | None:
    """What a word (in small letters) speaks for, and its points."""
    bare = word
    if "." in word:
        bare = word.rstrip(".")
        if "." in bare and bare.rpartition(".")[2] in EXTENSIONS:
            return CODE, ENOUGH
    found = WORDS.get(bare) or STEMS.get(bare[:8]) or STEMS.get(bare[:7]) or STEMS.get(bare[:6])
    return found


def _remember(word: str) -> tuple[int, int]:
    found = _sign(word) or _SILENT
    if len(word) <= LONGEST:
        if len(_signs) >= _REMEMBERED:
            _signs.clear()
        _signs[word] = found
    return found


def _scan(text: str, ascii: bool) -> TaskType | None:
    """The type that first has ENOUGH points; None if none has."""
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
    """From one programming language into another, or of human words."""
    code = sum(found[1] for found in map(_sign, words[:15]) if found and found[0] == CODE)
    return TaskType.CODE if code >= ENOUGH else TaskType.CHAT


def _scan_unspaced(text: str) -> TaskType | None:
    """Without spaces, and with the verb at the end: the most points, and then the first to come."""
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
