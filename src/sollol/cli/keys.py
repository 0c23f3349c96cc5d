"""Implement `sollol keys`, which adds, lists and revokes the keys of a gateway.

Only the key itself is printed on stdout, once; messages go to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sollol.cli.console import note, plural, print_json, printable, say, stdout, table
from sollol.cli.fleet import JsonOption

if TYPE_CHECKING:
    from sollol.gateway.auth.keys import Key

EPILOG = """\
[bold]Examples[/bold]

  sollol keys add webui --app "Open WebUI"
  sollol keys add ci --model llama3.2 --requests-per-minute 60 --priority-max 3
  sollol keys add me --admin
  sollol keys list
  sollol keys revoke ci

[bold]What a key is for[/bold]

  A gateway that listens on more than this machine requires one. Pulling and
  deleting models needs one with --admin. A running gateway applies a change
  within two seconds.
"""

app = typer.Typer(help="Keys of the gateway: add, list, revoke.", epilog=EPILOG, no_args_is_help=True)

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="The configuration, for its keys_file.", show_default=False),
]


def _path(config: str | None) -> Path:
    from sollol.config import load_settings
    from sollol.config.paths import find_file
    from sollol.gateway.settings import gateway_settings

    file = find_file(config)
    return gateway_settings(load_settings(config=file), file or "").keys_path


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The key's name: letters, digits, '.', '_', '@' and '-'.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="PATTERN", help="A model it may use, with * for anything; repeatable. Default: all."
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, metavar="N", help="Default: no bound.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Read and written. Default: no bound.")
    ] = None,
    priority_max: Annotated[
        int, typer.Option(min=0, max=10, metavar="N", help="The highest priority it may set.")
    ] = 10,
    app_name: Annotated[
        str, typer.Option("--app", metavar="NAME", help="Its name in fairness and displays. Default: NAME.")
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="It may change models, and see the requests of all applications.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once."""
    from sollol.gateway.auth.keys import Key, add_key

    path = _path(config)
    key = Key(
        name=name,
        hash="",
        app=app_name,
        models=tuple(model or ()),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        priority_max=priority_max,
        admin=admin,
    )
    token = add_key(path, key)
    if as_json:
        print_json({"name": name, "key": token})
    else:
        say(token)
    note(f"This is the only time that the key of {name} is shown; {path} keeps its hash.")


@app.command("list")
def list_keys(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the keys and what they allow."""
    from sollol.gateway.auth.keys import read_keys

    path = _path(config)
    found = read_keys(path)
    if as_json:
        print_json({"keys": [_as_json(key) for key in found], "file": str(path)})
        return
    if found:
        made = table("name", "key", "app", "models", "requests/min", "tokens/min", "priority", "admin", "made")
        for key in found:
            made.add_row(
                key.name,
                f"{key.start}…",
                printable(key.app),
                printable(", ".join(key.models)) or "all",
                _bound(key.requests_per_minute),
                _bound(key.tokens_per_minute),
                f"≤ {key.priority_max}",
                "yes" if key.admin else "",
                key.created[:10],
            )
        stdout().print(made)
    note(f"{plural(len(found), 'key')} in {path}.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good."""
    from sollol.gateway.auth.keys import revoke_key

    path = _path(config)
    gone = revoke_key(path, name)
    if as_json:
        print_json({"revoked": gone.name})
    note(f"The key of {gone.name} is revoked.")


def _bound(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _as_json(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "start": key.start,
        "app": key.app,
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "priority_max": key.priority_max,
        "admin": key.admin,
        "created": key.created,
    }
