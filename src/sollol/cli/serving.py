"""The gateway as a process: signals, reload and drain."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING

from sollol.cli.console import note, plural, say, warn
from sollol.errors import SollolError
from sollol.gateway.app import Gateway
from sollol.nodes.http import HttpTransport
from sollol.pool.aio import AsyncOllamaPool
from sollol.signals import on_signal

if TYPE_CHECKING:
    from sollol.cli.serve import Reading
    from sollol.core.endpoint import Endpoint
    from sollol.gateway.keys import Keyring
    from sollol.gateway.settings import GatewaySettings

_LOG = logging.getLogger("sollol.serve")
FEW_FILES = 4096  # below it a busy gateway may run out
WATCH_S = 2.0  # how often the files are looked at
# Most objects of a request die with it; the default thresholds would look through the living ones every few requests.
GC_THRESHOLDS = (50_000, 20, 50)


def run(read: Reading, settings: GatewaySettings, keyring: Keyring, nodes: tuple[Endpoint, ...]) -> None:
    """Serve until a signal ends it."""
    gc.set_threshold(*GC_THRESHOLDS)
    _allow_open_files()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(read, settings, keyring, nodes))


def _allow_open_files() -> None:
    """As many as may be: a stream needs two, and the usual 1,024 are for programs that use select()."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS allows less than it says
        hard = soft
    if 0 <= hard < FEW_FILES:
        warn(
            f"at most {hard:,} open files, enough for {max(0, hard - 50) // 2:,} requests at a time: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE= of the unit)"
        )
    elif hard != soft:
        allowed = f"{hard:,}" if hard >= 0 else "without limit"
        note(f"Open files: {allowed} (the limit was {soft:,}).")


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: it halves the cost of a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(read: Reading, settings: GatewaySettings, keyring: Keyring, nodes: tuple[Endpoint, ...]) -> None:
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()
    on_signal(loop, ("SIGINT", "SIGTERM", "SIGBREAK"), stop.set)
    on_signal(loop, ("SIGHUP",), again.set)
    transport = HttpTransport()
    async with AsyncOllamaPool(nodes, transport=transport, app_name=settings.app_name) as pool:
        gateway = Gateway(pool, settings, keyring, transport=transport)
        port = await gateway.start()
        _greet(gateway, port)
        watching = asyncio.create_task(_watch(read, gateway, again))
        await stop.wait()
        watching.cancel()
        note("Ending: running requests may finish.")
        cut = await gateway.aclose()
        if cut:
            warn(f"{plural(cut, 'request')} did not end in time and was cut off")


def _greet(gateway: Gateway, port: int) -> None:
    listen = gateway.settings.listen
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    say(f"http://{host}:{port}")
    keys = "Keys are asked for." if gateway.keyring.required else "No keys are asked for."
    note(f"{plural(len(gateway.pool.nodes), 'node')}. {keys} Ctrl-C ends it.")
    if listen.insecure:
        warn("whoever reaches this address can use the nodes, and delete their models")


async def _watch(read: Reading, gateway: Gateway, again: asyncio.Event) -> None:
    """Take up changes of the file and the keys, on SIGHUP and by itself. What cannot be used changes nothing.

    Nothing ends it: a key that was revoked must not stay good because something else went wrong. What failed is tried
    again each time, and told when it changes."""
    seen = read.version()
    told = ""
    while True:
        try:
            async with asyncio.timeout(WATCH_S):
                await again.wait()
        except TimeoutError:
            pass
        asked = again.is_set()
        again.clear()
        problems: list[Exception] = []
        try:
            version = read.version()
            if asked or version != seen:
                settings = read.settings()
                path = settings.keys_path
                left = gateway.apply(settings)
                gateway.keyring.follow(path, required=gateway.settings.needs_keys)
                seen = version
                note("Settings read again.")
                for what in left:
                    warn(f"{what} until `sollol serve` is started again")
        except Exception as problem:
            problems.append(problem)
        try:  # whatever became of the settings
            if gateway.keyring.reload():
                note(f"{plural(len(gateway.keyring), 'key')} read.")
        except Exception as problem:
            problems.append(problem)
        now = "; ".join(str(problem) or type(problem).__name__ for problem in problems)
        if now and (asked or now != told):
            warn(f"{now}; everything stays as it was")
            for failed in problems:
                if not isinstance(failed, (SollolError, OSError)):  # a fault of ours
                    _LOG.error("settings or keys could not be read", exc_info=failed)
        told = now
