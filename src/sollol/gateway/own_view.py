"""Show a key without admin rights what belongs to its own application, in the shape of the whole overview.

It has the application's requests and batches, and nodes with those models that the key may use. It has no requests,
names or models of others, no findings and events (their texts name both), and no actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from sollol.dashboard.feed import Feed
from sollol.errors import SollolError
from sollol.gateway.auth.keys import Key, Keyring
from sollol.observe.overview import Overview, Verdict
from sollol.observe.rows import CallTotals, Count, NodeStateRow
from sollol.pool.aio import AsyncOllamaPool

FEEDS_MOST: Final = 200  # keys whose pages are open at once


class GatewayOverview(Overview, kw_only=True):
    """Report the pool of a gateway, the agents, and the use of keys.

    Attributes:
        own: The reader may read one application only.
        can_act: The reader may change the cluster.
        login: Keys are required.
    """

    agents: dict[str, Any] | UnsetType = UNSET
    keys: dict[str, dict[str, Count]] | UnsetType = UNSET
    own: bool | UnsetType = UNSET
    can_act: bool
    login: bool
    has_settings: bool


def own_view(pool: AsyncOllamaPool, key: Key, login: bool) -> GatewayOverview:
    """Return the part of the pool's overview that a key may see."""
    found = pool.read_snapshot(key.app)
    nodes = [_own_node(node, key) for node in found.nodes]
    up = sum(node.state == "up" for node in nodes)
    requests, failed, _ = pool.engine.recorder.metrics.by_app().get(key.app, (0, 0, 0))
    return GatewayOverview(
        app_name=key.app,
        version=found.version,
        routing_mode=found.routing_mode,
        routing_strategy=found.routing_strategy,
        totals=CallTotals(requests, requests - failed, failed),
        nodes=nodes,
        waiting=found.waiting,
        running=found.running,
        recent=found.recent,
        calibration=found.calibration,
        verdict=Verdict(
            "ok" if up == len(nodes) else "warning" if up else "error",
            f"{up} of {len(nodes)} nodes up. This key shows the requests of {key.app!r} only.",
        ),
        findings=[],
        events=[],
        latest=None,
        spans=[],
        own=True,
        can_act=False,
        login=login,
        has_settings=False,
    )


def _own_node(node: NodeStateRow, key: Key) -> NodeStateRow:
    """Return a node's row with the models that a key may use. Its numbers are sums over all applications."""
    return msgspec.structs.replace(
        node,
        why=node.why if not key.models else "",  # its text may name models
        unable=node.unable if not key.models else [],
        models=[model for model in node.models if key.allows(model)],
        loaded_models=[model for model in node.loaded_models if key.allows(model)],
        loaded=[row for row in node.loaded if key.allows(row.model)],
        loading=[row for row in node.loading if key.allows(row.model)],
        replicas=[],
        breakers=[model for model in node.breakers if key.allows(model)],
        slots={model: slots for model, slots in node.slots.items() if key.allows(model)},
    )


class OwnFeeds:
    """Keep a feed for each key without admin rights whose page is open."""

    def __init__(self, pool: AsyncOllamaPool, keyring: Callable[[], Keyring]) -> None:
        self._pool = pool
        self._keyring = keyring
        self._feeds: dict[str, Feed] = {}

    def of(self, key: Key) -> Feed:
        """Return the feed of a key."""
        for other in [name for name, feed in self._feeds.items() if not feed.listening and name != key.hash]:
            del self._feeds[other]
        found = self._feeds.get(key.hash)
        if found is None:
            if len(self._feeds) >= FEEDS_MOST:
                raise SollolError(f"pages of {FEEDS_MOST} keys are open, and no more are served; close one")

            async def read() -> GatewayOverview:
                now = self._keyring().with_hash(key.hash)
                if now is None or now.admin:
                    raise SollolError("this key has changed or was revoked; load the page again")
                return own_view(self._pool, now, self._keyring().required)

            found = self._feeds[key.hash] = Feed(read)
        return found

    def close(self) -> None:
        """End every stream."""
        for feed in self._feeds.values():
            feed.close()
