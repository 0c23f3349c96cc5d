"""A registry of nodes that a program checks itself. A pool probes its nodes in the background."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from sollol.compat.node_cluster import absent
from sollol.compat.ollama_node import OllamaNode
from sollol.discovery import discover_ollama_nodes
from sollol.errors import BadInput
from sollol.files import read_bounded
from sollol.workload.validation import short

FILE_MOST = 1024 * 1024
CHECKS_AT_ONCE = 32


class NodeRegistry:
    """Nodes by URL."""

    def __init__(self) -> None:
        self.nodes: dict[str, OllamaNode] = {}
        self.clusters: dict[str, Any] = {}  # always empty

    def add_node(self, url: str, name: str | None = None, priority: int = 5, check_health: bool = True) -> OllamaNode:
        """Add a node, or return the one that is there; with `check_health` it is probed."""
        made = OllamaNode(url, name, priority)
        node = self.nodes.setdefault(made.url, made)
        if check_health and node.health_check():
            node.probe_capabilities()
        return node

    def remove_node(self, url: str) -> bool:
        """Remove a node; return False if it was not there."""
        return self.nodes.pop(OllamaNode(url).url, None) is not None

    def discover_nodes(
        self, cidr: str = "192.168.1.0/24", port: int = 11434, timeout: float = 2.0, max_workers: int = 50
    ) -> list[OllamaNode]:
        """Search a private network and add the nodes that are found; return them. `timeout` in seconds."""
        found = discover_ollama_nodes(timeout, subnets=[cidr], ports=[port])
        return [self.add_node(node.get("url", f"http://{node['host']}:{node['port']}")) for node in found]

    def health_check_all(self) -> dict[str, bool]:
        """Probe all nodes at once; return the results by URL."""
        with ThreadPoolExecutor(CHECKS_AT_ONCE) as workers:
            results = list(workers.map(OllamaNode.health_check, self.nodes.values()))
        return dict(zip(self.nodes, results, strict=True))

    def get_healthy_nodes(self) -> list[OllamaNode]:
        """Return the nodes whose last probe or request succeeded."""
        return [node for node in self.nodes.values() if node.is_healthy]

    def get_gpu_nodes(self) -> list[OllamaNode]:
        """Return the healthy nodes with a model on a GPU at their last probe."""
        return [node for node in self.get_healthy_nodes() if node.capabilities.has_gpu]

    def get_node_by_url(self, url: str) -> OllamaNode | None:
        """Return a node, None if it is not there."""
        return self.nodes.get(OllamaNode(url).url)

    def get_worker_for_model(self, model: str, prefer_cluster: bool = True) -> OllamaNode | None:
        """Return the healthy node with the model in memory, else the one with the lowest load score."""
        nodes = self.get_healthy_nodes()
        return min(
            nodes,
            key=lambda node: (model not in node.capabilities.models_loaded, node.calculate_load_score()),
            default=None,
        )

    def create_cluster(
        self, name: str, node_urls: Sequence[str], model: str, partitioning_strategy: str = "even"
    ) -> NoReturn:
        """Raise NotSupported: one model over several machines."""
        raise absent(f"create_cluster({name!r}) for {model}")

    def remove_cluster(self, name: str) -> bool:
        """Return False: there are no clusters."""
        return False

    def get_cluster(self, name: str) -> None:
        """Return None: there are no clusters."""

    def get_all_clusters(self) -> list[Any]:
        """Return []: there are no clusters."""
        return []

    def get_healthy_clusters(self) -> list[Any]:
        """Return []: there are no clusters."""
        return []

    async def health_check_clusters(self) -> dict[str, bool]:
        """Return {}: there are no clusters."""
        return {}

    def save_config(self, filepath: str) -> None:
        """Write the nodes to a JSON file."""
        rows = [{"url": node.url, "name": node.name, "priority": node.priority} for node in self.nodes.values()]
        Path(filepath).write_text(json.dumps({"nodes": rows}, indent=2))

    def load_config(self, filepath: str) -> int:
        """Add the nodes of such a file without probing them; return their number.

        Raises:
            BadInput: The file cannot be used.
        """
        try:
            rows = json.loads(read_bounded(Path(filepath), FILE_MOST))["nodes"]
            for row in rows:
                self.add_node(row["url"], row.get("name"), row.get("priority", 5), check_health=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{filepath}: {short(error)}; expected a file of NodeRegistry.save_config") from None
        return len(rows)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<NodeRegistry {len(self.get_healthy_nodes())} of {len(self.nodes)} nodes healthy>"
