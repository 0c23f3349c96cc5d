"""Decide when a sleeping node is woken: when tasks are predicted to wait longer than it takes to boot."""

from __future__ import annotations

from typing import Final

from sollol.core.types import SECOND, Micros

BOOT: Final[Micros] = 60 * SECOND  # assumed before a node was woken for the first time
TIMES: Final = 1.0  # boots that a task must wait
GIVE_UP: Final[Micros] = 300 * SECOND
PAUSE: Final[Micros] = 1_800 * SECOND


class WakeWhenSlower:
    """Wake a node when a task would wait as long as the node takes to boot.

    Args:
        times: Boots that a task must be predicted to wait.
        boot_us: Time of a boot before one was measured.
        give_up_us: Time after which a node that was woken counts as asleep again.
        pause_us: Time until such a node is woken again.
    """

    __slots__ = ("_pause_us", "_times", "boot_us", "give_up_us")

    def __init__(
        self,
        *,
        times: float = TIMES,
        boot_us: Micros = BOOT,
        give_up_us: Micros = GIVE_UP,
        pause_us: Micros = PAUSE,
    ) -> None:
        self._times = times
        self.boot_us = boot_us
        self.give_up_us = give_up_us
        self._pause_us = pause_us

    def wakes(self, wait_us: Micros, boot_us: Micros, since_failure_us: Micros) -> bool:
        """Check that a node should be woken.

        Args:
            wait_us: Predicted wait of the last task in the queue.
            boot_us: Time that the node takes to boot.
            since_failure_us: Time since it was woken in vain.
        """
        return wait_us > self._times * boot_us and since_failure_us > self._pause_us
