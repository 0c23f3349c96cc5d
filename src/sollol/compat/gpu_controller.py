"""GPU controller: find models on GPUs and CPUs, and bring them onto GPUs.

A model that fell back to the CPU is some twenty times slower, without an error. The controller uses only the measured
state in /api/ps of each node, loads models onto GPUs, and reports the result. Every call has a time limit: a load that
takes longer continues in the background. Over 400 lines because each method of the older interface has its docstring.

    controller = SOLLOLGPUController(pool=pool, priority_models=["llama3.2"])
    controller.print_cluster_status()
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sollol.compat.background import check_number, submit, wait_for
from sollol.compat.gpu_placement import FOREVER, FRESH_S, ForceResult, Location, NodeModels, Placements, location_of
from sollol.compat.http_calls import call
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import LoadedModel, canonical_model
from sollol.duties import in_thread
from sollol.errors import BadInput, ResponseError, SollolError
from sollol.pool.keywords import accept_old
from sollol.workload.validation import check_count, check_model, short

if TYPE_CHECKING:
    from sollol.compat.intelligence import IntelligentRouter

KEEP_ALIVE = "1h"
FORCE_S = 60.0
CLUSTER_S = 180.0  # for all models together
CALL_S = 20.0  # limit of a call's wait for a GPU
POOL_WAIT_S = 0.5  # limit of the wait for the pool's probe after that
MB = 1024 * 1024


class ModelPlacement(NamedTuple):
    """A loaded model. `location` is "GPU", "CPU", "partial" or "unknown"."""

    node_url: str
    model_name: str
    location: str
    size_mb: float
    vram_mb: float


class SOLLOLGPUController:
    """The GPUs of a pool's nodes, of a registry (any object with `nodes`), or of a list of nodes.

    With nodes and `priority_models` it starts to bring each of these models onto a GPU at once, in a thread
    (`optimize_cluster`); `warm=False` disables that. `close()` closes the connections.
    """

    def __init__(
        self,
        pool: Any = None,
        priority_models: Iterable[str] = (),
        *,
        registry: Any = None,
        node_registry: Any = None,
        warm: bool = True,
    ) -> None:
        pool = next((given for given in (pool, registry, node_registry) if given is not None), None)
        if isinstance(priority_models, str):
            raise BadInput(f"priority_models={short(priority_models)}; expected a list of names")
        self.priority_models = [check_model(model) for model in priority_models]
        self._placements: dict[int, Placements] = {}  # by process
        self._pins: dict[tuple[str, str], Endpoint] = {}
        self._source: Any = None
        self._closed = False
        if pool is not None:
            self.set_registry(pool)
        if warm and pool is not None and self.priority_models:
            in_thread("sollol-gpu", self._warm)

    def set_registry(self, registry: Any) -> None:
        """Set the nodes: a pool, an object with `nodes`, or a list.

        Raises:
            BadInput: It is none of these.
        """
        _endpoints(registry)
        self._source = registry

    @property
    def pool(self) -> Any:
        """The pool, None if the nodes come from elsewhere."""
        return self._source if hasattr(self._source, "chat") else None

    @property
    def pins(self) -> list[tuple[str, str]]:
        """The pinned models as (node, model)."""
        return list(self._pins)

    # --- status ---

    def get_model_status(self, node_url: Any) -> dict[str, Any]:
        """Return the loaded models of a node, in 2 s at most.

        Returns:
            `models` (name, location, size_mb, vram_mb, expires_at) and their counts by location; or `error`.
        """
        (seen,) = self._look([parse_endpoint(node_url)])
        status: dict[str, Any] = {"node_url": seen.endpoint.url}
        if seen.why:
            return status | {"error": seen.why}
        rows = [_row(seen, name, model) for name, model in sorted(seen.loaded.items())]
        counts = {f"{location.lower()}_count": _count(rows, location) for location in Location}
        return status | {"models": rows, **counts}

    def placements(self) -> list[ModelPlacement]:
        """Return every loaded model on every reachable node, by a new probe."""
        return [
            ModelPlacement(seen.endpoint.url, name, location_of(model).value, model.size / MB, model.size_vram / MB)
            for seen in self._look(self._nodes())
            for name, model in sorted(seen.loaded.items())
        ]

    def get_placement_stats(self) -> dict[str, Any]:
        """Return the counts of loaded models by location.

        Returns:
            `total_placements`, counts on GPU, CPU, in part and unknown, `gpu_percentage`, `recent_placements` (all)
            and `pins`.
        """
        found = self.placements()
        counts = {location: sum(one.location == location for one in found) for location in Location}
        return {
            "total_placements": len(found),
            **{f"{location.lower()}_placements": count for location, count in counts.items()},
            "gpu_percentage": 100.0 * counts[Location.GPU] / len(found) if found else 0.0,
            "recent_placements": found,
            "pins": self.pins,
        }

    def verify_routing_decision(self, node_url: Any, model_name: str, expected_location: str = "GPU") -> bool:
        """Check by a new probe that a model is at a location. Partly on the GPU is not on the GPU."""
        try:
            expected = {location.lower(): location for location in Location}[str(expected_location).lower()]
        except KeyError:
            names = ", ".join(repr(location.value) for location in Location)
            raise BadInput(f"expected_location={short(expected_location)}; expected one of {names}") from None
        name = canonical_model(check_model(model_name))
        (seen,) = self._look([parse_endpoint(node_url)])
        return name in seen.loaded and location_of(seen.loaded[name]) is expected

    def print_cluster_status(self) -> None:
        """Print a table of nodes and their models on stdout."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Where models run")
        for heading in ("node", "model", "location", "MB", "MB on GPU"):
            table.add_column(heading, justify="right" if heading.startswith("MB") else "left")
        for seen in self._look(self._nodes()):
            for name, model in sorted(seen.loaded.items()):
                sizes = (f"{model.size / MB:,.0f}", f"{model.size_vram / MB:,.0f}")
                table.add_row(seen.endpoint.key, name, location_of(model).value, *sizes)
            if not seen.loaded:
                table.add_row(seen.endpoint.key, "-", seen.why or "nothing loaded", "", "")
        Console().print(table)

    # --- placement ---

    def force_gpu_load(
        self,
        node_url: Any,
        model_name: str,
        *,
        keep_alive: float | str = KEEP_ALIVE,
        timeout_s: float = FORCE_S,
        **old: Any,
    ) -> dict[str, Any]:
        """Load a model on a node, again if it is there on the CPU, and check its location.

        A model that was not loaded, and for which the node has no GPU, is unloaded again.

        Returns:
            `success` (true only if /api/ps reports the GPU), `location`, `message`, `size_mb`, `vram_mb`.
        """
        accept_old("force_gpu_load", old, frozenset(["num_gpu_layers"]))
        bound_s = check_number("timeout_s", timeout_s, 0)
        node, name = parse_endpoint(node_url), check_model(model_name)
        return _as_result(wait_for(self._force(node, name, keep_alive, bound_s)))

    def force_cpu_load(self, node_url: Any, model_name: str, *, timeout_s: float = FORCE_S) -> dict[str, Any]:
        """Load a model on a node without its GPU, and check its location.

        It stays there until it is unused for an hour, or a request without the option `num_gpu` loads it again.

        Returns:
            As `force_gpu_load`; `success` is true only if /api/ps reports the CPU.
        """
        node, name = parse_endpoint(node_url), check_model(model_name)
        bound_s = check_number("timeout_s", timeout_s, 0)
        body = {"model": name, "keep_alive": KEEP_ALIVE, "options": {"num_gpu": 0}}
        try:
            for request in ({"model": name, "keep_alive": 0}, body):
                try:
                    call(node, "/api/generate", {**request, "stream": False}, bound_s)
                except ResponseError:  # an embedding model
                    call(node, "/api/embed", {**request, "input": []}, bound_s)
        except SollolError as error:
            return {"success": False, "location": Location.UNKNOWN.value, "message": str(error)}
        self._on_loop().refresh()
        (seen,) = self._look([node])
        held = seen.loaded.get(canonical_model(name))
        place = Location.UNKNOWN if held is None else location_of(held)
        success = place is Location.CPU
        message = (
            f"{name} is on the CPU" if success else f"{name} is at: {place.value}; {seen.why or 'no CPU reported'}"
        )
        sizes = {"size_mb": held.size / MB, "vram_mb": held.size_vram / MB} if held else {}
        return {"success": success, "location": place.value, "message": message, **sizes}

    def pin(self, node_url: Any, model_name: str, *, timeout_s: float = FORCE_S) -> dict[str, Any]:
        """Run `force_gpu_load` and keep the model in memory until `unpin`, also after this program."""
        result = self.force_gpu_load(node_url, model_name, keep_alive=FOREVER, timeout_s=timeout_s)
        if result["success"]:
            node = parse_endpoint(node_url)
            self._pins[node.key, canonical_model(model_name)] = node
        return result

    def unpin(self, node_url: Any, model_name: str) -> bool:
        """Give a pinned model Ollama's usual five minutes; return False if it was not pinned here."""
        node = self._pins.pop((parse_endpoint(node_url).key, canonical_model(check_model(model_name))), None)
        if node is not None:
            wait_for(self._release(node, canonical_model(model_name)))
        return node is not None

    def ensure_on_gpu(
        self, model_name: str, *, keep_alive: float | str = KEEP_ALIVE, timeout_s: float = CALL_S
    ) -> str | None:
        """Return the node with the model on its GPU, as `host:port`; load it on one if needed.

        None: no GPU for it is known, or not within `timeout_s`. A failed try is not repeated for five minutes.
        """
        return wait_for(self._ensure(model_name, keep_alive, timeout_s))

    async def ensure_on_gpu_async(
        self, model_name: str, *, keep_alive: float | str = KEEP_ALIVE, timeout_s: float = CALL_S
    ) -> str | None:
        """Run `ensure_on_gpu` without blocking the caller's event loop."""
        return await asyncio.wrap_future(submit(self._ensure(model_name, keep_alive, timeout_s)))

    def pre_warm_gpu_nodes(
        self,
        priority_models: Sequence[str] | None = None,
        max_concurrent: int = 3,
        *,
        timeout_s: float = CLUSTER_S,
    ) -> dict[str, list[dict[str, Any]]]:
        """Load models on every node that may have a GPU: the first `max_concurrent` of those on its disk.

        Returns:
            The URL of each node -> a list of `{"model", "result"}`.
        """
        models = self._models(priority_models)
        check_count("max_concurrent", max_concurrent)
        bound_s = check_number("timeout_s", timeout_s, 0)
        return wait_for(self._pre_warm(models, max_concurrent, bound_s))

    def optimize_cluster(
        self, gpu_priority_models: Sequence[str] | None = None, *, timeout_s: float = CLUSTER_S
    ) -> dict[str, Any]:
        """Bring each model onto the GPU of at least one node, in the given order.

        Returns:
            `gpu_nodes`, `cpu_nodes`, `unknown_nodes` (URLs), and `assignments`: for each model its `node` (or None),
            `target` and `result`.
        """
        models = self._models(gpu_priority_models)
        return wait_for(self._optimize(models, check_number("timeout_s", timeout_s, 0)))

    def close(self) -> None:
        """Close the connections and cancel running loads. Idempotent."""
        self._closed = True
        placements = self._placements.pop(os.getpid(), None)
        if placements is not None:
            wait_for(placements.aclose())

    def __enter__(self) -> SOLLOLGPUController:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- internals ---

    def _warm(self) -> None:
        try:
            self.optimize_cluster()
        except SollolError:  # closed meanwhile
            pass

    def _models(self, given: Sequence[str] | None) -> list[str]:
        if isinstance(given, str):
            raise BadInput(f"priority_models={short(given)}; expected a list of names")
        return self.priority_models if given is None else [check_model(model) for model in given]

    def _nodes(self) -> list[Endpoint]:
        return _endpoints(self._source)

    def _on_loop(self) -> Placements:
        if self._closed:
            raise SollolError("the GPU controller is closed; make a new one")
        mine = self._placements.get(os.getpid())
        if mine is None:  # a parent's are left alone: its event loop has no thread here
            mine = self._placements[os.getpid()] = Placements(self._engine)
        return mine

    def _engine(self) -> Any:
        """Return the engine of the pool if it runs."""
        return getattr(self._source, "_engine", None)

    def _look(self, nodes: list[Endpoint]) -> list[NodeModels]:
        async def look() -> list[NodeModels]:
            return await self._on_loop().look(nodes)

        return wait_for(look())

    async def _ensure(self, model: str, keep_alive: Any, timeout_s: float) -> str | None:
        bound_s = check_number("timeout_s", timeout_s, 0)
        forced = await self._on_loop().ensure(self._nodes(), check_model(model), keep_alive, bound_s, FRESH_S)
        if forced is None or not forced.success:
            return None
        await self._wait_for_pool(forced.endpoint.key, canonical_model(model))
        return forced.endpoint.key

    async def _wait_for_pool(self, key: str, name: str) -> None:
        """Wait until the pool's predictions include the loaded model."""
        if self._engine() is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + POOL_WAIT_S
        notified = False
        while loop.time() < until:
            node = next((node for node in self._source.nodes if node.key == key), None)
            if node is None or name in node.loaded_models:
                return
            if not notified:
                self._on_loop().refresh()
                notified = True
            await asyncio.sleep(0.005)

    async def _force(self, node: Endpoint, model: str, keep_alive: Any, timeout_s: float) -> ForceResult:
        return await self._on_loop().force(node, model, keep_alive, timeout_s)

    async def _release(self, node: Endpoint, name: str) -> None:
        (seen,) = await self._on_loop().look([node])
        if name in seen.loaded:
            await self._on_loop().load(node, name, "5m", seen.loaded[name])

    async def _pre_warm(self, models: list[str], most: int, timeout_s: float) -> dict[str, list[dict[str, Any]]]:
        placements = self._on_loop()
        ends_at = asyncio.get_running_loop().time() + timeout_s

        async def one(seen: NodeModels) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            for model in [model for model in models if canonical_model(model) in seen.models][:most]:
                left_s = max(0.0, ends_at - asyncio.get_running_loop().time())
                forced = await placements.force(seen.endpoint, model, KEEP_ALIVE, left_s)
                rows.append({"model": model, "result": _as_result(forced)})
                if forced.location is Location.CPU:
                    break  # the others would fail, too
            return rows

        seen = [s for s in await placements.look(self._nodes()) if not s.why and placements.kind(s) is not Location.CPU]
        return dict(zip([s.endpoint.url for s in seen], await asyncio.gather(*map(one, seen)), strict=True))

    async def _optimize(self, models: list[str], timeout_s: float) -> dict[str, Any]:
        placements, loop = self._on_loop(), asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        assignments = []
        for model in models:
            left_s = max(0.0, ends_at - loop.time())
            forced = await placements.ensure(self._nodes(), model, KEEP_ALIVE, left_s, 0.0)
            result = _as_result(forced) if forced else {"success": False, "message": f"no node has a GPU and {model}"}
            node = forced.endpoint.url if forced else None
            assignments.append({"node": node, "model": model, "target": "GPU", "result": result})
        seen = await placements.look(self._nodes(), FRESH_S)
        kinds = {f"{kind.lower()}_nodes": kind for kind in (Location.GPU, Location.CPU, Location.UNKNOWN)}
        urls = {name: [s.endpoint.url for s in seen if placements.kind(s) is kind] for name, kind in kinds.items()}
        return {**urls, "assignments": assignments}


