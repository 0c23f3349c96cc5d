"""Restart Ollama by the command that its owner has named."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

PAUSE_S: Final = 60.0  # between two restarts
COMMAND_S: Final = 60.0  # the longest time of the command
OUTPUT_MOST: Final = 2_000  # characters of the end of its output


class RestartOutcome(NamedTuple):
    """The end of a command: its exit code, and the end of its output."""

    exit_code: int
    output: str


class Restarter:
    """Run one command, at most once a minute. No part of it comes from a request."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)
        self._last_s = float("-inf")

    def wait_s(self) -> float:
        """Return the seconds until the next restart is allowed, 0 for now."""
        return max(0.0, self._last_s + PAUSE_S - asyncio.get_running_loop().time())

    async def run(self) -> RestartOutcome:
        """Run the command without a shell."""
        self._last_s = asyncio.get_running_loop().time()
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *self.command, stdin=none, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(COMMAND_S):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return RestartOutcome(-1, f"it did not end within {COMMAND_S:g} s")
        return RestartOutcome(process.returncode or 0, output.decode(errors="replace")[-OUTPUT_MOST:])
