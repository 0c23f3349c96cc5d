"""Models over several machines: which would need it. Spreading one is not supported yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from sollol.errors import NotSupported

LARGE: Final = 40.0  # billions of parameters: at 4 bits more than the 24 GB of a large consumer GPU
_SIZE: Final = re.compile(r"(?<![\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])")
ABSENT: Final = "one model over several machines (llama.cpp RPC) is not supported yet"
INSTEAD: Final = "use a node with enough memory, or a smaller quantisation, through OllamaPool"


def absent(what: str) -> NotSupported:
    """Return the error of a call that needs one model over several machines."""
    return NotSupported(f"{what}: {ABSENT}; {INSTEAD}")


def billions(model: str) -> float:
    """Return the billions of parameters that the name of a model has ("8x7b": 56), 0.0 if it has none."""
    found = _SIZE.findall(model.lower())
    return max((float(times or 1) * float(size) for times, size in found), default=0.0)


def needs_partitioning(model: str) -> bool:
    """Check that a model is too large for one usual machine, by the size in its name."""
    return billions(model) >= LARGE


@dataclass
class LayerPartition:
    """Layers of a model on one node."""

    node_url: str
    start_layer: int
    end_layer: int
    layer_count: int


@dataclass
class ModelSpec:
    """The layers of a model and their memory in MB."""

    name: str
    total_layers: int
    memory_per_layer_mb: float
    min_memory_mb: float

    @property
    def total_memory_mb(self) -> float:
        """The memory of all layers in MB."""
        return self.total_layers * self.memory_per_layer_mb


MODEL_SPECS: Final[dict[str, ModelSpec]] = {}


class LayerPartitioner:
    """Not supported yet."""

    @staticmethod
    def calculate_partitions(model_spec: ModelSpec, nodes: list[Any], strategy: str = "even") -> list[LayerPartition]:
        """Raise NotSupported."""
        raise absent("LayerPartitioner")


class NodeCluster:
    """Not supported yet: constructing one raises NotSupported."""

    def __init__(self, name: str, nodes: list[Any], model: str, partitioning_strategy: str = "even") -> None:
        raise absent(f"NodeCluster({name!r}) for {model}")
