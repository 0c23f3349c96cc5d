"""Implement `sollol init`, which writes a configuration file with every setting commented out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sollol.cli.console import note
from sollol.errors import BadInput
from sollol.files import replace_file

EPILOG = """\
[bold]Examples[/bold]

  sollol init
  sollol init ~/.config/sollol/sollol.toml
  sollol serve --config sollol.toml --check
"""
MEANINGS = {
    "host": "The address to listen on. Anything but this machine needs keys.",
    "port": "11434 takes the place of a local Ollama.",
    "insecure": "Accept all requests without keys, on any address.",
    "require_keys": "Require a key even on this machine.",
    "keys_file": "Where `sollol keys` keeps the hashes. By default ~/.config/sollol/keys.json.",
    "allowed_hosts": 'Names by which a proxy on this machine calls it: ["llm.example.org", "*.example.net"].',
    "cors_origins": 'Pages that may use the gateway besides local ones: ["https://chat.example.org"].',
    "drain_s": "The time for running answers when the gateway ends.",
    "max_body_mb": "The largest request, in megabytes; images and long lists of texts are large.",
    "max_head_kb": "The largest head of a request, in kilobytes.",
    "header_timeout_s": "The longest time for a head; then the connection is closed.",
    "body_timeout_s": "The longest pause within a body.",
    "body_total_s": "The longest time for a whole body; uploads of model files have no such bound.",
    "min_body_kb_per_s": "The slowest rate of a body, in kilobytes a second.",
    "max_arriving_mb": "All bodies that arrive, together; above it the largest that waits is refused.",
    "max_held_mb": "All bodies of requests that are not answered yet, together.",
    "idle_timeout_s": "A connection without a request is closed after this.",
    "max_connections": "Clients at once; more are refused with 503. At most half of the allowed open files.",
    "queue": "Requests that may wait for a node; more are refused with a time to retry.",
    "request_timeout_s": "For requests without X-Sollol-Deadline-Ms, waiting included. None by default.",
    "mode": '"fast", "reliable" or "async", for requests without X-Sollol-Mode. None by default.',
    "strategy": 'Or "round_robin", "latency_first", "least_loaded", "fairness".',
    "hedge": "A second copy of late requests: true or false. The default depends on the mode.",
    "share_contexts": "A call may use a model in memory with a larger num_ctx than its own, not load it again.",
    "on_mixed_digests": "Nodes have different versions of a model: chats use all; 'one': only one, as embeddings do.",
    "enabled": "Keep history and what was learned about the nodes over restarts.",
    "path": "The SQLite file. By default ~/.local/state/sollol/serve-PORT.sqlite3.",
    "days": "The age of the oldest sums by minute.",
    "requests": "Finished requests that are kept, without prompts and answers.",
    "urls": 'Where findings are sent: webhooks, and with the extra "alerts" all addresses of Apprise.',
    "listen": 'An address of their own for the metrics: "127.0.0.1:9464". None by default: only /metrics here.',
    "keys": 'Who may read them, where keys are needed: "admin", "any" key, or "none".',
    "severity": 'The least severity that is sent: "error", "warning" or "info".',
    "registry.enabled": "Serve models from one node to the others; the same as `sollol serve --registry`.",
    "registry.host": "The address at which nodes can call it: 0.0.0.0 for those of the private network.",
    "registry.port": "Its port; blobs are sent at another free one.",
    "folder": "Where the registry keeps blobs. By default ~/.local/state/sollol/registry.",
    "max_gb": "All of them together; the one unused for longest goes first.",
    "upstream": 'Fetch models that no node has from here, once: "https://registry.ollama.ai".',
    "key": "A path under which nodes can pull every model of the upstream registry, of 20 letters or more.",
    "controller.enabled": "Load and unload models by demand; the same as `sollol serve --controller`.",
    "dry_run": "Only plan: `sollol models plan` shows it.",
    "priority_models": 'Models that stay warm on one node whatever the demand: ["llama3.2"].',
    "controller.every_s": "Seconds between two plans.",
    "every_s": "The least time between two messages about one finding.",
}
EXAMPLES = {
    "request_timeout_s": "600.0",
    "keys_file": '"keys.json"',
    "path": '"store.sqlite3"',
    "folder": '"registry"',
    "mode": '"fast"',
    "hedge": "true",
    "listen": '"127.0.0.1:9464"',
}
_HEAD = """\
# Settings of SOLLOL. What is commented out is the default, or an example where the default is none.
# `sollol serve --config {name} --check` checks it. A running gateway applies changes by itself,
# all but host, port, [redis], [otel], [store], [alerts], [metrics], [controller] and [registry].

# Your nodes. Without any, they are looked for on this machine and its private networks.
# nodes = ["gpu-box", "10.0.0.7:11434", { url = "https://gate.example/team-a" }]

# The name under which requests without a key are shown and share fairly.
# app_name = "office"

# The share of requests that is recorded: true, false or a fraction.
# observer_sampling = true

# Where nodes are looked for.
[discovery]
# By default the private networks of this machine.
# subnets = ["192.168.1.0/24"]
# The ports at which they may answer.
# ports = [11434]

# A Redis in which all applications see each other.
[redis]
# With a password: "redis://:password@10.0.0.2:6379/0". None by default.
# url = "redis://10.0.0.2:6379/0"
# Its host, if there is no url. None by default.
# host = "10.0.0.2"
# Its port, if there is no url.
# port = 6379

# `sollol agent` beside nodes: what it reports is used, and nodes are found by it.
[agents]
# The key that all of them have. None by default.
# key = "the-key-of-the-agents"
# The port at which they listen.
# port = 11437

# A receiver of OpenTelemetry, with the extra "otel".
[otel]
# Whether spans and metrics are sent.
# enabled = false
# Its base URL; OTEL_EXPORTER_OTLP_ENDPOINT goes before it.
# endpoint = "http://localhost:4318"
"""
_TAIL = """
# The version of a model that embeddings use, where nodes have several: as `ollama list` shows it.
[digests]
# "mxbai-embed-large" = "468836162de7"

# Names that stand for a model.
[aliases]
# "gpt-4o" = "llama3.2"

# Models to try, in this order, when no node can serve the first.
[fallbacks]
# "llama3.3:70b" = ["llama3.2"]

# The nodes that have a model, for `sollol models sync` and `sollol serve --sync-models`.
[models]
# "llama3.2" = { replicas = 2, nodes = ["gpu-box", "10.0.0.7:11434"], pin = true }
"""


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.", show_default=True)] = Path("sollol.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a configuration file with every setting, commented out and explained."""
    if path.exists() and not force:
        raise BadInput(f"{path} is there already; edit it, name another file, or pass --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text_of(path.name).encode())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    note(f"{path} is written. Start with: sollol serve --config {path}")


def text_of(name: str = "sollol.toml") -> str:
    """Return the text of a file that parses and sets only defaults."""
    from sollol.gateway.settings import template

    tables = []
    for table, fields in template().items():
        lines = [
            f"# {MEANINGS.get(f'{table}.{field}') or MEANINGS[field]}\n# {field} = {_toml(field, default)}"
            for field, default in fields
        ]
        tables.append(f"[{table}]\n" + "\n".join(lines) + "\n")
    return _HEAD.replace("{name}", name) + "\n" + "\n".join(tables) + _TAIL


def _toml(field: str, value: Any) -> str:
    if value is None:
        return EXAMPLES[field]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[]"
    return f'"{value}"' if isinstance(value, str) else str(value)
