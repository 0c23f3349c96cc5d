"""Read and draw the applications that share a Redis, for `sollol top --redis`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from sollol.cli.console import plural, printable, table
from sollol.cli.screen import Uncut
from sollol.config import find_file, load_settings, without_secrets
from sollol.errors import BadInput, SollolError
from sollol.exporters.applications import CannotConnect, connect, read_members, read_recent, sums_by_app
from sollol.exporters.redis_feed import is_redis_error

SECTIONS = 3
LEAST = 2  # rows of a section


class Applications:
    """Read what all applications publish.

    Raises:
        BadInput: No Redis is set.
    """

    def __init__(self) -> None:
        url = load_settings(config=find_file()).redis
        if url is None:
            raise BadInput(
                "--redis: no Redis is set; expected SOLLOL_REDIS_URL, SOLLOL_REDIS_HOST or [redis] in the file"
            )
        self.address = without_secrets(url)
        try:
            self._client = connect(url)
        except CannotConnect as error:
            raise SollolError(f"Redis at {self.address}: {error}") from None

    async def snapshot(self) -> dict[str, Any]:
        """Return the applications, their processes, and their last requests."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> dict[str, Any]:
        try:
            members, recent = read_members(self._client), read_recent(self._client)
        except Exception as error:
            if is_redis_error(error):
                raise SollolError(f"Redis at {self.address} cannot be read: {error}") from None
            raise
        return {
            "redis": self.address,
            "apps": sums_by_app(members),
            "processes": msgspec.to_builtins(members),
            "recent": msgspec.to_builtins(recent),
        }

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def draw(frame: Mapping[str, Any], height: int | None = None, trouble: str = "") -> RenderableType:
    """Return a snapshot as tables, for a terminal of `height` lines or, with None, for a file."""
    apps, processes = frame["apps"], frame["processes"]
    head = f"{plural(len(apps), 'application')}  {len(processes):,} processes  {frame['redis']}"
    columns: tuple[str, ...] = (
        "application",
        "processes",
        "requests",
        "requests/s",
        "failed",
        "failed/s",
        "running",
        "waiting",
    )
    parts = [_table(columns, [_app(*item) for item in apps.items()], height)]
    columns = ("process", "kind", "host", "pid", "nodes", "running", "waiting", "records lost")
    parts.append(_table(columns, [_process(row) for row in processes], height))
    columns = ("recent", "application", "kind", "model", "node", "outcome", "seconds")
    parts.append(_table(columns, [_request(row) for row in frame["recent"]], height))
    spaced = [part for each in parts for part in (Text(), each)]
    return Group(
        Text(trouble, style="red"), Text.assemble(("SOLLOL  ", "bold"), printable(head)), Uncut(Group(*spaced))
    )


def _app(app: str, sums: Mapping[str, float]) -> Sequence[str]:
    rates = f"{sums['requests_per_s']:,.1f}", f"{sums['failed_per_s']:,.1f}"
    counts = [f"{sums[name]:,.0f}" for name in ("processes", "requests", "failed", "running", "waiting")]
    return app or "-", counts[0], counts[1], rates[0], counts[2], rates[1], counts[3], counts[4]


def _process(row: Mapping[str, Any]) -> Sequence[str]:
    return row["app"] or "-", row["kind"], row["host"], *(
        str(row[name]) for name in ("pid", "nodes", "running", "waiting", "lost")
    )  # fmt: skip


def _request(row: Mapping[str, Any]) -> Sequence[str]:
    at = datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S")
    return at, row["app"] or "-", row["kind"], row["model"], row["node"] or "-", row["outcome"], f"{row['total_s']:.2f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], height: int | None) -> RenderableType:
    if not rows:
        return Text("no requests yet" if columns[0] == "recent" else "no application is there", style="dim")
    most = len(rows) if height is None else max(LEAST, height // SECTIONS - 3)
    made = table(*columns)
    for column in made.columns:
        column.no_wrap = True
    for row in rows[:most]:
        made.add_row(*(printable(cell) for cell in row))
    more = len(rows) - most
    return Group(made, Text(f"and {more:,} more", style="dim")) if more > 0 else made
