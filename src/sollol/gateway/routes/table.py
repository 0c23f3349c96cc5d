"""Which handler answers which request."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from sollol.gateway.formats.api_formats import EMBED_TONGUES, TONGUES, Tongue
from sollol.gateway.inference import passthrough as passing
from sollol.gateway.routes import admin as own
from sollol.gateway.routes import dashboard, models
from sollol.gateway.routes import lists as fanout


class Route:
    """An inference, answered by callbacks and spoken in a `tongue`; or a `handler`, which is run as a task."""

    __slots__ = ("admin", "check", "handler", "head", "public", "tongue", "upload")

    def __init__(
        self,
        handler: Callable[..., Coroutine[Any, Any, None]] | None = None,
        tongue: Tongue | None = None,
        public: bool = False,
        upload: bool = False,
        head: bool = False,
        admin: bool = False,
        check: Callable[..., None] | None = None,
    ) -> None:
        self.handler = handler
        self.tongue = tongue
        self.public = public  # asked without a key
        self.upload = upload  # takes the body in pieces
        self.head = head  # a GET that may be asked by HEAD, as at a node
        self.check = check  # the parts of the path, before the body is read; it raises a SollolError
        self.admin = admin  # a key needs admin rights, whatever the body says


INFERENCE: dict[tuple[str, str], Route] = {
    ("POST", tongue.path): Route(tongue=tongue) for tongue in (*TONGUES, *EMBED_TONGUES)
}
ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/"): Route(fanout.root, public=True, head=True),
    ("GET", "/api/version"): Route(fanout.version, head=True),
    ("GET", "/api/status"): Route(fanout.first_answer),
    ("GET", "/api/tags"): Route(fanout.tags, head=True),
    ("GET", "/api/ps"): Route(fanout.ps),
    ("GET", "/v1/models"): Route(fanout.models),
    ("POST", "/api/show"): Route(fanout.show),
    ("POST", "/api/me"): Route(fanout.first_answer),
    ("POST", "/api/signout"): Route(fanout.first_answer),
    ("POST", "/api/pull"): Route(models.pull, admin=True),
    ("POST", "/api/push"): Route(models.push, admin=True),
    ("POST", "/api/create"): Route(models.create, admin=True),
    ("POST", "/api/copy"): Route(models.copy, admin=True),
    ("DELETE", "/api/delete"): Route(models.delete, admin=True),
    ("GET", "/sollol/health"): Route(own.health, public=True, head=True),
    ("GET", "/sollol/ready"): Route(own.ready, public=True, head=True),
    ("GET", "/sollol/snapshot"): Route(own.snapshot, head=True),
    ("GET", "/metrics"): Route(own.metrics),
    ("GET", "/sollol/nodes"): Route(own.nodes, head=True),
    ("GET", "/sollol/openapi.json"): Route(own.openapi, head=True),
    ("GET", "/dashboard"): Route(dashboard.redirected, public=True, head=True),
    ("GET", "/dashboard/"): Route(dashboard.index, head=True),
    ("GET", "/dashboard/api/snapshot"): Route(own.snapshot, head=True),
    ("GET", "/dashboard/api/events"): Route(dashboard.events),
}
PASSED = Route(passing.pass_on)  # what is not in these tables
PATTERNS: list[tuple[str, re.Pattern[str], Route]] = [
    ("GET", re.compile(r"/v1/models/(.+)"), Route(fanout.model)),
    ("HEAD", models.BLOB, Route(models.has_blob, check=models.check_digest)),
    ("POST", models.BLOB, Route(models.upload_blob, upload=True, admin=True, check=models.check_digest)),
    ("GET", own.EXPLAIN, Route(own.explain)),
    ("GET", dashboard.EXPLAIN, Route(own.explain)),
    ("GET", dashboard.SERIES, Route(dashboard.series)),
    ("GET", own.QUEUE, Route(own.queue)),
]
