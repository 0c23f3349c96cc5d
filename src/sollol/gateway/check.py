"""`sollol serve --check`: would it work? Asked of the file, the keys, the port, the nodes and their models."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Sized
from pathlib import Path
from typing import NamedTuple

from sollol.backends.probe import ProbeFailed, probe
from sollol.core.endpoint import Endpoint
from sollol.core.types import NodeFacts, canonical_model
from sollol.errors import BadInput
from sollol.gateway.settings import GatewaySettings, check_keys
from sollol.transport.http import HttpTransport


class CheckResult(NamedTuple):
    what: str
    ok: bool
    told: str


async def check(
    settings: GatewaySettings, nodes: tuple[Endpoint, ...], keys: int, file: str | None = None
) -> list[CheckResult]:
    """Everything at once; raises nothing that a setting can cause. `file`: where the settings were read."""
    read = CheckResult("file", True, file or "none was found, so the defaults hold")
    found = [read, _keys(settings, keys), *_keys_file(settings.keys_path), _port(settings)]
    transport = HttpTransport()
    try:
        facts = dict(zip(nodes, await asyncio.gather(*(_ask(transport, node) for node in nodes)), strict=True))
    finally:
        await transport.aclose()
    for node, told in facts.items():
        if isinstance(told, NodeFacts):
            found.append(
                CheckResult(f"node {node.key}", True, f"Ollama {told.version}, {_count(told.models, 'model')}")
            )
        else:
            found.append(CheckResult(f"node {node.key}", False, told))
    up = [told for told in facts.values() if isinstance(told, NodeFacts)]
    if not up:
        why = "none answers" if nodes else "none is known"
        found.append(CheckResult("nodes", False, f"{why}; name them in nodes = [...], or in SOLLOL_NODES"))
    models = {model for told in up for model in told.models}
    found += [_model("alias", alias, target, models) for alias, target in settings.aliases.items()]
    for name, others in settings.fallbacks.items():
        found += [_model("fallback", name, settings.resolve_model(other), models) for other in others]
    return found


def _keys(settings: GatewaySettings, keys: int) -> CheckResult:
    try:
        check_keys(settings, keys)
    except BadInput as problem:
        return CheckResult("keys", False, str(problem))
    return CheckResult("keys", True, f"{_count(range(keys), 'key')}, {'' if settings.needs_keys else 'not '}asked for")


def _keys_file(path: Path) -> list[CheckResult]:
    """Who can write it can let himself in. Reading it gives nobody a key, but is nobody's business either."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return []
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        return [CheckResult("keys file", False, f"others than its owner can change {path}; run: chmod 600 {path}")]
    return [CheckResult("keys file", True, str(path))]


def _port(settings: GatewaySettings) -> CheckResult:
    listen = settings.listen
    where = f"{listen.host}:{listen.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            if os.name == "posix":  # elsewhere this lets two programs have one port
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return CheckResult("address", False, f"cannot listen on {where}: {error.strerror or error}")
    return CheckResult("address", True, f"{where} is free")


async def _ask(transport: HttpTransport, node: Endpoint) -> NodeFacts | str:
    try:
        return await probe(transport, node)
    except ProbeFailed as failed:
        return str(failed)


def _model(kind: str, name: str, target: str, models: set[str]) -> CheckResult:
    there = canonical_model(target) in models
    return CheckResult(
        f"{kind} {name}", there, target if there else f"{target} is on no node; pull it, or change the {kind}"
    )


def _count(items: Sized, noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
