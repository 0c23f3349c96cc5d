"""Keep models in a folder as Ollama does: blobs by digest, manifests by host, namespace, model and tag."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from sollol.sim.models import ModelSpec, full_name

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MODEL_TYPE = "application/vnd.ollama.image.model"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
DEFAULT_HOST = "registry.ollama.ai"
_BLOCK = 1024 * 1024


class RegistryName(NamedTuple):
    """A model's full name, in the parts of Ollama."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def path(self) -> str:
        """Return the name in the paths of a registry, without the tag."""
        return f"{self.namespace}/{self.model}"

    @property
    def url(self) -> str:
        """Return the base URL, as `insecure` makes it."""
        return f"http://{self.host}/v2/{self.path}"

    @property
    def shortest(self) -> str:
        """Return the name without Ollama's defaults."""
        where = "" if self.namespace == "library" else f"{self.namespace}/"
        if self.host != DEFAULT_HOST:
            where = f"{self.host}/{self.namespace}/"
        return f"{where}{self.model}:{self.tag}"


def parse_name(name: str) -> RegistryName:
    """Split a name as Ollama does: host/namespace/model:tag, with its defaults for missing parts."""
    name = name.partition("://")[2] or name
    path, _, tag = full_name(name).rpartition(":")
    parts = path.split("/")
    model = parts.pop()
    namespace = parts.pop() if parts else "library"
    return RegistryName("/".join(parts) or DEFAULT_HOST, namespace, model, tag)


class OllamaStore:
    """The folder of a node's models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.folder / "blobs" / digest.replace(":", "-")

    def manifest_file(self, name: RegistryName) -> Path:
        """Return the file of a manifest."""
        return self.folder.joinpath("manifests", *name)

    def manifest(self, name: RegistryName) -> bytes | None:
        """Return the manifest of a model, None if it is not here."""
        file = self.manifest_file(name)
        return file.read_bytes() if file.is_file() else None

    def names(self) -> list[RegistryName]:
        """Return the names of all models."""
        root = self.folder / "manifests"
        return [RegistryName(*file.relative_to(root).parts) for file in sorted(root.glob("*/*/*/*"))]

    def write_manifest(self, name: RegistryName, raw: bytes) -> None:
        """Write the manifest of a model."""
        file = self.manifest_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)

    def make(self, model: ModelSpec) -> ModelSpec:
        """Write the files of a simulated model, and return it with the digest of its manifest."""
        name = parse_name(model.name)
        raw = self.manifest(name)
        if raw is None:
            weights, digest = self.folder / "blobs" / ".new", hashlib.sha256()
            with open(weights, "wb") as out:
                for piece in _content(model):
                    out.write(piece)
                    digest.update(piece)
            found = f"sha256:{digest.hexdigest()}"
            weights.rename(self.blob(found))
            described = json.dumps({**asdict(replace(model, digest="-")), "model_format": "gguf"}).encode()
            config = f"sha256:{hashlib.sha256(described).hexdigest()}"
            self.blob(config).write_bytes(described)
            layers = [{"mediaType": MODEL_TYPE, "digest": found, "size": model.size_bytes}]
            raw = _encode(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST_TYPE,
                    "config": {"mediaType": CONFIG_TYPE, "digest": config, "size": len(described)},
                    "layers": layers,
                }
            )
            raw += b"\n"  # as Ollama's `create`; its `push` does not send it
            self.write_manifest(name, raw)
        return replace(model, digest=hashlib.sha256(raw).hexdigest())

    def read(self, name: RegistryName) -> ModelSpec:
        """Return the simulated model that a manifest and its config describe."""
        raw = self.manifest(name)
        assert raw is not None
        config = json.loads(self.blob(json.loads(raw)["config"]["digest"]).read_bytes())
        del config["model_format"]
        return ModelSpec(**{**config, "name": name.shortest, "digest": hashlib.sha256(raw).hexdigest()})

    def copy(self, source: RegistryName, target: RegistryName) -> None:
        """Give a model a second name."""
        raw = self.manifest(source)
        if raw is not None:
            self.write_manifest(target, raw)

    def delete(self, name: RegistryName) -> None:
        """Delete a model, and the blobs that no other model has."""
        raw = self.manifest(name)
        if raw is None:
            return
        self.manifest_file(name).unlink()
        kept = {digest for other in self.names() for digest in digests_of(json.loads(self.manifest(other) or b""))}
        for digest in digests_of(json.loads(raw)):
            if digest not in kept:
                self.blob(digest).unlink(missing_ok=True)


def digests_of(manifest: dict[str, Any]) -> list[str]:
    """Return the digests of the layers and the config of a manifest, in the order of Ollama's client."""
    return [layer["digest"] for layer in (*manifest["layers"], manifest["config"])]


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _content(model: ModelSpec) -> Iterator[bytes]:
    """Yield the bytes of the weights: the same for the same model, other for each part of it."""
    block = random.Random(model.name).randbytes(min(_BLOCK, model.size_bytes))
    left, number = model.size_bytes, 0
    while left > 0:
        piece = number.to_bytes(8, "little") + block[8:]
        yield piece[:left]
        left -= len(piece)
        number += 1
