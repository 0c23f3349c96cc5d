"""Parse the paths, ranges and names of the registry's protocol. Pure.

A path is `/v2/NAMESPACE/MODEL/…`. Ollama's client has no way to send a key, but it puts the namespace of a model's name
into each path: so the namespace is the key. Parts are as strict as Ollama's own names, thus none can lead out of a
folder.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

PART: Final[re.Pattern[str]] = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
NAMESPACE: Final[re.Pattern[str]] = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII)
DIGEST: Final[re.Pattern[str]] = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_PATH: Final = re.compile(r"/v2/([^/]+)/([^/]+)/(manifests|blobs)/(?:(uploads)/([^/]*)|([^/]+))")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]{1,18}))?", re.ASCII)

Kind = Literal["manifest", "blob", "uploads", "upload"]


class RegistryPath(NamedTuple):
    """The object of a request. `reference`: a tag, a digest or the id of an upload, "" for `uploads`."""

    kind: Kind
    namespace: str
    model: str
    reference: str


def parse_path(path: str) -> RegistryPath | None:
    """Return the object of a path, None for a path that the registry does not have."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    namespace, model, what, uploads, upload, reference = found.groups()
    if not NAMESPACE.fullmatch(namespace) or not PART.fullmatch(model):
        return None
    if what == "manifests":
        good = reference is not None and PART.fullmatch(reference) is not None
        return RegistryPath("manifest", namespace, model, reference) if good else None
    if uploads:
        if upload and not PART.fullmatch(upload):
            return None
        return RegistryPath("upload" if upload else "uploads", namespace, model, upload)
    return RegistryPath("blob", namespace, model, reference) if DIGEST.fullmatch(reference) else None


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte of a `Range` and the one behind its last; None if it cannot be satisfied."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or size <= 0:
        return None
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if last and int(last) else None
    start, stop = int(first), int(last) + 1 if last else size
    return (start, min(stop, size)) if start < min(stop, size) else None


def parse_content_range(header: str) -> tuple[int, int] | None:
    """Return the first byte of an upload's part and the one behind its last; None if there is none."""
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if found is None:
        return None
    start, stop = int(found[1]), int(found[2]) + 1
    return (start, stop) if start < stop else None


def split_model(name: str) -> tuple[str, str, str]:
    """Return the namespace, model and tag of a canonical model name; "library" where it has no namespace."""
    path, _, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", "latest")
    namespace, _, model = path.rpartition("/")
    return namespace or "library", model, tag
