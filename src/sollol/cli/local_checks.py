"""Checks of this machine and of the way to the nodes, for `sollol doctor`."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from sollol.cli.link import Link
from sollol.config import gateway_tables, problems_of
from sollol.config.paths import find_file, state_home
from sollol.core.endpoint import parse_endpoint
from sollol.errors import BadInput
from sollol.observe.findings import ERROR, INFO, WARNING, Finding
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

SLOW_CONNECT_S: Final = 0.1
SLOW_HTTP_S: Final = 0.5
SKEW_S: Final = 30.0
TIMEOUTS: Final = Timeouts(1.0, 2.0, 2.0)
ANSWER_MOST: Final = 4_000_000  # bytes
DISK_LEAST: Final = 1_000_000_000  # bytes
DISK_SHARE_LEAST: Final = 0.02


def settings() -> Iterator[Finding]:
    """Find values of the configuration file and the environment that cannot be used."""
    file = find_file()
    for problem in problems_of(os.environ, config=file):
        yield Finding(
            "settings", ERROR, file or "environment", problem.rstrip(".") + ".",
            "Commands that need it end with an error.",
            "Correct the value; `sollol serve --check` checks the settings of the gateway, too.",
        )  # fmt: skip


def disks() -> Iterator[Finding]:
    """Find disks that are almost full where this user's files and the gateway's store are."""
    seen = set()
    for folder, what in (Path.home(), "Indexes, keys and settings"), (_store_folder(), "History and what was learned"):
        try:
            device = folder.stat().st_dev
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        if device not in seen and usage.free < min(DISK_LEAST, DISK_SHARE_LEAST * usage.total):
            yield Finding(
                "disk-full", WARNING, str(folder), f"{usage.free / 1e6:,.0f} MB are free on the disk of {folder}.",
                f"{what} cannot be written.", "Free some space.", {"free": usage.free},
            )  # fmt: skip
        seen.add(device)


def _store_folder() -> Path:
    """Return the folder of the store that the configuration file names, else that of this user's states."""
    file = find_file()
    path = gateway_tables(file).get("store", {}).get("path") if file is not None else None
    return Path(path).expanduser().parent if isinstance(path, str) else state_home()


async def other_gateways(
    transport: Transport, urls: Iterable[str], own: str | None, nodes: Collection[str]
) -> list[Finding]:
    """Find gateways at these URLs that use some of these nodes.

    Args:
        transport: The transport.
        urls: Addresses where a gateway may listen.
        own: URL of the gateway that is examined; None without one.
        nodes: The nodes, as host:port.
    """
    health = {url: _answer(transport, url, "/sollol/health") for url in dict.fromkeys([*urls, *([own] if own else [])])}
    answers = dict(zip(health, await asyncio.gather(*health.values()), strict=True))
    seen = {answers[own]["instance"]} if own and "instance" in answers[own] else set()
    found = []
    for url, answer in answers.items():
        if "instance" not in answer or answer["instance"] in seen:
            continue
        seen.add(answer["instance"])
        listed = (await _answer(transport, url, "/sollol/nodes")).get("nodes")
        shared = None
        if isinstance(listed, list):
            hosts = {str(row.get("host")) for row in listed if isinstance(row, dict)}
            shared = [node for node in nodes if node in hosts]
        if shared or (shared is None and own):
            which = f"uses {', '.join(shared)}, too" if shared else "may use the same nodes (it requires a key)"
            found.append(Finding(
                "two-gateways", WARNING if shared else INFO, url, f"Another gateway at {url} {which}.",
                "Neither has the requests of the other: both predict free slots that are taken, and wait longer.",
                "Send all requests through one gateway; or give both the same SOLLOL_REDIS_URL, so that each shows the "
                "other's.", {"nodes": shared or []},
            ))  # fmt: skip
    return found


async def _answer(transport: Transport, url: str, path: str) -> dict[str, Any]:
    """Return the answer of a gateway as an object, {} without one."""
    try:
        reply = await transport.send(parse_endpoint(url), Call("GET", path, timeouts=TIMEOUTS, most=ANSWER_MOST))
        content = await reply.read()
        found = msgspec.json.decode(content) if reply.status == 200 else {}
    except (TransportFault, BadInput, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def link_findings(node: str, link: Link) -> Iterator[Finding]:
    """Find a slow network to a node, and a clock that differs."""
    if link.error:
        return  # the node's own finding has the reason
    if (link.connect_s or 0.0) > SLOW_CONNECT_S:
        assert link.connect_s is not None
        yield Finding(
            "slow-network", WARNING, node, f"Connecting to {node} takes {link.connect_s * 1000:.0f} ms.",
            "Each new connection waits so long; embeddings of short texts are slower there.",
            "Use a cable instead of Wi-Fi, or a shorter way (VPN, relay); `sollol ping` measures it.",
            {"connect_s": link.connect_s},
        )  # fmt: skip
    elif (link.http_s or 0.0) > SLOW_HTTP_S:
        assert link.http_s is not None
        yield Finding(
            "slow-node", INFO, node, f"{node} takes {link.http_s * 1000:.0f} ms for its version.",
            "Its machine is overloaded, or a proxy stands before it.", "Look at the load of that machine.",
            {"http_s": link.http_s},
        )  # fmt: skip
    if link.skew_s is not None and abs(link.skew_s) > SKEW_S:
        yield Finding(
            "clock-skew", INFO, node,
            f"The clock of {node} is {abs(link.skew_s):.0f} s {'ahead' if link.skew_s > 0 else 'behind'}.",
            "Times at which models leave its memory are wrong, and logs do not fit together.",
            "Let it synchronise its clock (`timedatectl set-ntp true`).", {"skew_s": link.skew_s},
        )  # fmt: skip
