"""The dashboard as a process, `python -m sollol.dashboard_service`, and lines of a log for a Redis."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from sollol.compat.redis_lines import RedisLines
from sollol.compat.rpc_discovery import check_rpc_server
from sollol.dashboard import UnifiedDashboard
from sollol.discovery import discover_ollama_nodes
from sollol.errors import NotSupported
from sollol.pool.base import configured_nodes
from sollol.pool.keywords import accept_old
from sollol.pool.sync import OllamaPool

REDIS_LOG_CHANNEL: Final = "sollol:dashboard:logs"
REDIS_LOG_STREAM: Final = "sollol:dashboard:log_stream"
REDIS_URL: Final = "redis://localhost:6379"
REDIS_PORT: Final = 6379
UNUSED: Final = frozenset(["ray_dashboard_port", "dask_dashboard_port", "enable_dask", "enable_ray"])


class RedisLogPublisher(logging.Handler):
    """Send the lines of a log to a channel and a stream of Redis, from a thread of its own."""

    def __init__(
        self,
        redis_client: Any,
        channel: str = REDIS_LOG_CHANNEL,
        stream_key: str = REDIS_LOG_STREAM,
        use_streams: bool = True,
    ) -> None:
        super().__init__()
        self._lines = RedisLines(redis_client, channel, stream_key if use_streams else None)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        if record.name.startswith("sollol.redis_lines"):  # about this queue
            return
        try:
            message = record.getMessage()
        except Exception:
            self.handleError(record)
            return
        line = {"timestamp": record.created, "level": record.levelname, "name": record.name, "message": message}
        self._lines.put({**line, "process": record.process})

    def close(self) -> None:
        """End the thread."""
        self._lines.end()
        super().close()


def install_redis_log_publisher(redis_url: str = REDIS_URL) -> RedisLogPublisher:
    """Send what the program logs to a Redis from now on; return the handler.

    Raises:
        NotSupported: The package redis is not installed.
        redis.RedisError: The Redis does not answer.
    """
    try:
        import redis
    except ImportError:
        raise NotSupported("install_redis_log_publisher needs the package redis: pip install 'redis>=5'") from None
    client: Any = redis.from_url(redis_url, socket_timeout=1.0, socket_connect_timeout=1.0)
    client.ping()
    handler = RedisLogPublisher(client)
    logging.getLogger().addHandler(handler)
    return handler


def install_log_hook_main(redis_url: str = REDIS_URL) -> bool:
    """Install the publisher; return False if the Redis does not answer."""
    try:
        install_redis_log_publisher(redis_url)
    except Exception as error:
        logging.getLogger("sollol").warning("lines of the log do not go to Redis: %s", error)
        return False
    return True


def auto_install_hooks(redis_url: str = REDIS_URL, ray_ref: Any = None, dask_client: Any = None) -> None:
    """Install the publisher in this process; there are no others."""
    install_log_hook_main(redis_url)


class DashboardService:
    """A dashboard of a pool, or of the nodes of the settings or the network; with applications from a Redis."""

    def __init__(
        self,
        redis_url: str = REDIS_URL,
        port: int = 8080,
        router_getter: Callable[[], Any] | None = None,
        **old: Any,
    ) -> None:
        accept_old("DashboardService", old, UNUSED)
        self.redis_url = redis_url
        self.port = port
        self._router_getter = router_getter

    def run(self, host: str = "127.0.0.1", debug: bool = False) -> None:
        """Serve until Ctrl-C.

        Raises:
            CannotListen: The address cannot be bound.
        """
        router = None if self._router_getter is None else self._router_getter()
        if router is None:
            nodes: list[Any] = configured_nodes() or discover_ollama_nodes(2.0)
            router = OllamaPool(nodes, app_name="dashboard")
            if _is_there(self.redis_url):
                router.use_redis(self.redis_url)
        UnifiedDashboard(router, self.port, host=host).run()


def _is_there(redis_url: str) -> bool:
    """Check that something listens at the address of a Redis."""
    parts = urlsplit(redis_url)
    try:
        return check_rpc_server(parts.hostname or "localhost", parts.port or REDIS_PORT, 1.0)
    except ValueError:
        return False


def main() -> None:
    """Serve the dashboard."""
    parser = argparse.ArgumentParser(prog="python -m sollol.dashboard_service", description="Serve the dashboard.")
    parser.add_argument("--port", type=int, default=8080, help="the TCP port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--redis-url", default=REDIS_URL, help="the Redis that applications share")
    for name in ("--ray-dashboard-port", "--dask-dashboard-port"):
        parser.add_argument(name, type=int, help="without effect: there is no such dashboard")
    for name in ("--enable-ray", "--enable-dask", "--no-dask", "--no-ray", "--debug"):
        parser.add_argument(name, action="store_true", help="without effect")
    given = parser.parse_args()
    try:
        DashboardService(given.redis_url, given.port).run(given.host)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
