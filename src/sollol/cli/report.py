"""Implement `sollol report`, which writes one redacted file for a bug report."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from sollol.cli import doctor
from sollol.cli.attach import KeyOption, UrlOption
from sollol.cli.console import note, say
from sollol.cli.fleet import NodesOption
from sollol.config import VARIABLES
from sollol.config.paths import find_file
from sollol.errors import BadInput
from sollol.version import __version__

EPILOG = """\
[bold]Examples[/bold]

  sollol report
  sollol report --out - | less

[bold]What is in it[/bold]

  Versions, findings, nodes, the last requests with their times and errors,
  and the names of the settings that are set. Addresses and names of
  applications and machines are replaced by node-1, app-1 and so on. Prompts, answers,
  keys and values of settings are never in it. Read it before you send it.

[bold]Exit codes[/bold]

  0    written
  1    no node is known, or the file cannot be written
  2    the command cannot be used as given
"""
PACKAGES = ("httptools", "msgspec", "uvloop", "typer", "rich", "numpy", "redis")
APPS = frozenset({"app", "app_name", "apps"})  # fields that name applications
KEYED_BY_APP = frozenset({"apps", "work"})
TEXTS = frozenset({"error", "why", "reason", "summary", "cost", "fix", "text", "problem", "notices"})
ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?")


def report(
    url: UrlOption = None,
    api_key: KeyOption = None,
    nodes: NodesOption = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write; - for stdout.")] = (
        "sollol-report.json"
    ),
) -> None:
    """Write one redacted file for a bug report."""
    found, overview = doctor.examine(url, api_key, nodes)
    content = {
        "sollol": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "packages": _versions(),
        "settings": _settings(),
        "findings": doctor.rows_of(found),
        "overview": overview,
    }
    text = json.dumps(redacted(content), indent=1, ensure_ascii=False)
    if out == "-":
        say(text)
        return
    path = Path(out)
    if path.is_dir():
        raise BadInput(f"--out {out}: is a directory; expected the name of a file")
    path.write_text(f"{text}\n", encoding="utf-8")
    note(f"Written to {path} ({len(text) / 1000:,.0f} kB). Read it before you send it.")


def redacted(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with addresses and names of applications and machines replaced by numbered names.

    In a field of one word only whole addresses and, where applications are named, their names are replaced: an
    application may be called "up" or "host".
    """
    overview = content["overview"]
    overview.pop("keys", None)
    nodes: dict[str, str] = {}
    others: dict[str, str] = {}  # names that are common words in other fields
    for number, node in enumerate(overview["nodes"], 1):
        nodes[node["url"]] = nodes[node["host"]] = others[node["host"].rpartition(":")[0]] = f"node-{number}"
    apps = {app: f"app-{number}" for number, app in enumerate(sorted(_apps(content) - {""}), 1)}
    shared = overview.get("applications")
    if shared:
        machines = {host: f"machine-{number}" for number, host in enumerate(_hosts(shared["processes"]), 1)}
        rows = [row | {"host": machines[row["host"]], "id": str(number)}
                for number, row in enumerate(shared["processes"], 1)]  # fmt: skip
        overview["applications"] = shared | {"redis": "ADDRESS", "processes": rows}
        others |= machines | {host: "ADDRESS" for host in [urlsplit(shared["redis"]).hostname] if host}
    whole, everywhere = _replacing(nodes), _replacing({**others, **apps, **nodes})

    def clean(value: Any, field: str) -> Any:
        if isinstance(value, str):
            is_text = field in TEXTS or field in APPS or any(map(str.isspace, value))
            return apps.get(value, everywhere(value)) if field in APPS else (everywhere if is_text else whole)(value)
        if isinstance(value, dict):
            named = apps if field in KEYED_BY_APP else {}
            return {named.get(name) or whole(name): clean(held, name) for name, held in value.items()}
        return [clean(held, field) for held in value] if isinstance(value, list | tuple) else value

    cleaned: dict[str, Any] = clean(content, "")
    return cleaned


def _replacing(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces whole names, and addresses of machines, in a text."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)" if longest_first else r"(?!)")
    return lambda text: ADDRESS.sub("ADDRESS", pattern.sub(lambda match: names[match[0]], text))


def _apps(value: Any, field: str = "") -> set[str]:
    """Return the names of applications in a report."""
    if isinstance(value, dict):
        keys = set(value) if field in KEYED_BY_APP else set()
        return keys.union(*(_apps(held, name) for name, held in value.items()))
    if isinstance(value, list | tuple):
        return set().union(*(_apps(held, field) for held in value))
    return set(value.split(", ") if field == "apps" else [value]) if field in APPS and isinstance(value, str) else set()


def _hosts(processes: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({row["host"] for row in processes})


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _settings() -> dict[str, Any]:
    """Return the names of the variables and of the file's entries that are set, without their values."""
    import os
    import tomllib

    file, names = find_file(), []
    if file is not None:
        try:
            tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            names = ["unreadable"]
        else:
            for name, value in tables.items():
                names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return {"environment": sorted(name for name in VARIABLES if os.environ.get(name)), "file": names}
