"""`sollol serve`: the gateway."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from sollol.cli import console

EPILOG = """\
[bold]Examples[/bold]

  sollol serve
  SOLLOL_NODES=gpu-box,10.0.0.7 sollol serve --port 11434
"""


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
) -> None:
    """One address for the whole cluster: Ollama's, OpenAI's and Anthropic's API."""
    from sollol.gateway.settings import GatewaySettings

    settings = GatewaySettings()
    settings = settings._replace(host=host or settings.host, port=settings.port if port is None else port)
    new_loop = asyncio.new_event_loop
    if sys.platform != "win32":
        try:
            import uvloop

            new_loop = uvloop.new_event_loop
        except ImportError:
            pass
    import gc

    gc.set_threshold(100_000, 20, 50)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: object) -> None:
    from sollol.gateway.app import Gateway
    from sollol.gateway.settings import GatewaySettings
    from sollol.nodes.http import HttpTransport
    from sollol.pool.aio import AsyncOllamaPool

    assert isinstance(settings, GatewaySettings)
    transport = HttpTransport()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    async with AsyncOllamaPool.from_settings(transport=transport) as pool:
        gateway = Gateway(pool, settings, transport=transport)
        port = await gateway.start()
        console.say(f"listening on http://{settings.host}:{port}")
        await stop.wait()
        await gateway.aclose()