def integrate_with_router(
    router: IntelligentRouter, gpu_controller: SOLLOLGPUController, node_registry: Any = None, *, registry: Any = None
) -> None:
    """Let the router call the controller before calls of priority models and calls that require a GPU.

    A router without a pool uses the controller's. `registry` (or `node_registry`) sets other nodes.
    """
    if not isinstance(gpu_controller, SOLLOLGPUController):
        raise BadInput(f"gpu_controller={short(gpu_controller)}; expected a SOLLOLGPUController")
    if not hasattr(router, "gpu_controller"):
        raise BadInput(f"router={short(router)}; expected an IntelligentRouter")
    nodes = registry if registry is not None else node_registry
    if nodes is not None:
        gpu_controller.set_registry(nodes)
    router.gpu_controller = gpu_controller


def _endpoints(source: Any) -> list[Endpoint]:
    """Return the nodes of a pool, of a registry, or of a list."""
    if source is None:
        return []
    nodes = getattr(source, "nodes", source)
    if isinstance(nodes, Mapping) and not {"host", "url"} & set(nodes):
        nodes = nodes.values()
    elif isinstance(nodes, (str, Mapping)):
        nodes = [nodes]
    if not isinstance(nodes, Iterable):
        raise BadInput(f"pool={short(source)}; expected a pool, something with nodes, or a list of nodes")
    plain = (str, Mapping, Endpoint)
    return [parse_endpoint(node if isinstance(node, plain) else getattr(node, "url", node)) for node in nodes]


def _row(seen: NodeModels, name: str, model: LoadedModel) -> dict[str, Any]:
    return {
        "name": name,
        "location": location_of(model).value,
        "size_mb": model.size / MB,
        "vram_mb": model.size_vram / MB,
        "expires_at": model.expires_at,
    }


def _count(rows: list[dict[str, Any]], location: Location) -> int:
    return sum(row["location"] == location for row in rows)


def _as_result(forced: ForceResult) -> dict[str, Any]:
    return {
        "success": forced.success,
        "message": forced.message,
        "node": forced.endpoint.key,
        "location": forced.location.value,
        "size_mb": forced.loaded.size / MB,
        "vram_mb": forced.loaded.size_vram / MB,
    }
