"""Describe problems of settings in sentences with the value, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def each_problem(content: dict[str, Any], convert: Callable[[], Any], explain: Callable[[str, str], str]) -> list[str]:
    """Return all problems of `content` and remove them from it.

    `convert` raises msgspec's ValidationError for the first one. `explain` gets its message, and the free name that
    the message does not have, such as that of a model; "" for none.
    """
    import msgspec

    found: list[str] = []
    while True:
        try:
            convert()
        except msgspec.ValidationError as problem:
            text = str(problem)
            table, name = _find(content, text, convert)
            found.append(explain(text, name if table is not content and "[...]" in text else ""))
            del table[name]
        else:
            return found


def _parts(problem: str) -> tuple[str, str, bool]:
    """Return the expectation in msgspec's message, its field, and whether it concerns a key of that field."""
    what, _, where = problem.partition(" - at `")
    of_key = where.startswith("key` in `")
    return what, where.removeprefix("key` in `").rstrip("`").lstrip("$."), of_key


def _find(content: dict[str, Any], problem: str, convert: Callable[[], Any]) -> tuple[dict[str, Any], str]:
    """Return the table that has the setting of msgspec's message, or the file itself, and the setting's name."""
    import msgspec

    what, where, of_key = _parts(problem)
    steps = re.findall(r"\w[\w-]*|\[\.\.\.\]", where)
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        steps.append(unknown[1])
    table: Any = content
    if len(steps) > 1 - of_key and isinstance(content.get(steps[0]), dict):
        table, steps = content[steps[0]], steps[1:]
    if steps and steps[0] in table and not of_key:
        return table, steps[0]
    every = dict(table)  # a table of free names: the message does not have the name
    for name, value in every.items():
        table.clear()
        table[name] = value
        try:
            convert()
        except msgspec.ValidationError as other:
            if str(other) == problem:
                table.update(every)
                return table, name
    table.update(every)
    return table, next(iter(every))


def explained(path: str, content: Mapping[str, Any], problem: str, known: Mapping[str, str], free_name: str) -> str:
    """Return msgspec's message as a sentence for the user, with the value.

    Its own is 'Expected `int`, got `str` - at `$.discovery.ports[0]`'. `known`: the settings of each table.
    `free_name`: what stands for [...] in the message.
    """
    what, field, of_key = _parts(problem)
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        name = ".".join(filter(None, (_named(field, free_name), unknown[1])))
        return f"configuration file {path}: {name} is not a setting; expected {known[field]}"
    value: Any = content
    for step in re.findall(r"\w[\w-]*|\[\.\.\.\]", field):
        try:
            value = value[int(step) if isinstance(value, list) else free_name if step == "[...]" else step]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    if of_key:
        value = ""  # the only text that is no name: its length is below 1
    field = _named(field, free_name)
    expected = re.sub(r", got .*", "", what).removeprefix("Expected ").replace("`", "").replace("object", "table")
    if field.endswith(".key"):
        value = "***"  # a secret
    place = f"a name in {field}" if of_key else field
    return sentence(f"configuration file {path}: {place}", value, f"expected {expected}")


def _named(field: str, free_name: str) -> str:
    return field.replace("[...]", f'."{free_name}"' if free_name else "")


def sentence(place: str, raw: Any, problem: str) -> str:
    """Return the message of a value that cannot be used, without its secrets."""
    shown = re.sub(r"(['\"]api_key['\"]: )(['\"]).*?\2", r"\1'***'", repr(raw))
    shown = re.sub(r"//[^\s'\"]*@", "//***@", shown)  # keep passwords out of logs, also those with / or @
    return f"{place}: {shown} cannot be used; {problem}"


def without_secrets(url: str) -> str:
    """Return the URL of a Redis without its user, password and parameters; "***" where these have no clear place."""
    if "@" not in url and "?" not in url:
        return url
    from urllib.parse import urlsplit

    scheme, found, rest = url.partition("://")
    try:
        parts = urlsplit(f"redis://{rest}")
    except ValueError:
        return "***"
    if not found or "@" in parts.path + parts.query + parts.fragment:
        return "***"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
