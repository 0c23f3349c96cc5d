"""Map methods and paths to handlers."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from sollol.gateway.formats.api_formats import CHAT_FORMATS, EMBED_FORMATS, ApiFormat
from sollol.gateway.inference import passthrough
from sollol.gateway.routes import actions, admin, blobs, dashboard, lists, model_state, models


class Route:
    """An inference in an API format, answered by callbacks; or a handler, which runs as a task."""

    __slots__ = ("admin", "api_format", "check", "handler", "head", "public", "upload")

    def __init__(
        self,
        handler: Callable[..., Coroutine[Any, Any, None]] | None = None,
        api_format: ApiFormat | None = None,
        public: bool = False,
        upload: bool = False,
        head: bool = False,
        admin: bool = False,
        check: Callable[..., None] | None = None,
    ) -> None:
        self.handler = handler
        self.api_format = api_format
        self.public = public  # needs no key
        self.upload = upload  # its body is read in pieces
        self.head = head  # a GET that also answers HEAD
        self.check = check  # of the parts of the path, before the body is read; raises a SollolError
        self.admin = admin  # needs a key with admin rights


INFERENCE: dict[tuple[str, str], Route] = {
    ("POST", each.path): Route(api_format=each) for each in (*CHAT_FORMATS, *EMBED_FORMATS)
}
ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/"): Route(lists.root, public=True, head=True),
    ("GET", "/api/version"): Route(lists.version, head=True),
    ("GET", "/api/status"): Route(lists.first_answer),
    ("GET", "/api/tags"): Route(lists.tags, head=True),
    ("GET", "/api/ps"): Route(lists.ps),
    ("GET", "/v1/models"): Route(lists.models),
    ("POST", "/api/show"): Route(lists.show),
    ("POST", "/api/me"): Route(lists.first_answer),
    ("POST", "/api/signout"): Route(lists.first_answer),
    ("POST", "/api/pull"): Route(models.pull, admin=True),
    ("POST", "/api/push"): Route(models.push, admin=True),
    ("POST", "/api/create"): Route(models.create, admin=True),
    ("POST", "/api/copy"): Route(models.copy, admin=True),
    ("DELETE", "/api/delete"): Route(models.delete, admin=True),
    ("GET", "/sollol/health"): Route(admin.health, public=True, head=True),
    ("GET", "/api/health"): Route(admin.health, public=True, head=True),  # its path in SOLLOL 0.9
    ("GET", "/sollol/ready"): Route(admin.ready, public=True, head=True),
    ("GET", "/sollol/snapshot"): Route(admin.snapshot, head=True),
    ("GET", "/metrics"): Route(admin.metrics, public=True, head=True),  # its key: [metrics]
    ("GET", "/sollol/nodes"): Route(admin.nodes, head=True),
    ("GET", "/sollol/plan"): Route(admin.plan, head=True),
    ("GET", "/sollol/models"): Route(model_state.inventory, head=True),
    ("POST", "/sollol/models/free"): Route(model_state.free, admin=True),
    ("POST", "/sollol/models/pull"): Route(model_state.pull, admin=True),
    ("POST", "/sollol/models/sync"): Route(model_state.sync, admin=True),
    ("GET", "/sollol/openapi.json"): Route(admin.openapi, head=True),
    ("GET", "/dashboard"): Route(dashboard.redirected, public=True, head=True),
    ("GET", "/dashboard/"): Route(dashboard.index, public=True, head=True),
    ("POST", "/dashboard/login"): Route(dashboard.login),
    ("POST", "/dashboard/logout"): Route(dashboard.logout),
    ("GET", "/dashboard/api/snapshot"): Route(dashboard.snapshot, head=True),
    ("GET", "/dashboard/api/events"): Route(dashboard.events),
    ("GET", "/dashboard/api/history"): Route(dashboard.history),
    ("GET", "/dashboard/api/settings"): Route(dashboard.settings),
}
PASSTHROUGH = Route(passthrough.pass_on)  # all other paths
PATTERNS: list[tuple[str, re.Pattern[str], Route]] = [
    ("GET", re.compile(r"/v1/models/(.+)"), Route(lists.model)),
    ("HEAD", blobs.BLOB, Route(blobs.has_blob, check=blobs.check_digest)),
    ("POST", blobs.BLOB, Route(blobs.upload_blob, upload=True, admin=True, check=blobs.check_digest)),
    ("GET", admin.EXPLAIN, Route(admin.explain)),
    ("GET", dashboard.EXPLAIN, Route(admin.explain)),
    ("GET", dashboard.SERIES, Route(dashboard.series)),
    ("GET", admin.QUEUE, Route(admin.queue)),
    ("POST", actions.DRAIN, Route(actions.drain, admin=True)),
    ("POST", actions.RESTART, Route(actions.restart, admin=True)),
    ("POST", actions.UNLOAD, Route(actions.unload, admin=True)),
    ("POST", model_state.KEEP, Route(model_state.keep, admin=True)),
    ("POST", actions.CANCEL, Route(actions.cancel, admin=True)),
    ("POST", actions.MODE, Route(actions.mode, admin=True)),
]
