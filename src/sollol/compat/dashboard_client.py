"""Show an application to the dashboards that share its Redis. A pool does this by itself, with its rates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from sollol.compat.http_calls import call
from sollol.config import load_settings
from sollol.errors import SollolError
from sollol.exporters.applications import Identity
from sollol.exporters.redis_feed import RedisFeed
from sollol.observe.recorder import Recorder

LOOK_S: Final = 2.0
log: Final = logging.getLogger("sollol.dashboard_client")


class DashboardClient:
    """Publish the presence of an application that has no pool, while the program runs.

    It appears where dashboards look: in the Redis of SOLLOL_REDIS_URL. Without one, a dashboard shows only the pools of
    its own process, and `register` only checks that it answers.
    """

    def __init__(
        self,
        app_name: str,
        router_type: str = "unknown",
        version: str = "unknown",
        dashboard_url: str = "http://localhost:8080",
        heartbeat_interval: int = 10,
        metadata: Mapping[str, Any] | None = None,
        auto_register: bool = True,
    ) -> None:
        self.app_name = app_name
        self.router_type = router_type
        self.version = version
        self.dashboard_url = dashboard_url.rstrip("/")
        self.heartbeat_interval = heartbeat_interval
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.registered = False
        self._feed: RedisFeed | None = None
        identity = Identity(app_name, version)
        identity.kind = router_type
        self._identity = identity
        if auto_register:
            self.register()

    @property
    def app_id(self) -> str:
        """The id of this process among the applications."""
        return self._identity.id

    def register(self) -> bool:
        """Publish the application; return False if neither a Redis is set nor the dashboard answers."""
        redis = load_settings().redis
        if redis and self._feed is None:
            try:
                self._feed = RedisFeed(redis, self._identity, Recorder(_now), self._present, _run, log.warning)
            except (SollolError, ImportError) as error:
                log.warning("%s is not shown in dashboards: %s", self.app_name, error)
        self.registered = self._feed is not None or self._answers()
        if not self.registered:
            log.info("no dashboard answers at %s, and SOLLOL_REDIS_URL is not set", self.dashboard_url)
        return self.registered

    def heartbeat(self, metadata: Mapping[str, Any] | None = None) -> bool:
        """Return True while the application is published, or the dashboard answers."""
        self.metadata.update(metadata or {})
        return self._feed is not None or self._answers()

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Change what is known of the application; `nodes` is shown."""
        self.metadata.update(metadata)

    def unregister(self) -> None:
        """Withdraw the application. It may be called more than once."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.end()
        self.registered = False

    def _answers(self) -> bool:
        try:
            call(self.dashboard_url, "/api/applications", timeout_s=LOOK_S)
        except SollolError:
            return False
        return True

    def _present(self) -> tuple[int, int, int]:
        nodes = self.metadata.get("nodes")
        return (nodes if type(nodes) is int else 0), 0, 0


def _now() -> int:
    return time.monotonic_ns() // 1000


def _run(function: Callable[..., object], *given: object) -> None:
    function(*given)
