"""Implement `sollol agent`, the process beside a node."""

from __future__ import annotations

import os
import secrets
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from sollol.cli.console import note, say
from sollol.errors import AddressUnavailable, BadInput

if TYPE_CHECKING:
    from sollol.core.endpoint import Endpoint

EPILOG = """\
[bold]Examples[/bold]

  sollol agent --host 0.0.0.0
  sollol agent --host 0.0.0.0 --restart "systemctl restart ollama"
  sollol agent --host 0.0.0.0 --yield-to-owner
  sollol agent --ollama 127.0.0.1:11434 --models /srv/ollama/models

[bold]The key[/bold]

  SOLLOL_AGENT_KEY, else the file ~/.config/sollol/agent.key, which is made at
  the first start. All agents of a cluster have the same key, and the gateway
  has it in the table of agents, or in SOLLOL_AGENTS_KEY.

[bold]Exit codes[/bold]

  0    ended by a signal
  2    a setting cannot be used
  75   the address is taken
"""
LEAST: int = 16  # characters of a key


def agent(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on.")] = 11437,
    ollama: Annotated[
        str | None,
        typer.Option("--ollama", metavar="URL", help="The Ollama beside it. Default: OLLAMA_HOST, or 127.0.0.1:11434."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            metavar="FOLDER",
            help="The folder of its models. Default: OLLAMA_MODELS, or where Ollama has it.",
        ),
    ] = None,
    restart: Annotated[
        str | None,
        typer.Option("--restart", metavar="COMMAND", help="A command that restarts Ollama; it is run without a shell."),
    ] = None,
    yield_to_owner: Annotated[
        bool,
        typer.Option("--yield-to-owner", help="Take no new work while a full-screen program or a call runs here."),
    ] = False,
) -> None:
    """Serve facts, blobs and the Ollama of this machine to the cluster, with a key."""
    try:
        import psutil  # noqa: F401 - of the extra
    except ImportError:
        raise BadInput("`sollol agent` needs the extra agent: pip install '.[agent]' in the checkout") from None
    key = read_key()
    beside = _ollama(ollama)
    try:
        command = tuple(shlex.split(restart or ""))
    except ValueError as error:
        raise BadInput(f"--restart {restart!r} cannot be used: {error}") from None
    import asyncio

    from sollol.transport.event_loop import new_loop

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(host, port, beside, key, models, command, yield_to_owner))


def read_key() -> str:
    """Return the key of the environment or of the file, which is made if it is not there.

    Raises:
        BadInput: It cannot be used.
    """
    from sollol.config.paths import config_home
    from sollol.files import PRIVATE, read_bounded, replace_file

    given = os.environ.get("SOLLOL_AGENT_KEY", "").strip()
    file = config_home() / "agent.key"
    try:
        if not given and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, f"{secrets.token_urlsafe(32)}\n".encode(), PRIVATE)
            note(f"A new key is in {file}; the gateway needs it: key in [agents], or SOLLOL_AGENTS_KEY.")
        key = given or read_bounded(file, 4096).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the key in {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(key) < LEAST or not all("!" <= letter <= "~" for letter in key):
        where = "SOLLOL_AGENT_KEY" if given else str(file)
        raise BadInput(f"the key in {where} cannot be used; expected at least {LEAST} visible ASCII characters")
    return key


def _ollama(given: str | None) -> Endpoint:
    from sollol.config import load_settings
    from sollol.core.endpoint import Endpoint, parse_endpoint

    if given is not None:
        return parse_endpoint(given)
    return load_settings().ollama_host or Endpoint("127.0.0.1")


async def _serve(
    host: str, port: int, ollama: Endpoint, key: str, models: str | None, restart: tuple[str, ...], yields: bool
) -> None:
    import asyncio

    from sollol.agent.app import Agent
    from sollol.agent.drivers import all_drivers
    from sollol.agent.machine import models_folder
    from sollol.agent.owner import NO_LOOKS, owner_looks
    from sollol.duties import log_fault
    from sollol.signals import on_signal
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    folder = models_folder(models)
    made = Agent(
        key, ollama, folder, all_drivers(), transport, restart, log_fault, owner_looks() if yields else NO_LOOKS
    )
    try:
        bound = await made.start(host, port)
    except (OSError, UnicodeError) as error:
        raise AddressUnavailable(
            f"cannot listen on {host}:{port}: {error}; choose another --host or --port", True
        ) from None
    stop = asyncio.Event()
    on_signal(asyncio.get_running_loop(), ("SIGINT", "SIGTERM", "SIGBREAK"), stop.set)
    say(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
    note(f"Ollama: {ollama.url}. Models: {folder or 'folder unknown; --models names it'}.")
    note(f"Restart: {shlex.join(restart) if restart else 'not allowed; --restart names a command'}. Ctrl-C ends it.")
    await stop.wait()
    await made.aclose()
    await transport.aclose()
