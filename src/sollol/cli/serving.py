"""Run the gateway as a process, with signals, reload and drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sollol.cli.access_log import AccessLog
from sollol.cli.console import Messages, is_plain, note, one_line, plural, printable, say, warn
from sollol.cli.service_log import log_attempts
from sollol.cli.service_notify import READY, STOPPING, WATCHDOG, notify, reloading, status, watchdog_s
from sollol.errors import BadInput, SollolError
from sollol.gateway.app import Gateway
from sollol.gateway.model_sync import ModelSync
from sollol.pool.aio import AsyncOllamaPool
from sollol.registry.server import Registry
from sollol.signals import on_signal
from sollol.transport.http import HttpTransport

if TYPE_CHECKING:
    from sollol.cli.serve import Reading
    from sollol.core.endpoint import Endpoint
    from sollol.gateway.auth.keys import Keyring
    from sollol.gateway.settings import GatewaySettings, RegistrySettings
    from sollol.observe.cluster_events import ClusterEvent

LOG_EVERY_S = 0.25
FIRST_LOOK_S = 0.02
FIRST_ANSWERS_S = 2.0  # wait for the first probes, so that the first screen shows nodes as they are
NODES_SHOWN = 20
REPORTED = ("node-up", "node-down", "node-added", "node-removed", "cpu-fallback", "breaker-open", "breaker-closed")
CLOSING_S = 10.0  # beside the time for running requests
FEW_FILES = 4096  # below it a busy gateway may run out
WATCH = "the watch over settings and keys"
WATCH_S = 2.0  # between checks of the files
# Most objects of a request are freed with it; the default thresholds would scan the others every few requests.
GC_THRESHOLDS = (50_000, 20, 50)


def run(read: Reading, settings: GatewaySettings, keyring: Keyring, nodes: tuple[Endpoint, ...]) -> None:
    """Serve until a signal ends it."""
    gc.set_threshold(*GC_THRESHOLDS)
    _allow_open_files()
    from sollol.transport.event_loop import new_loop

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(read, settings, keyring, nodes))


def _allow_open_files() -> None:
    """Raise the limit of open files to the hard limit, because each stream needs two."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS permits fewer than its hard limit
        hard = soft
    if 0 <= hard < FEW_FILES:
        warn(
            f"at most {hard:,} open files, enough for {max(0, hard - 50) // 2:,} requests at a time: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE= of the unit)"
        )
    elif hard != soft:
        allowed = f"{hard:,}" if hard >= 0 else "without limit"
        note(f"Open files: {allowed} (the limit was {soft:,}).")


async def _serve(read: Reading, settings: GatewaySettings, keyring: Keyring, nodes: tuple[Endpoint, ...]) -> None:
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()
    on_signal(loop, ("SIGINT", "SIGTERM", "SIGBREAK"), stop.set)
    on_signal(loop, ("SIGHUP",), again.set)
    transport = HttpTransport()
    made = AsyncOllamaPool(nodes, transport=transport, app_name=settings.app_name)
    made.use_redis(settings.redis)
    otel = settings.otel
    made.use_otel(None if otel is None else otel.endpoint, enabled=otel is not None)
    if read.journal is not None:
        made.record_journal(read.journal)
    async with made as pool:
        gateway = Gateway(pool, settings, keyring, transport=transport)
        if read.registry or settings.registry.enabled:
            gateway.registry = await start_registry(settings.registry, transport, pool.engine.dispatcher.fault)
        port = await gateway.start()
        _use_store(gateway, port)
        engine = pool.engine
        log = None
        if read.access_log:
            log = AccessLog(engine.recorder.subscribe("access log", sampled=False), read.access_log)
            gateway.duties.keep("the access log", log.write, LOG_EVERY_S)
        if Messages.level <= logging.DEBUG:
            engine.journal.subscribe(log_attempts)
        _watch_for_systemd(gateway)
        watch = SettingsWatch(read, gateway, again)  # later changes are noticed
        await _greet(gateway, port, read.file)
        engine.monitor().subscribe(_report_event)
        if read.sync_models:
            ModelSync(lambda: gateway.context).start(gateway.duties)
        notify(READY, status(f"{_up(gateway)}; port {port}"))
        watching = gateway.duties.keep(WATCH, watch.look)
        await stop.wait()
        watching.cancel()
        drain_us = int((gateway.settings.listen.drain_s + CLOSING_S) * 1e6)
        notify(STOPPING, f"EXTEND_TIMEOUT_USEC={drain_us}", status("running requests may finish"))
        note("Ending: running requests may finish.")
        if gateway.registry is not None:
            await gateway.registry.aclose()
        cut = await gateway.aclose()
        if log is not None:
            await log.write()
        if cut:
            warn(f"{plural(cut, 'request')} did not end in time and was cut off")


