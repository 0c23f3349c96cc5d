"""Check before serving whether the file, the keys, the port, the nodes and their models would work."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence, Sized
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sollol.backends.probe import probe_all
from sollol.core.endpoint import Endpoint
from sollol.core.types import NodeFacts, canonical_model
from sollol.errors import BadInput
from sollol.gateway.settings import GatewaySettings, RegistrySettings, check_keys
from sollol.http_server.host_guard import is_loopback
from sollol.observe.alerts import shown_address
from sollol.registry.server import check_host
from sollol.transport.http import HttpTransport


class CheckResult(NamedTuple):
    """The result of one check."""

    subject: str
    ok: bool
    detail: str


async def check(
    settings: GatewaySettings, nodes: tuple[Endpoint, ...], keys: int, file: str | None = None
) -> list[CheckResult]:
    """Return the results of all checks. `file`: the path of the settings."""
    read = CheckResult("file", True, file or "none was found, so the defaults hold")
    found = [read, _keys(settings, keys), *_keys_file(settings.keys_path)]
    found += [_address("address", settings.listen.host, settings.listen.port), *_metrics(settings, keys)]
    found += [*_registry(settings.registry), *_alerts(settings.alerts.urls)]
    transport = HttpTransport()
    try:
        probed = await probe_all(transport, nodes)
    finally:
        await transport.aclose()
    up = []
    for node, facts in probed.items():
        if isinstance(facts, NodeFacts):
            up.append(facts)
            found.append(
                CheckResult(f"node {node.key}", True, f"Ollama {facts.version}, {_count(facts.models, 'model')}")
            )
        else:
            found.append(CheckResult(f"node {node.key}", False, str(facts)))
    if not up:
        why = "none answers" if nodes else "none is known"
        found.append(CheckResult("nodes", False, f"{why}; name them in nodes = [...], or in SOLLOL_NODES"))
    models = {model for facts in up for model in facts.models}
    found += [_model("alias", alias, target, models) for alias, target in settings.aliases.items()]
    for name, others in settings.fallbacks.items():
        found += [_model("fallback", name, settings.resolve_model(other), models) for other in others]
    return found


def _keys(settings: GatewaySettings, keys: int) -> CheckResult:
    try:
        check_keys(settings, keys)
    except BadInput as problem:
        return CheckResult("keys", False, str(problem))
    return CheckResult("keys", True, f"{_count(range(keys), 'key')}, {'' if settings.needs_keys else 'not '}required")


def _keys_file(path: Path) -> list[CheckResult]:
    """Check that only its owner can write the keys file, because a written key opens the gateway."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return []
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        return [CheckResult("keys file", False, f"others than its owner can change {path}; run: chmod 600 {path}")]
    return [CheckResult("keys file", True, str(path))]


def _metrics(settings: GatewaySettings, keys: int) -> list[CheckResult]:
    """Check the own address of the metrics, and that a key exists which it requires from other machines."""
    host, port = settings.metrics.address
    if not settings.metrics.listen:
        return []
    if not keys and settings.metrics.keys != "none" and not is_loopback(host):
        why = f"no caller can read them at {settings.metrics.listen}, which requires a key, and there is none"
        fix = '`sollol keys add NAME --admin` makes one, and keys = "none" in [metrics] opens it'
        return [CheckResult("metrics", False, f"{why}; {fix}")]
    return [_address("metrics", host, port)]


def _registry(own: RegistrySettings) -> list[CheckResult]:
    """Check the address of the registry, and that its folder can be written."""
    if not own.enabled:
        return []
    try:
        check_host(own.host)
    except BadInput as error:
        return [CheckResult("registry", False, str(error))]
    there = next(path for path in (own.path, *own.path.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = f"{own.path} cannot be a folder: {there} is none, or cannot be written"
        return [CheckResult("registry", False, f"{why}; name another folder in [registry]")]
    return [_address("registry", own.host, own.port)]


def _alerts(urls: Sequence[str]) -> list[CheckResult]:
    """Check that every address of alerts can be used with what is installed."""
    others = [shown_address(url) for url in urls if urlsplit(url).scheme not in ("http", "https")]
    if others and find_spec("apprise") is None:
        return [CheckResult("alerts", False, f"{', '.join(others)} requires Apprise: pip install '.[alerts]'")]
    return [CheckResult("alerts", True, _count(urls, "address", "addresses"))] if urls else []


def _address(subject: str, host: str, port: int) -> CheckResult:
    where = f"{host}:{port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            if os.name == "posix":  # elsewhere this lets two programs have one port
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return CheckResult(subject, False, f"cannot listen on {where}: {error.strerror or error}")
    return CheckResult(subject, True, f"{where} is free")


def _model(kind: str, name: str, target: str, models: set[str]) -> CheckResult:
    there = canonical_model(target) in models
    return CheckResult(
        f"{kind} {name}", there, target if there else f"{target} is on no node; pull it, or change the {kind}"
    )


def _count(items: Sized, noun: str, nouns: str = "") -> str:
    return f"{len(items)} {noun if len(items) == 1 else nouns or f'{noun}s'}"
