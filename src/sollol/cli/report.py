"""Implement `sollol report`, which writes one redacted file for a bug report."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sollol.cli import doctor
from sollol.cli.attach import KeyOption, UrlOption
from sollol.cli.console import note, say
from sollol.cli.fleet import NodesOption
from sollol.config import VARIABLES, find_file
from sollol.errors import BadInput
from sollol.version import __version__

EPILOG = """\
[bold]Examples[/bold]

  sollol report
  sollol report --out - | less

[bold]What is in it[/bold]

  Versions, findings, nodes, the last requests with their times and errors,
  and the names of the settings that are set. Addresses and names of
  applications are replaced by node-1, app-1 and so on. Prompts, answers,
  keys and values of settings are never in it. Read it before you send it.

[bold]Exit codes[/bold]

  0    written
  1    no node is known, or the file cannot be written
  2    the command cannot be used as given
"""
PACKAGES = ("httptools", "msgspec", "uvloop", "typer", "rich", "numpy", "redis")
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
        "findings": [finding.as_dict() for finding in found],
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
    """Return the content with addresses and names of applications replaced by numbered names."""
    names: dict[str, str] = {}
    for number, node in enumerate(content["overview"]["nodes"], 1):
        names[node["url"]] = names[node["host"]] = f"node-{number}"
        names[node["host"].rpartition(":")[0]] = f"node-{number}"
    rows = [row for field in ("running", "waiting", "recent") for row in content["overview"].get(field, ())]
    apps = sorted({row.get("app", "") for row in rows} | {content["overview"].get("app_name", "")} - {""})
    names |= {app: f"app-{number}" for number, app in enumerate([app for app in apps if app], 1)}
    content["overview"].pop("keys", None)
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return ADDRESS.sub("ADDRESS", pattern.sub(lambda match: names[match[0]], value))
        if isinstance(value, dict):
            return {clean(name): clean(held) for name, held in value.items()}
        return [clean(held) for held in value] if isinstance(value, list | tuple) else value

    cleaned: dict[str, Any] = clean(content)
    return cleaned


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