async def start_registry(
    settings: RegistrySettings, transport: HttpTransport, fault: Callable[[str, Exception], object]
) -> Registry:
    """Open the registry of models.

    Raises:
        BadInput: Its folder or its address cannot be used.
    """
    try:
        registry = Registry(
            settings.path,
            int(settings.max_gb * 1e9),
            transport,
            fault,
            upstream=settings.upstream,
            key=settings.key,
        )
        await registry.start(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        where = f"{settings.host}:{settings.port}, {settings.path}"
        raise BadInput(f"the registry cannot start ({where}): {error}; see [registry]") from None
    return registry


def _use_store(gateway: Gateway, port: int) -> None:
    """Open the store of the settings; without one the gateway serves as well."""
    settings = gateway.settings
    if not settings.store.enabled:
        return
    path = settings.store_path(port)
    try:
        gateway.pool.use_store(path, days=settings.store.days, requests=settings.store.requests)
    except SollolError as problem:
        warn(f"{problem}; history and what was learned are not kept")


async def _greet(gateway: Gateway, port: int, file: str | None) -> None:
    """Print the first screen: the address, the nodes, the lines for clients, and where things are."""
    listen = gateway.settings.listen
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    url = f"http://{host}:{port}"
    say(url)
    note(f"Dashboard: {url}/dashboard")
    if gateway.metrics_port:
        own = gateway.settings.metrics.address[0]
        note(f"Metrics: http://{f'[{own}]' if ':' in own else own}:{gateway.metrics_port}/metrics")
    await _first_answers(gateway)
    nodes = gateway.pool.nodes
    for node in nodes[:NODES_SHOWN]:
        what = node.why if node.state == "down" else plural(len(node.models), "model") if node.state == "up" else ""
        note(f"  {node.state:<7} {node.key:<24} {printable(what)}".rstrip())
    if len(nodes) > NODES_SHOWN:
        note(f"  and {plural(len(nodes) - NODES_SHOWN, 'node')} more")
    note(f"Clients: OLLAMA_HOST={url}")
    note(f"         OPENAI_BASE_URL={url}/v1    ANTHROPIC_BASE_URL={url}")
    storing = gateway.pool.engine.storing
    note(f"Settings: {file or 'defaults (`sollol init` writes a file)'}. "
         f"Store: {storing.store.path if storing is not None else 'none'}.")  # fmt: skip
    keys = "Keys are required." if gateway.keyring.required else "No keys are required."
    note(f"{plural(len(gateway.pool.nodes), 'node')}. {keys} Ctrl-C ends it.")
    if gateway.registry is not None:
        where = gateway.settings.registry.host
        note(f"Registry: models go from node to node over {where}:{gateway.registry.port}.")
    if listen.insecure:
        warn("all callers that reach this address can use the nodes and delete their models")


def _up(gateway: Gateway) -> str:
    nodes = gateway.pool.nodes
    return f"{sum(node.state == 'up' for node in nodes)} of {plural(len(nodes), 'node')} up"


def _watch_for_systemd(gateway: Gateway) -> None:
    """Send the messages of the watchdog from the event loop, with the state of the nodes."""
    every_s = watchdog_s()
    if every_s is None:
        return

    async def report() -> None:
        notify(WATCHDOG, status(_up(gateway)))

    gateway.duties.keep("the watchdog of systemd", report, every_s)


async def _first_answers(gateway: Gateway) -> None:
    """Wait until every node has answered its first probe, for at most FIRST_ANSWERS_S."""
    for _ in range(round(FIRST_ANSWERS_S / FIRST_LOOK_S)):
        if all(node.state != "unknown" for node in gateway.pool.nodes):
            return
        await asyncio.sleep(FIRST_LOOK_S)


def _report_event(event: ClusterEvent) -> None:
    """Print a line where something breaks or is well again."""
    if event.kind in REPORTED:
        at = f"{time.strftime('%H:%M:%S', time.localtime(event.at))} " if is_plain() else ""
        note(f"{at}{one_line(event.text)}")


class SettingsWatch:
    """Apply changes of the settings and the keys, on SIGHUP and when the files change.

    Invalid settings change nothing. Each check tries failed ones again and shows an error when it changes. The keys are
    read even if the settings fail, so that a revoked key becomes invalid in any case.
    """

    def __init__(self, read: Reading, gateway: Gateway, again: asyncio.Event) -> None:
        self._read = read
        self._gateway = gateway
        self._again = again
        self._seen = read.version()
        self._shown = ""

    async def look(self) -> None:
        """Wait for SIGHUP or the next check, and check once."""
        try:
            async with asyncio.timeout(WATCH_S):
                await self._again.wait()
        except TimeoutError:
            pass
        requested = self._again.is_set()
        self._again.clear()
        if requested:
            notify(*reloading())
        problems: list[Exception] = []
        try:
            self._settings(requested)
        except Exception as problem:
            problems.append(problem)
        try:  # even if the settings failed
            self._keys()
        except Exception as problem:
            problems.append(problem)
        now = "; ".join(str(problem) or type(problem).__name__ for problem in problems)
        if now and (requested or now != self._shown):
            warn(f"{now}; everything stays as it was")
            for failed in problems:
                if not isinstance(failed, (SollolError, OSError)):  # a defect of SOLLOL
                    self._gateway.duties.failed(WATCH, failed)
        self._shown = now
        if requested:
            notify(READY, status(_up(self._gateway)))

    def _settings(self, requested: bool) -> None:
        version = self._read.version()
        if not requested and version == self._seen:
            return
        gateway, settings = self._gateway, self._read.settings()
        left = gateway.apply(settings)
        gateway.keyring.follow(settings.keys_path, required=gateway.settings.needs_keys)
        self._seen = version
        note("Settings read again.")
        for setting in left:
            warn(f"{setting} until `sollol serve` is started again")

    def _keys(self) -> None:
        if self._gateway.keyring.reload():
            note(f"{plural(len(self._gateway.keyring), 'key')} read.")
