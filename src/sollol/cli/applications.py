"""Read and draw the applications that share a Redis, for `sollol top --redis`."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.text import Text

from sollol.cli.console import one_line, plural
from sollol.cli.listings import Column, Listing, Row
from sollol.cli.screen import title
from sollol.config import load_settings
from sollol.config.paths import find_file
from sollol.config.problems import without_secrets
from sollol.errors import BadInput, SollolError
from sollol.exporters.applications import CannotConnect, connect, read_members, read_recent, sums_by_app
from sollol.exporters.redis_feed import is_redis_error


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


def headline(frame: Row, width: int) -> Text:
    """Return the counts of a frame as one line."""
    processes = len(frame["processes"])
    return title(
        [
            plural(len(frame["apps"]), "application"),
            f"{processes:,} process{'' if processes == 1 else 'es'}",
            frame["redis"],
        ],
        width,
    )


def _number(name: str, rank: int = 0, title: str = "", form: str = ",.0f") -> Column:
    """Return the column of a number."""
    return Column(title or name, lambda row: format(row[name], form), lambda row: row[name], True, rank)


def _app(row: Row) -> str:
    return row["app"] or "-"


def _apps(frame: Row) -> list[Row]:
    return [{"app": app, **sums} for app, sums in frame["apps"].items()]


def _at(row: Row) -> str:
    return datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S")


_APPS: Final = (
    Column("application", _app),
    _number("processes", 3),
    _number("requests", 1),
    _number("requests_per_s", 0, "requests/s", ",.1f"),
    _number("failed", 2),
    _number("failed_per_s", 4, "failed/s", ",.1f"),
    _number("running"),
    _number("waiting"),
)
_PROCESSES: Final = (
    Column("process", _app),
    Column("kind", lambda row: row["kind"], None, False, 1),
    Column("host", lambda row: row["host"], None, False, 2),
    Column("pid", lambda row: str(row["pid"]), lambda row: row["pid"], True),
    _number("nodes", 3),
    _number("running"),
    _number("waiting"),
    _number("lost", 4, "records lost"),
)
_RECENT: Final = (
    Column("recent", _at, lambda row: row["at"]),
    Column("application", _app),
    Column("kind", lambda row: row["kind"], None, False, 2),
    Column("model", lambda row: row["model"]),
    Column("node", lambda row: row["node"] or "-", None, False, 1),
    Column("outcome", lambda row: Text(one_line(row["outcome"]), style="" if row["outcome"] == "ok" else "red")),
    _number("total_s", 0, "seconds", ".2f"),
)
LISTINGS: Final = (
    Listing("applications", _APPS, _apps, _app, "no application is there"),
    Listing("processes", _PROCESSES, lambda frame: frame["processes"], lambda row: row["id"], "no process is there"),
    Listing("recent", _RECENT, lambda frame: frame["recent"], lambda row: (row["at"], row["id"]), "no requests yet"),
)
