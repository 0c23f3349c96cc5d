"""Hold the rights to push and pull models: a secret namespace in the path, and an end in time."""

from __future__ import annotations

import hmac
import secrets
from typing import Any, Final

from sollol.registry.manifest import Manifest

KEPT_MOST: Final = 20  # models of a key whose blobs can be requested
LIFE_S: Final = 24 * 3600.0  # of a one-time path whose transfer does not end


class Grant:
    """A right to one model, or with a key to all models of the upstream registry.

    Attributes:
        namespace: The secret in the path.
        name: The model as `model:tag`; "" for all.
        pushes: The model may be pushed here.
        upstream: Its namespace at the upstream registry, from which it may be fetched; "" if it may not.
        size_most: Bytes that may be pushed.
        digest: The digest of the manifest as the pushing node lists it; "" if it is unknown.
        manifest: The manifest that is served, once there is one.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        ends_s: float,
        *,
        pushes: bool = False,
        upstream: str = "",
        size_most: int = 0,
        digest: str = "",
    ) -> None:
        self.namespace = namespace
        self.name = name
        self.ends_s = ends_s
        self.pushes = pushes
        self.upstream = upstream
        self.size_most = size_most
        self.digest = digest
        self.manifest: Manifest | None = None
        self.pushed = 0  # bytes that were uploaded
        self.held: set[str] = set()  # blobs that stay until the grant ends
        self._kept: dict[str, Manifest] = {}  # of a key: the last manifest of each model

    def covers(self, model: str, tag: str) -> bool:
        """Check that the grant is for a model."""
        return not self.name or self.name == f"{model}:{tag}"

    def keep(self, model: str, manifest: Manifest) -> None:
        """Record the manifest by which the blobs of a model are requested."""
        if self.name:
            self.manifest = manifest
        else:
            self._kept.pop(model, None)
            self._kept[model] = manifest
            while len(self._kept) > KEPT_MOST:
                del self._kept[next(iter(self._kept))]

    def manifest_of(self, model: str) -> Manifest | None:
        """Return the recorded manifest of a model."""
        return self.manifest or self._kept.get(model)

    def __repr__(self) -> str:  # the namespace is a secret
        return f"<Grant {self.name or 'all models'}>"


class Grants:
    """The grants of one registry."""

    def __init__(self, key: str = "") -> None:
        """Begin with the permanent grant of `key`, if there is one."""
        self._found: list[Grant] = []
        if key:
            self._found.append(Grant(key, "", float("inf"), upstream="library"))

    def issue(self, name: str, now_s: float, **more: Any) -> Grant:
        """Return a new grant with a secret namespace. `more`: further arguments of `Grant`."""
        grant = Grant(secrets.token_hex(20), name, now_s + LIFE_S, **more)
        self._found.append(grant)
        return grant

    def find(self, namespace: str, now_s: float) -> Grant | None:
        """Return the grant of a namespace; all are compared, each in constant time."""
        self._found = [grant for grant in self._found if grant.ends_s > now_s]
        sent, found = namespace.encode(), None
        for grant in self._found:
            if hmac.compare_digest(grant.namespace.encode(), sent):
                found = grant
        return found

    def revoke(self, grant: Grant) -> None:
        """End a grant."""
        if grant in self._found:
            self._found.remove(grant)

    def all(self) -> list[Grant]:
        """Return the grants."""
        return list(self._found)
