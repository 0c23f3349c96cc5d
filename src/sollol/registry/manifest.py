"""Parse the manifest of a model, within bounds. Pure."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, NamedTuple

import msgspec

MOST_BYTES: Final = 8 * 1024 * 1024  # a model of ten thousand tensors has three
MOST_LAYERS: Final = 20_000
TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
TENSOR: Final = "application/vnd.ollama.image.tensor"  # the type of the layers of a safetensors model

Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class BadManifest(ValueError):
    """A manifest that cannot be used, with the reason."""


class Layer(msgspec.Struct, frozen=True):
    """One blob of a model."""

    digest: Digest
    size: Size
    mediaType: str = ""  # noqa: N815 - the name in the file


class _Config(msgspec.Struct, frozen=True):
    digest: str = ""
    size: Size = 0
    mediaType: str = ""  # noqa: N815 - the name in the file


class _ManifestFile(msgspec.Struct, frozen=True):
    layers: list[Layer]
    config: _Config = _Config()


class Manifest(NamedTuple):
    """A manifest: its bytes, their digest, and the blobs of the model by digest with their sizes."""

    raw: bytes
    digest: str
    blobs: dict[str, int]
    needs_mlx: bool

    @property
    def size(self) -> int:
        """The bytes of all blobs."""
        return sum(self.blobs.values())


def parse_manifest(raw: bytes) -> Manifest:
    """Return the manifest in `raw`.

    Raises:
        BadManifest: It is too large, not a manifest, or names one blob with two sizes.
    """
    if len(raw) > MOST_BYTES:
        raise BadManifest(f"the manifest has {len(raw):,} bytes; at most {MOST_BYTES:,} are expected")
    try:
        found = msgspec.json.decode(raw, type=_ManifestFile)
        config = [msgspec.convert(_as_layer(found.config), Layer)] if found.config.digest else []
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadManifest(f"this is no manifest: {error}") from None
    layers = [*found.layers, *config]
    if len(layers) > MOST_LAYERS:
        raise BadManifest(f"the manifest has {len(layers):,} layers; at most {MOST_LAYERS:,} are expected")
    blobs: dict[str, int] = {}
    for layer in layers:
        if blobs.setdefault(layer.digest, layer.size) != layer.size:
            raise BadManifest(f"the manifest names {layer.digest} with two sizes")
    tensors = any(layer.mediaType == TENSOR for layer in layers)
    return Manifest(raw, f"sha256:{hashlib.sha256(raw).hexdigest()}", blobs, tensors)


def spelled_as(manifest: Manifest, digest: str) -> Manifest:
    """Return a pushed manifest with the bytes that have a digest; unchanged if no known spelling has it.

    Ollama's `create` writes a line end behind a manifest, and its `push` does not send it.
    """
    for raw in (manifest.raw, manifest.raw + b"\n"):
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest:
            return manifest._replace(raw=raw, digest=digest)
    return manifest


def _as_layer(config: _Config) -> dict[str, Any]:
    return {"digest": config.digest, "size": config.size, "mediaType": config.mediaType}
