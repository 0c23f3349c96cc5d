"""Describe simulated models and nodes by plain values; the same spec gives the same node anywhere.

Speeds are per second and mean one request alone. None is instant, which suits tests that do not measure time. A digest
that is not given is the hash of the name, so a model is the same on all nodes.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def full_name(name: str) -> str:
    """Return a model name with its tag; `:latest` if it has none."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def sha256(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def blob_of(model: ModelSpec) -> str:
    """Return the digest of a model's weights."""
    return sha256(f"blob of {model.digest}")


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model on disk.

    Attributes:
        mean_words: Usual length of an answer; inf never stops by itself.
        continues: Its template goes on with a last assistant message. Most open a new turn and repeat everything.
        dim: Width of its vectors, or for a chat model of its layers.
        words: The words of its answers, one a token, in place of the usual ones.
    """

    name: str
    kind: Literal["chat", "embed"] = "chat"
    size_bytes: int = 4_000_000_000
    dim: int = 64
    context_length: int = 4096
    family: str = ""
    parameters: str = ""
    quantization: str = "F16"
    continues: bool = False
    tools: bool = False
    thinking: bool = False
    mean_words: float = 60.0
    words: tuple[str, ...] = ()
    digest: str = ""
    system: str = ""
    modified_at: str = "2026-01-01T00:00:00.000000001Z"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", full_name(self.name))
        if not self.family:
            object.__setattr__(self, "family", "bert" if self.kind == "embed" else "llama")
        if not self.parameters:
            object.__setattr__(self, "parameters", _parameters(self.size_bytes))
        if not self.digest:
            object.__setattr__(self, "digest", sha256(self.name))
        object.__setattr__(self, "words", tuple(self.words))  # JSON has lists

    @property
    def is_embed(self) -> bool:
        """Return whether it makes vectors."""
        return self.kind == "embed"

    @cached_property
    def capabilities(self) -> list[str]:
        """Return its capabilities as `/api/show` lists them."""
        if self.is_embed:
            return ["embedding"]
        extra = [word for word, has in (("tools", self.tools), ("thinking", self.thinking)) if has]
        return ["completion", *extra]

    def renamed(self, name: str) -> ModelSpec:
        """Return the same model under another name."""
        return replace(self, name=name)

    def details(self) -> dict[str, Any]:
        """Return its `details` in `/api/tags`, `/api/ps` and `/api/show`."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameters,
            "quantization_level": self.quantization,
        }

    def tag(self) -> dict[str, Any]:
        """Return its entry in `/api/tags`."""
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": self.modified_at,
            "size": self.size_bytes,
            "digest": self.digest,
            "details": self.details() | {"context_length": self.context_length, "embedding_length": self.dim},
            "capabilities": self.capabilities,
        }


def _parameters(size_bytes: int) -> str:
    count = size_bytes / 2
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f}{unit}" if unit != "K" else f"{count / scale:.0f}K"
    return str(int(count))


DEFAULT_MODELS = (
    ModelSpec("llama3.2", size_bytes=2_000_000_000, parameters="3.2B", quantization="Q4_K_M", tools=True),
    ModelSpec("nomic-embed-text", "embed", 274_000_000, context_length=2048, family="nomic-bert", parameters="137M"),
)


@dataclass(frozen=True)
class NodeSpec:
    """Describe one node: its address, its models, its speed.

    An item of an embedding costs 1/`embed_items_per_s` and its bytes / `embed_bytes_per_s`.

    Attributes:
        latency_s: Round trip of the network (simulated transport only).
        parallel_gain: Share that each further slot adds to the total token rate. Four on a CPU add a sixth (measured):
            0.055; GPUs have more.
        cpu_slowdown: Factor for a model whose weights are not in VRAM.
        vram_bytes: Size of the GPU memory; None is enough for everything.
        ram_bytes: Size of the other memory; a model larger than both together is refused. None is enough for all.
        vectors: "cheap" answers with vectors from a small table, for clusters whose vectors are not used.
        prefill_batch: Tokens after which a runner in prefill notices that its client left (512 in today's nodes).
            None reads on to the end.
        models_dir: A folder for the files of its models, as Ollama keeps them. With it, models are pushed to registries
            and pulled from them for real, at `pull_bytes_per_s`.
        renders: False for a node too old for `_debug_render_only`.
    """

    host: str = "127.0.0.1"
    port: int = 11434
    models: tuple[ModelSpec, ...] = DEFAULT_MODELS
    embed_items_per_s: float | None = None
    embed_bytes_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    load_bytes_per_s: float | None = None
    num_parallel: int = 1
    prefill_batch: int | None = None
    parallel_gain: float = 0.055
    max_loaded_models: int = 3
    max_queue: int = 512
    vram_bytes: int | None = None
    ram_bytes: int | None = None
    cpu_slowdown: float = 20.0
    num_ctx: int = 4096
    keep_alive_s: float = 300.0
    overhead_s: float = 0.0
    latency_s: float = 0.0
    jitter: float = 0.0
    version: str = "0.33.0"
    renders: bool = True
    seed: int = 0
    vectors: Literal["hashed", "cheap"] = "hashed"
    loaded: tuple[str, ...] = ()
    registry: tuple[ModelSpec, ...] = ()
    pull_bytes_per_s: float | None = None
    models_dir: str = ""

    @property
    def key(self) -> str:
        """Return "host:port"."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NodeSpec:
        """Return the spec that `to_json` was given. Raises TypeError for an unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise TypeError(f"NodeSpec has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        given = dict(data)
        for name in {"models", "registry"} & given.keys():
            given[name] = tuple(
                m if isinstance(m, ModelSpec) else ModelSpec(**({"name": m} if isinstance(m, str) else m))
                for m in given[name]
            )
        if "loaded" in given:
            given["loaded"] = tuple(given["loaded"])
        return cls(**given)
