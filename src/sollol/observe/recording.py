"""Write what an engine does into a store, once a second, without making a request wait."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from sollol.core.learned import learned_values
from sollol.core.view import SchedulerView
from sollol.observe.recorder import Recorder
from sollol.observe.request_record import RequestRecord
from sollol.observe.series import ItemCounter
from sollol.observe.store import Store

EVERY_S: Final = 1.0
LEARNED_EVERY_S: Final = 10.0


class Recording:
    """Collect finished requests, embedded texts and what was learned, and write them to a store.

    Args:
        store: The store; it is closed at the end.
        recorder: The source of finished requests.
        view: The scheduler's state.
        notify: Show a sentence to the operator.
    """

    def __init__(self, store: Store, recorder: Recorder, view: SchedulerView, notify: Callable[[str], None]) -> None:
        self.store = store
        self._recorder = recorder
        self._records = recorder.subscribe("store")
        self._view = view
        self._notify = notify
        self._items = ItemCounter()
        self._learned_at = time.time()
        self._is_failing = False
        if store.put_aside is not None:
            notify(f"the store {store.path} could not be read; it is now {store.put_aside}, and a new one was begun")

    async def write(self) -> None:
        """Write what came since the last call, in a thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._collect(False))

    def close(self) -> None:
        """Write the rest and what was learned, and close the store."""
        self._collect(True)()
        self._recorder.unsubscribe(self._records)
        self.store.close()

    def _collect(self, last: bool) -> Callable[[], None]:
        at = time.time()
        records, items = self._records.take(), self._items.since(self._view)
        learned = None
        if last or at - self._learned_at >= LEARNED_EVERY_S:
            learned, self._learned_at = learned_values(self._view), at
        return lambda: self._write(records, items, learned, at)

    def _write(
        self,
        records: list[RequestRecord],
        items: dict[tuple[str, str], float],
        learned: dict[str, Any] | None,
        at: float,
    ) -> None:
        if not records and not items and learned is None:
            return
        try:
            self.store.write(records, items, learned, at)
            self._is_failing = False
        except sqlite3.Error as error:  # a full disk, or another program holds the file
            self._records.lost += len(records)
            if not self._is_failing:
                self._notify(
                    f"the store {self.store.path} cannot be written ({error}); what happens is not kept until it can"
                )
            self._is_failing = True
