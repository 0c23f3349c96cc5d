"""Describe problems of settings in sentences with the value, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def each_problem(content: dict[str, Any], convert: Callable[[], Any], explain: Callable[[str], str]) -> list[str]:
    """Return all problems of `content` and remove them from it.

    `convert` raises msgspec's ValidationError for the first one.
    """
    import msgspec

    found: list[str] = []
    while True:
        try:
            convert()
        except msgspec.ValidationError as problem:
            text = str(problem)
            found.append(explain(text))
            _remove(content, text, convert)
        else:
            return found


def _remove(content: dict[str, Any], problem: str, convert: Callable[[], Any]) -> None:
    """Remove the setting of msgspec's message: a key of a table, or of the file itself."""
    import msgspec

    what, _, where = problem.partition(" - at `$")
    steps = re.findall(r"\w[\w-]*|\[\.\.\.\]", where)
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        steps.append(unknown[1])
    table: Any = content
    if len(steps) > 1 and isinstance(content.get(steps[0]), dict):
        table, steps = content[steps[0]], steps[1:]
    if steps[0] in table:
        del table[steps[0]]
        return
    for name in list(table):  # a table of free names: the message does not have the name
        value = table.pop(name)
        try:
            convert()
        except msgspec.ValidationError as other:
            if str(other) != problem:
                return
        else:
            return
        table[name] = value
    table.clear()


def explained(path: str, content: Mapping[str, Any], problem: str, known: Mapping[str, str]) -> str:
    """Return msgspec's message as a sentence for the user, with the value.

    Its own is 'Expected `int`, got `str` - at `$.discovery.ports[0]`'. `known`: the settings of each table.
    """
    what, _, where = problem.partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        name = ".".join(filter(None, (field, unknown[1])))
        return f"configuration file {path}: {name} is not a setting; expected {known[field]}"
    value: Any = content
    for step in re.findall(r"\w[\w-]*|\[\.\.\.\]", field):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    field = field.replace("[...]", "")
    expected = re.sub(r", got .*", "", what).removeprefix("Expected ").replace("`", "").replace("object", "table")
    if field.endswith(".key"):
        value = "***"  # a secret
    return sentence(f"configuration file {path}: {field}", value, f"expected {expected}")


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
