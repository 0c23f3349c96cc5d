"""Which handler answers which request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sollol.gateway import embed, fanout, infer, models, own


class Route:
    __slots__ = ("direct", "handler", "public", "upload")

    def __init__(
        self, handler: Callable[..., Any], direct: bool = False, public: bool = False, upload: bool = False
    ) -> None:
        self.handler = handler
        self.direct = direct  # called in the turn of the loop in which the request came; else a task
        self.public = public  # asked without a key
        self.upload = upload  # takes the body in pieces


INFERENCE: dict[tuple[str, str], Route] = {
    ("POST", path): Route(handler, direct=True) for path, handler in (infer.ROUTES | embed.ROUTES).items()
}
ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/"): Route(fanout.root, public=True),
    ("GET", "/api/version"): Route(fanout.version),
    ("GET", "/api/status"): Route(fanout.first_answer),
    ("GET", "/api/tags"): Route(fanout.tags),
    ("GET", "/api/ps"): Route(fanout.ps),
    ("GET", "/v1/models"): Route(fanout.models),
    ("POST", "/api/show"): Route(fanout.show),
    ("POST", "/api/me"): Route(fanout.first_answer),
    ("POST", "/api/signout"): Route(fanout.first_answer),
    ("POST", "/api/pull"): Route(models.pull),
    ("POST", "/api/push"): Route(models.push),
    ("POST", "/api/create"): Route(models.create),
    ("POST", "/api/copy"): Route(models.copy),
    ("DELETE", "/api/delete"): Route(models.delete),
    ("GET", "/sollol/health"): Route(own.health, public=True),
    ("GET", "/sollol/ready"): Route(own.ready, public=True),
    ("GET", "/sollol/snapshot"): Route(own.snapshot),
    ("GET", "/sollol/nodes"): Route(own.nodes),
    ("GET", "/sollol/openapi.json"): Route(own.openapi),
}
PATTERNS: list[tuple[str, re.Pattern[str], Route]] = [
    ("GET", re.compile(r"/v1/models/(.+)"), Route(fanout.model)),
    ("HEAD", models.BLOB, Route(models.has_blob)),
    ("POST", models.BLOB, Route(models.upload_blob, upload=True)),
    ("GET", own.EXPLAIN, Route(own.explain)),
    ("GET", own.QUEUE, Route(own.queue)),
]
