"""Run `sollol top` in a terminal: draw, read frames, take keys, and carry out their actions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from rich.text import Text

from sollol.cli.console import one_line, stdout
from sollol.cli.terminal import Terminal
from sollol.cli.top_session import Action, Session
from sollol.cli.top_sources import Source
from sollol.errors import SollolError


async def show_live(source: Source, interval: float) -> None:
    """Fill the terminal until a key, Ctrl-C, SIGTERM or the end of the terminal."""
    frame = await source.snapshot()
    session = Session(source.listings, source.refusal)
    session.update(frame)
    terminal = Terminal(stdout())
    try:
        with terminal.opened():
            async with asyncio.TaskGroup() as group:
                await _Live(source, session, terminal, interval, group).run()
    except asyncio.CancelledError:  # the normal end
        pass


class _Live:
    """Draw a session while keys, frames and answers arrive."""

    def __init__(
        self, source: Source, session: Session, terminal: Terminal, interval: float, group: asyncio.TaskGroup
    ) -> None:
        self._source, self._session, self._terminal = source, session, terminal
        self._interval = interval
        self._group = group
        self._trouble = ""
        self._now = asyncio.Event()  # set to draw a frame at once
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Handle keys until the end."""
        self._start(self._refresh())
        while not self._session.is_ended:
            self._draw()
            action = self._session.press(await self._terminal.keys.get())
            if action is not None:
                self._start(self._act(action))
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refresh(self) -> None:
        """Read frame after frame."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), self._interval)
            self._now.clear()
            try:
                frame = await self._source.snapshot()
                self._trouble = ""
                self._session.update(frame)
            except SollolError as error:
                self._trouble = f"{one_line(error)}; trying again"
            self._draw()

    async def _act(self, action: Action) -> None:
        try:
            if action.verb == "explain":
                self._session.show_page(await self._source.explain(action.id))
            else:
                self._session.tell(await self._source.act(action))
                self._now.set()
        except SollolError as error:
            self._session.tell(str(error), failed=True)
        self._draw()

    def _draw(self) -> None:
        width, height = self._terminal.size
        head = self._source.head(self._session.frame, width)
        if self._trouble:
            head = [head[0], Text(self._trouble, style="bold red")]
        self._terminal.show(self._session.screen(head, width, height))
