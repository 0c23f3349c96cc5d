"""Implement `sollol up` of SOLLOL 0.9, which is `sollol serve` today. Hidden from the help."""

from __future__ import annotations

from typing import Annotated

import typer

from sollol.cli.console import warn


def up(
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="The port.")] = 11434,
    ollama_nodes: Annotated[str | None, typer.Option("--ollama-nodes", metavar="LIST", help="Nodes.")] = None,
    ray_workers: Annotated[int | None, typer.Option("--ray-workers", hidden=True)] = None,
    dask_workers: Annotated[int | None, typer.Option("--dask-workers", hidden=True)] = None,
    batch_processing: Annotated[
        bool | None, typer.Option("--batch-processing/--no-batch-processing", hidden=True)
    ] = None,
    autobatch_interval: Annotated[int | None, typer.Option("--autobatch-interval", hidden=True)] = None,
    rpc_backends: Annotated[str | None, typer.Option("--rpc-backends", hidden=True)] = None,
    setup_gpu_monitoring: Annotated[
        bool | None, typer.Option("--setup-gpu-monitoring/--no-setup-gpu-monitoring", hidden=True)
    ] = None,
    redis_host: Annotated[str | None, typer.Option("--redis-host", hidden=True)] = None,
    redis_port: Annotated[int | None, typer.Option("--redis-port", hidden=True)] = None,
) -> None:
    """Serve as `sollol serve --port N --nodes LIST`; the other options of 0.9 have no effect."""
    from sollol.cli.serve import serve

    warn(f"`sollol up` is `sollol serve --port {port}` today; its other options have no effect")
    serve(port=port, nodes=ollama_nodes)
