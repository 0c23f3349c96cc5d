"""Choose the nodes of a command: `--nodes`, else the environment or the file, else discovery.

Named nodes are used alone. `OLLAMA_HOST` counts as a list of one node, unless it equals Ollama's default address:
machines that serve Ollama have `OLLAMA_HOST=0.0.0.0`, which does not exclude other nodes.
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
        "and else the nodes that discovery finds.",
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
    """Hold the nodes to use, and where they were named."""

    endpoints: tuple[Endpoint, ...]
    how: str  # the place for a message, such as "--nodes"


def named(option: str | None) -> Chosen | None:
    """Return the nodes of the option, the settings or OLLAMA_HOST, or None."""
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
    """Return the nodes to use.

    Raises:
        NoNodeAvailable: None was named or found; the message lists the places tried and how to add a node.
    """
    if found := named(option):
        return found
    endpoints = tuple(node.endpoint for node in search_networks(_DISCOVERY_TIMEOUT_S))
    if not endpoints:
        raise NoNodeAvailable(
            "no Ollama node was found. Tried: --nodes (not given), SOLLOL_NODES (not set), OLLAMA_HOST, localhost, "
            f"and the private networks of this machine on port 11434.\n{HOW_TO_ADD}"
        )
    return Chosen(endpoints, "discovery")


def search_networks(timeout: float, **options: Any) -> list[Any]:
    """Run discovery to its end and return a list of `sollol.discovery.Found`."""
    from sollol.discovery import discover
    from sollol.discovery.search import run_apart

    return run_apart(lambda: discover(timeout, **options))


def open_pool(endpoints: tuple[Endpoint, ...]) -> Any:
    """Return a synchronous pool over these nodes; tests replace this function."""
    from sollol.pool.sync import OllamaPool

    return OllamaPool(list(endpoints))
