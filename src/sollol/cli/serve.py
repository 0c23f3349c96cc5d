"""Implement `sollol serve`: read the options, settings and keys, and check them.

The module `serving` runs the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sollol.cli import fleet
from sollol.cli.console import JOURNAL, PLAIN, TIMED, log_messages, stdout, table
from sollol.cli.fleet import NodesOption
from sollol.errors import BadInput, ConfigError, NoNodeAvailable

if TYPE_CHECKING:
    from sollol.core.endpoint import Endpoint
    from sollol.gateway.auth.keys import Keyring
    from sollol.gateway.settings import GatewaySettings

LEVELS = ("debug", "info", "warning", "error")
FORMS = ("auto", PLAIN, TIMED, JOURNAL)
EPILOG = """\
[bold]Examples[/bold]

  sollol serve
  SOLLOL_NODES=gpu-box,10.0.0.7 sollol serve --port 11434
  sollol serve --config sollol.toml --check

[bold]Clients[/bold]

  Ollama      OLLAMA_HOST=http://127.0.0.1:11435
  OpenAI      base_url http://127.0.0.1:11435/v1, any api_key
  Anthropic   ANTHROPIC_BASE_URL=http://127.0.0.1:11435

[bold]Signals[/bold]

  HUP    read the configuration and the keys again
  TERM   take no new requests, end the running ones, exit

[bold]Exit codes[/bold]

  0    ended by a signal, or --check found nothing wrong
  1    no node is known
  2    a setting cannot be used, or --check found something
  75   the address is taken, or not there yet: it may work later
"""


def serve(
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            help="Port to listen on; 0 takes a free one.  [default: 11435]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings. Without it: SOLLOL_CONFIG, ./sollol.toml, ~/.config/sollol/sollol.toml.",
            show_default=False,
        ),
    ] = None,
    nodes: NodesOption = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Require no keys, on any address.")] = False,
    access_log: Annotated[
        str | None,
        typer.Option("--access-log", metavar="text|json", help="Print a line for each request.", show_default=False),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option("--log-level", metavar="LEVEL", help="The least level on stderr: debug, info, warning or error."),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            metavar="FORM",
            help="Lines on stderr: plain, timed, or journal (with severities). auto: journal under systemd.",
        ),
    ] = "auto",
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Record all events for `sollol replay`.", show_default=False),
    ] = None,
    registry: Annotated[
        bool,
        typer.Option("--registry", help="Send models from one node to the others, over a registry of this machine."),
    ] = False,
    sync_models: Annotated[
        bool,
        typer.Option("--sync-models", help="Keep the models of the nodes as the file's tables of models name them."),
    ] = False,
    controller: Annotated[
        bool, typer.Option("--controller", help="Load and unload models by demand, and repair those on a CPU.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the controller only plan: see /sollol/plan.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check the settings, keys and nodes.")] = False,
) -> None:
    """Serve the whole cluster at one address: Ollama's, OpenAI's and Anthropic's API."""
    from sollol.cli.serving import run
    from sollol.gateway.settings import check_keys

    if access_log not in (None, "text", "json"):
        raise BadInput(f"--access-log {access_log}; expected text or json")
    if dry_run and not controller:
        raise BadInput("--dry-run is of the controller; pass --controller, too")
    if log_level not in LEVELS:
        raise BadInput(f"--log-level {log_level}; expected {', '.join(LEVELS)}")
    if log_format not in FORMS:
        raise BadInput(f"--log-format {log_format}; expected {', '.join(FORMS)}")
    log_messages(log_level, log_format)
    read = Reading(config, nodes, host, port, insecure, access_log, journal, sync_models, registry, controller, dry_run)
    settings = read.settings()
    keyring = read.keyring(settings)
    if check:
        raise typer.Exit(_check(read, settings, len(keyring)))
    check_keys(settings, len(keyring))
    chosen = _nodes(settings)
    run(read, settings, keyring, chosen)


class Reading:
    """Read settings and keys, at the start and after each change."""

    def __init__(
        self,
        config: str | None,
        nodes: str | None,
        host: str | None,
        port: int | None,
        insecure: bool,
        access_log: str | None = None,
        journal: Path | None = None,
        sync_models: bool = False,
        registry: bool = False,
        controller: bool = False,
        dry_run: bool = False,
    ) -> None:
        from sollol.config.paths import find_file

        self.access_log = access_log
        self.journal = journal
        self.sync_models = sync_models
        self.registry = registry
        self.file = find_file(config)
        if self.file is not None:
            os.environ["SOLLOL_CONFIG"] = self.file  # discovery reads it, too; the process ends with the command
        named = fleet.named(nodes) if nodes is not None else None
        self._nodes = (
            named.endpoints if named else None
        )  # the command line takes precedence over the file, also after changes
        self._given = (host, port, insecure)
        self._controller = (controller, dry_run)

    def settings(self) -> GatewaySettings:
        """Read the settings.

        Raises:
            ConfigError: Settings cannot be used; the message lists all of them.
        """
        from sollol.config import load_settings
        from sollol.gateway.settings import gateway_settings

        try:
            read = load_settings(config=self.file, nodes=self._nodes)
            found = gateway_settings(read, self.file or "").listening(*self._given)
            return found.controlling(*self._controller)
        except ConfigError as first:
            problems = self._problems()
            if len(problems) < 2:
                raise
            head = f"{len(problems)} settings cannot be used:"
            raise ConfigError("\n".join([head, *(f"  {problem}" for problem in problems)])) from first

    def _problems(self) -> list[str]:
        from sollol.config import Settings, gateway_tables, problems_of
        from sollol.gateway.settings import problems_of as problems_of_gateway

        found = problems_of(config=self.file)
        tables = gateway_tables(self.file) if self.file else {}
        return found + problems_of_gateway(Settings(gateway=tables), self.file or "")

    def keyring(self, settings: GatewaySettings) -> Keyring:
        """Read the keys of the file and of the environment."""
        from sollol.gateway.auth.keys import Keyring, keys_of_environment

        fixed = keys_of_environment(os.environ.get("SOLLOL_API_KEYS", ""))
        return Keyring(fixed, settings.keys_path, required=settings.needs_keys)

    def version(self) -> int:
        """Return a number that changes with the file."""
        try:
            return os.stat(self.file).st_mtime_ns if self.file else 0
        except OSError:
            return -1


def _nodes(settings: GatewaySettings) -> tuple[Endpoint, ...]:
    """Return the nodes of --nodes, SOLLOL_NODES, the file or OLLAMA_HOST, or else of discovery."""
    return settings.nodes or fleet.choose(None).endpoints


def _check(read: Reading, settings: GatewaySettings, keys: int) -> int:
    import asyncio

    from msgspec.structs import replace

    from sollol.gateway.check import check

    try:
        nodes = _nodes(settings)
    except NoNodeAvailable:
        nodes = ()  # reported as one of the findings
    made = table("what", "", "")
    if read.registry:
        settings = replace(settings, registry=replace(settings.registry, enabled=True))
    findings = asyncio.run(check(settings, nodes, keys, read.file))
    for finding in findings:
        made.add_row(
            finding.subject, "ok" if finding.ok else "wrong", finding.detail, style=None if finding.ok else "red"
        )
    stdout().print(made)
    return 0 if all(finding.ok for finding in findings) else 2
