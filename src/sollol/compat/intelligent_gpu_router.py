"""Where a model would run on a GPU, by what the nodes report. Calls of a pool take `requires_gpu=True`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sollol.compat.background import wait_for
from sollol.compat.gpu_controller import SOLLOLGPUController
from sollol.compat.http_calls import call_async
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import canonical_model
from sollol.errors import SollolError

MB: Final = 1024 * 1024
TAGS_S: Final = 5.0


class IntelligentGPURouter:
    """Compare the nodes of a pool, of a registry or of a list of URLs.

    Ollama reports the memory of loaded models, not what is free. So a node suits a model that is on its GPU now, or
    that once had a model there.
    """

    def __init__(self, registry: Any = None, vram_monitor: Any = None, safety_margin: float = 0.8) -> None:
        self.safety_margin = safety_margin
        self.vram_safety_margin = safety_margin
        self.vram_monitor = vram_monitor
        self.registry = registry
        self._controller = SOLLOLGPUController(registry, warm=False)

    def set_registry(self, registry: Any) -> None:
        """Set the nodes: a pool, an object with `nodes`, or a list."""
        self.registry = registry
        self._controller.set_registry(registry)

    def set_vram_monitor(self, vram_monitor: Any) -> None:
        """Keep a monitor; the nodes are read without it."""
        self.vram_monitor = vram_monitor

    @property
    def known_model_sizes(self) -> dict[str, float]:
        """The models on the nodes' disks with their sizes in MB."""

        async def read() -> list[Any]:
            return await asyncio.gather(
                *(call_async(node.url, "/api/tags", timeout_s=TAGS_S) for node in self._nodes()), return_exceptions=True
            )

        sizes: dict[str, float] = {}
        for found in wait_for(read()):
            models = found.get("models", []) if isinstance(found, Mapping) else []
            sizes |= {model["name"]: model["size"] / MB for model in models if "name" in model and "size" in model}
        return sizes

    def get_model_size(self, model_name: str) -> float:
        """Return the size of a model in MB, 0.0 if no node has it."""
        return self.known_model_sizes.get(canonical_model(model_name), 0.0)

    def can_fit_on_gpu(self, node_url: Any, model_name: str) -> tuple[bool, str]:
        """Return whether the model is, or may be, on a GPU of the node, and why."""
        name, status = canonical_model(model_name), self._controller.get_model_status(node_url)
        if "error" in status:
            return False, f"the node does not answer: {status['error']}"
        held = {canonical_model(model["name"]): model for model in status["models"]}
        if name in held:
            place = held[name]["location"]
            return place in ("GPU", "partial"), f"it is there now, on the {place}"
        on_gpu = [model["name"] for model in status["models"] if model["vram_mb"] > 0]
        if on_gpu:
            return True, f"the node has a GPU, with {', '.join(on_gpu)} on it; Ollama makes room"
        return False, "no model was seen on a GPU there"

    def can_fit_on_node(self, node: Any, model_name: str) -> tuple[bool, str]:
        """Do the same for a node of a pool or a registry."""
        return self.can_fit_on_gpu(_endpoint(node), model_name)

    def find_suitable_nodes(self, model_name: str) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether there are suitable nodes, and these, with `node`, `url` and `reason`."""
        found = []
        for node in self._given():
            endpoint = _endpoint(node)
            good, why = self.can_fit_on_gpu(endpoint, model_name)
            if good:
                found.append({"node": node, "url": endpoint.url, "reason": why})
        found.sort(key=lambda row: not row["reason"].startswith("it is there"))
        return bool(found), found

    def route_model(self, model_name: str) -> dict[str, Any]:
        """Return `node`, `target` ("GPU" or "CPU") and `reason` for a model."""
        good, suitable = self.find_suitable_nodes(model_name)
        if good:
            best = suitable[0]
            route = {"node": best["node"], "target": "GPU", "reason": best["reason"], "can_use_gpu": True}
            return {"model": model_name, **route, "all_suitable": suitable}
        for node in self._given():
            if "error" not in self._controller.get_model_status(_endpoint(node)):
                why = "no model was seen on a GPU of any node"
                return {"model": model_name, "node": node, "target": "CPU", "reason": why, "can_use_gpu": False}
        return {
            "model": model_name, "node": None, "target": "CPU", "reason": "no node answers", "can_use_gpu": False
        }  # fmt: skip

    def get_cluster_capacity(self) -> dict[str, Any]:
        """Return the numbers of nodes and of those with a GPU, and the memory of models on GPUs in MB."""
        used = [
            sum(model["vram_mb"] for model in self._controller.get_model_status(node).get("models", []))
            for node in self._nodes()
        ]
        return {
            "total_nodes": len(used),
            "gpu_nodes": sum(mb > 0 for mb in used),
            "used_vram_mb": sum(used),
            "total_vram_mb": 0,
            "free_vram_mb": 0,
            "known": False,  # Ollama reports neither the total nor the free memory
        }

    def optimize_cluster(self, priority_models: Sequence[str]) -> dict[str, Any]:
        """Bring each model onto one GPU at least, see `SOLLOLGPUController.optimize_cluster`."""
        return self._controller.optimize_cluster(list(priority_models))

    def print_cluster_report(self) -> None:
        """Print what is loaded where."""
        self._controller.print_cluster_status()

    def _given(self) -> list[Any]:
        nodes = getattr(self.registry, "nodes", self.registry)
        if isinstance(nodes, Mapping):
            nodes = nodes.values()
        return list(nodes) if isinstance(nodes, Iterable) else []

    def _nodes(self) -> list[Endpoint]:
        return [_endpoint(node) for node in self._given()]


def _endpoint(node: Any) -> Endpoint:
    try:
        return parse_endpoint(node)
    except SollolError:
        return parse_endpoint(node.url)
