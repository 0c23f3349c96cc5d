"""Define the `sollol` command as one typer application, with a file for each command.

Commands import their parts when they run, so `sollol --help` imports typer and rich only. Every error that this
library raises on purpose ends as one message on stderr and an exit code; a traceback means a defect of SOLLOL.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sollol.cli import (
    agent,
    bench,
    chat,
    console,
    dashboard,
    demo,
    discover,
    doctor,
    embed,
    explain,
    init,
    keys,
    models,
    nodes,
    ping,
    ps,
    replay,
    report,
    search,
    serve,
    sim,
    top,
    up,
)
from sollol.config.paths import find_file
from sollol.errors import SollolError

EPILOG = """\
[bold]A first run[/bold]

  sollol demo        see it work, without Ollama if need be
  sollol discover    list the nodes that are found
  sollol embed ~/notes --model nomic-embed-text --out notes.npz
  sollol search notes.npz "what did we decide about backups?"
  sollol chat "Name a colour." --model llama3.2
  sollol top         nodes, queue and requests, live
  sollol models      list, pull and pin models on all nodes
  sollol serve       one address for all of them
  sollol doctor      what is wrong, and the exact fix

[bold]Which nodes[/bold]

  --nodes, else SOLLOL_NODES, else the file that SOLLOL_CONFIG names,
  else OLLAMA_HOST, else whatever discovery finds.

[bold]Output[/bold]

  Results go to stdout, progress and problems to stderr.
  --json makes the result one JSON value.

[bold]Exit codes[/bold]

  0    done
  1    it failed; the message gives the reason
  2    the command, a setting or a file cannot be used as given
  130  interrupted with Ctrl-C
"""


@contextlib.contextmanager
def _file_beside() -> Iterator[None]:
    """Set SOLLOL_CONFIG to ./sollol.toml or the user's own file, unless it names another."""
    before = os.environ.pop("SOLLOL_CONFIG", None)
    found = before or find_file()
    if found is not None:
        os.environ["SOLLOL_CONFIG"] = found
    try:
        yield
    finally:
        os.environ.pop("SOLLOL_CONFIG", None)
        if before is not None:
            os.environ["SOLLOL_CONFIG"] = before


class _Group(TyperGroup):
    """Turn the library's errors into a message and an exit code, for every command."""

    def main(self, *given: Any, **named: Any) -> Any:
        try:
            return super().main(*given, **named)
        except OSError as error:  # even --help may be written to a full disk
            console.tell_failure(error)
            sys.exit(console.EXIT_FAILED)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _file_beside():
                found = super().invoke(ctx)
                sys.stdout.flush()  # a failed write is an error, too
                return found
        except (SollolError, KeyboardInterrupt) as error:
            console.tell_error(error)
            raise typer.Exit(console.exit_code(error)) from error


app = typer.Typer(
    cls=_Group,
    name="sollol",
    help="Use all your Ollama servers as one pool: find nodes, chat, embed documents on all of them, search.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sollol.version import __version__

        console.say(f"sollol {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None: ...


app.command(epilog=discover.EPILOG)(discover.discover)
app.command(epilog=nodes.EPILOG)(nodes.nodes)
app.command(epilog=ps.EPILOG)(ps.ps)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=embed.EPILOG)(embed.embed)
app.command(epilog=search.EPILOG)(search.search)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=top.EPILOG)(top.top)
app.command(epilog=explain.EPILOG)(explain.explain)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=ping.EPILOG)(ping.ping)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=replay.EPILOG)(replay.replay)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(hidden=True)(up.up)
app.command(epilog=init.EPILOG)(init.init)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.command(epilog=agent.EPILOG)(agent.agent)
app.command(epilog=dashboard.EPILOG)(dashboard.dashboard)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=sim.EPILOG)(sim.sim)
