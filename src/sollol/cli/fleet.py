"""Which nodes a command uses: `--nodes`, else what the environment or the file names, else what discovery finds.

Naming nodes means these and no others: a person who lists two of his five machines has a reason. `OLLAMA_HOST` counts
as a list of one, except where it only says what Ollama's default is anyway: every machine that serves Ollama has
`OLLAMA_HOST=0.0.0.0`, and that is no wish to leave the others out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

import typer

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput, NoNodeAvailable

NodesOption = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        metavar="HOST:PORT,…",
        help="The nodes to use, and no others. Without it: SOLLOL_NODES, the configuration file, OLLAMA_HOST, "
        "and else whatever discovery finds.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout; all else goes to stderr.")
]

_DEFAULT = Endpoint("127.0.0.1")
_DISCOVERY_TIMEOUT_S = 2.0
HOW_TO_ADD = (
    "Start Ollama (`ollama serve`; OLLAMA_HOST=0.0.0.0 makes it reachable from other machines), or name a node: "
    "--nodes 10.0.0.5:11434, or SOLLOL_NODES in the environment."
)


class Chosen(NamedTuple):
    endpoints: tuple[Endpoint, ...]
    how: str  # where they were named, for a message


def named(option: str | None) -> Chosen | None:
    """The nodes that somebody named, or None."""
    from sollol.config import load_settings

    if option is not None:
        words = [word for word in re.split(r"[\s,;]+", option) if word]
        if not words:
            raise BadInput("--nodes is empty; expected addresses such as 10.0.0.5:11434,10.0.0.6")
        return Chosen(tuple(dict.fromkeys(parse_endpoint(word) for word in words)), "--nodes")
    settings = load_settings()
    if settings.nodes:
        return Chosen(settings.nodes, "SOLLOL_NODES or the configuration file")
    if settings.ollama_host not in (None, _DEFAULT, Endpoint("::1")):
        assert settings.ollama_host is not None
        return Chosen((settings.ollama_host,), "OLLAMA_HOST")
    return None


def choose(option: str | None) -> Chosen:
    """The nodes to use. Raises NoNodeAvailable with what was tried and how to add one."""
    if found := named(option):
        return found
    endpoints = tuple(node.endpoint for node in search_networks(_DISCOVERY_TIMEOUT_S))
    if not endpoints:
        raise NoNodeAvailable(
            "no Ollama node was found. Tried: --nodes (not given), SOLLOL_NODES (not set), OLLAMA_HOST, localhost, "
            f"and the private networks of this machine on port 11434.\n{HOW_TO_ADD}"
        )
    return Chosen(endpoints, "discovery")


def search_networks(timeout: float, **asked: Any) -> list[Any]:
    """Run discovery to its end: a list of `sollol.discovery.Found`."""
    from sollol.discovery import discover
    from sollol.discovery.search import run_apart

    return run_apart(lambda: discover(timeout, **asked))


def open_pool(endpoints: tuple[Endpoint, ...]) -> Any:
    """A synchronous pool over these nodes. A function of its own, so that a test can put another in its place."""
    from sollol.pool.sync import OllamaPool

    return OllamaPool(list(endpoints))
