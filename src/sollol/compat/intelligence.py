"""Route requests by a description of the task: type, priority, need of a GPU.

    router = IntelligentRouter(pool)
    answer = router.route_request("llama3.2", messages, TaskContext(operation="summarization", priority=8))

The pool routes by predicted completion time; the task type predicts the length of the answer. `IntelligentRouter`
translates a description of a task into the arguments of the pool.

Over 400 lines, because each method of the older interface has its docstring.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from sollol.answers import Answer
from sollol.compat.background import check_number
from sollol.compat.hosts import Host, read_host
from sollol.core.state.replica import DECODE, PREFILL, TOKENS_OUT
from sollol.core.types import TaskType, canonical_model
from sollol.errors import BadInput, NoNodeAvailable
from sollol.pool.keywords import accept_old
from sollol.workload import classification
from sollol.workload.validation import check_model, check_priority, check_type, short

if TYPE_CHECKING:
    from sollol.compat.gpu_controller import SOLLOLGPUController

COMPLEXITIES = {"simple": 2, "medium": 5, "complex": 8}
# Beginnings of applications' words for operations.
_OPERATIONS = (
    ("code", TaskType.CODE),
    ("coding", TaskType.CODE),
    ("program", TaskType.CODE),
    ("debug", TaskType.CODE),
    ("refactor", TaskType.CODE),
    ("summar", TaskType.SUMMARISE),
    ("classif", TaskType.CLASSIFY),
    ("categor", TaskType.CLASSIFY),
    ("label", TaskType.CLASSIFY),
    ("sentiment", TaskType.CLASSIFY),
    ("extract", TaskType.EXTRACT),
    ("embed", TaskType.EMBED),
    ("chat", TaskType.CHAT),
    ("generat", TaskType.CHAT),
    ("complet", TaskType.CHAT),
)
MIN_VRAM_THRESHOLD_MB = 1000  # of older versions; not used
# Parts of the names of embedding models.
_EMBEDDERS = re.compile(r"embed|minilm|(?:^|[/-])(?:bge|gte|e5)[-:]|paraphrase-|gtr-t5")
REMEMBERED = 100  # durations kept for each task type, model and host
BYTES_PER_TOKEN = 4


@dataclass
class TaskContext:
    """Description of a task; every field is optional.

    `operation`: a free word ("code_generation", "research"), from which the type is derived if possible; `task_type`:
    one of TaskType's, or an older word for it ("generation"). `complexity`: 1 to 10, or "simple" (2), "medium" (5),
    "complex" (8). `priority`: 0 to 10. `estimated_duration_ms` and `estimated_tokens` are for your own records.

    Raises:
        BadInput: A field has another type or range.
    """

    operation: str | None = None
    task_type: TaskType | str | None = None
    complexity: int | str | None = None
    priority: int = 5
    requires_gpu: bool = False
    estimated_tokens: int | None = None
    model_preference: str | None = None
    estimated_duration_ms: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.operation is not None and not isinstance(self.operation, str):
            raise BadInput(f"operation={self.operation!r}; expected a word such as 'code_generation'")
        if self.task_type is not None:
            self.task_type = _type_of(self.task_type) or check_type(self.task_type)
        elif self.operation is not None:
            named = _type_of(self.operation)
            self.task_type = None if named is TaskType.CHAT else named  # "generation" is too general: classify the text
        if self.complexity is not None:
            self.complexity = _complexity(self.complexity)
        self.priority = check_priority(self.priority)
        if not isinstance(self.requires_gpu, bool):
            raise BadInput(f"requires_gpu={self.requires_gpu!r}; expected True or False")
        for name in ("estimated_tokens", "estimated_duration_ms"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0)
        if self.model_preference is not None:
            check_model(self.model_preference)
        if not isinstance(self.metadata, Mapping):
            raise BadInput(f"metadata={self.metadata!r}; expected a dict")


class Complexity(int):
    """A complexity from 1 to 10. It unpacks to "simple", "medium" or "complex", and the tokens of the input."""

    tokens = 0

    @property
    def word(self) -> str:
        """The word that `TaskContext` takes for such a complexity."""
        return "simple" if self < 4 else "medium" if self < 7 else "complex"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.word, self.tokens))


class IntelligentRouter:
    """Calls of a pool by TaskContext. A context manager; can be shared by threads.

    `pool`: an OllamaPool or an AsyncOllamaPool. Without one: the pool of its GPU controller, else a pool that is
    constructed at first use, with the nodes of `registry`, else of the settings or of discovery.
    """

    def __init__(self, pool: Any = None, *, registry: Any = None, **old: Any) -> None:
        accept_old("IntelligentRouter", old, frozenset(["coordinator", "gpu_router"]))
        if pool is None and callable(getattr(registry, "chat", None)):
            pool, registry = registry, None
        if pool is not None and not callable(getattr(pool, "chat", None)):
            raise BadInput(f"pool={short(pool)}; expected an OllamaPool or an AsyncOllamaPool, or None")
        if registry is not None and not hasattr(registry, "nodes"):
            raise BadInput(f"registry={short(registry)}; expected an object with nodes, such as a NodeRegistry")
        self._registry = registry
        self.gpu_controller: SOLLOLGPUController | None = None
        self._pool = pool
        self._own: Any = None
        self._lock = threading.Lock()
        self._durations: dict[tuple[str, str, str], deque[float]] = {}

    @property
    def pool(self) -> Any:
        """The pool of its calls; constructed at first use without one."""
        if self._pool is not None:
            return self._pool
        if self.gpu_controller is not None and self.gpu_controller.pool is not None:
            return self.gpu_controller.pool
        with self._lock:
            if self._own is None:
                self._own = _configured_pool() if self._registry is None else _pool_of(self._registry)
            return self._own

    def route_request(
        self,
        model: str | None = None,
        messages: Sequence[Any] | None = None,
        task_context: TaskContext | Mapping[str, Any] | None = None,
        *,
        prompt: str | None = None,
        stream: bool = False,
        **more: Any,
    ) -> Any:
        """Send a chat or a `prompt` to the pool; return its answer. An AsyncOllamaPool returns an awaitable.

        Other keywords go to the pool. `answer.routing` also has `operation`, `complexity`, and if a GPU is required
        `gpu_node` (the node with the model on its GPU, or None). With a GPU controller, a call that requires a GPU
        waits until the model is on one, for 20 s at most.

        Raises:
            BadInput: An argument cannot be used.
            SollolError: The pool's call failed.
        """
        context = _context(task_context)
        if (messages is None) == (prompt is None):
            raise BadInput("route_request(): expected either messages or a prompt")
        name = check_model(model if model is not None else context.model_preference)
        request = {"messages": messages, **more} if prompt is None else {"prompt": prompt, **more}
        type_ = check_type(context.task_type)  # None: the pool classifies it
        more = {"stream": stream, "priority": context.priority, "task_type": type_, **more}
        if context.requires_gpu:
            more["requires_gpu"] = True
        notes = {
            "operation": context.operation,
            "complexity": context.complexity or classification.estimate_complexity(request),
        }
        pool, subject = self.pool, (prompt if messages is None else messages)
        call = pool.generate if messages is None else pool.chat
        if hasattr(pool, "aclose"):
            return self._route_async(call, name, subject, context, more, notes)
        controller = self._controller_for(name, context)
        if controller is not None:
            notes["gpu_node"] = controller.ensure_on_gpu(name)
        return _with_notes(call(name, subject, **more), notes)

    async def _route_async(
        self,
        call: Any,
        name: str,
        subject: Any,
        context: TaskContext,
        more: dict[str, Any],
        notes: dict[str, Any],
    ) -> Any:
        controller = self._controller_for(name, context)
        if controller is not None:
            notes["gpu_node"] = await controller.ensure_on_gpu_async(name)
        answer: Awaitable[Any] = call(name, subject, **more)
        return _with_notes(await answer, notes)

    def _controller_for(self, model: str, context: TaskContext) -> SOLLOLGPUController | None:
        """Return the controller if it is responsible for this call."""
        controller = self.gpu_controller
        if controller is None:
            return None
        mine = {canonical_model(name) for name in controller.priority_models}
        return controller if context.requires_gpu or canonical_model(model) in mine else None

    # --- analysis ---

    def analyze_request(self, payload: Mapping[str, Any], priority: int = 5) -> TaskContext:
        """Return the TaskContext of a payload of Ollama's API.

        `estimated_tokens` are those of the input; the duration is the median of the recorded ones for this type and
        model. Before the first it comes from usual rates, and `metadata["estimated_from"]` is "prior".
        """
        if not isinstance(payload, Mapping):
            raise BadInput(f"payload is {type(payload).__name__}; expected a dict with messages, prompt or input")
        type_, model = self.detect_task_type(payload), payload.get("model")
        known = [ms for (kind, name, _), list_ in self._recorded() if (kind, name) == (type_, model) for ms in list_]
        tokens = _size(payload) // BYTES_PER_TOKEN
        return TaskContext(
            operation=type_.value,
            task_type=type_,
            complexity=classification.estimate_complexity(payload),
            priority=priority,
            estimated_tokens=tokens,
            model_preference=model,
            estimated_duration_ms=median(known) if known else _usual_ms(type_, tokens),
            metadata={"estimated_from": "measured" if known else "prior"},
        )

    def detect_task_type(self, payload: Any) -> TaskType:
        """Return the task type of a payload, a list of messages or a text. An embedding model makes it EMBED."""
        model = payload.get("model") if isinstance(payload, Mapping) else None
        if isinstance(model, str) and _EMBEDDERS.search(model.lower()) and not payload.get("messages"):
            return TaskType.EMBED
        return classification.detect_task_type(payload)

    def estimate_complexity(self, payload: Any) -> Complexity:
        """Return the complexity of a payload, 1 to 10. It unpacks as in 0.9, to a word and the tokens of the input."""
        found = Complexity(classification.estimate_complexity(payload))
        found.tokens = _size(payload) // BYTES_PER_TOKEN if isinstance(payload, Mapping) else 0
        return found

    def record_performance(
        self,
        task_type: TaskType | str,
        model: str,
        duration_ms: float | None = None,
        host: str = "",
        success: bool = True,
        *,
        actual_duration_ms: float | None = None,
    ) -> None:
        """Record the duration of your own request in ms for `select_optimal_node`.

        A failed request counts four times its duration: a quick failure is not a quick host. `actual_duration_ms` is
        another name of `duration_ms`.
        """
        duration_ms = actual_duration_ms if duration_ms is None else duration_ms
        type_ = _type_of(task_type) or check_type(task_type)
        taken_ms = check_number("duration_ms", duration_ms, 0) * (1 if success else 4)
        with self._lock:
            key = (str(type_), check_model(model), host)
            self._durations.setdefault(key, deque(maxlen=REMEMBERED)).append(taken_ms)

    def select_optimal_node(
        self, context: TaskContext | Mapping[str, Any], available_hosts: Sequence[Any]
    ) -> tuple[str, dict[str, Any]]:
        """Return (host, decision): the host with the least predicted time for your own request.

        Hosts are names, dicts (`host` or `url`; optional `available`, `latency_ms`, `success_rate`, `cpu_load`,
        `gpu_free_mem`, `active_requests`), or nodes of a pool. The prediction is the recorded (else the given) latency,
        times the requests in flight, divided by the success rate squared; on a host without a GPU a task that requires
        one takes 20 times as long. `decision` has `predicted_ms`, `score` (1000 divided by it), `reasoning`,
        `fallbacks` (the other hosts, best first), `task_type`, `complexity` and `priority`.

        Raises:
            BadInput: There are no hosts.
            NoNodeAvailable: No host is available.
        """
        described = _context(context)
        if isinstance(available_hosts, (str, Mapping)) or not isinstance(available_hosts, Sequence):
            raise BadInput(f"available_hosts={short(available_hosts)}; expected a list of hosts")
        if not available_hosts:
            raise BadInput("available_hosts=[]; No available hosts: expected one at least")
        hosts = [read_host(host) for host in available_hosts]
        usable = [host for host in hosts if host.available]
        if not usable:
            raise NoNodeAvailable("No available hosts", [(host.name, "not available") for host in hosts])
        given = [host.latency_ms for host in usable if host.latency_ms]
        unknown_ms = median(given) if given else 1000.0
        ranked = sorted((self._predict(host, described, unknown_ms), place) for place, host in enumerate(usable))
        predicted_ms, best = ranked[0]
        host = usable[best]
        return host.name, {
            "host": host.name,
            "predicted_ms": predicted_ms,
            "score": 1000 / predicted_ms,
            "reasoning": f"should take {predicted_ms:.0f} ms there; {host.why(described.requires_gpu)}",
            "fallbacks": [usable[place].name for _, place in ranked[1:]],
            "task_type": described.task_type,
            "complexity": described.complexity,
            "priority": described.priority,
        }

    def _predict(self, host: Host, context: TaskContext, unknown_ms: float) -> float:
        own = [
            ms
            for (kind, model, name), list_ in self._recorded()
            if name == host.name and context.task_type in (None, kind) and context.model_preference in (None, model)
            for ms in list_
        ]
        return host.predict_ms(median(own) if own else host.latency_ms or unknown_ms, context.requires_gpu)

    def _recorded(self) -> list[tuple[tuple[str, str, str], list[float]]]:
        with self._lock:
            return [(key, list(found)) for key, found in self._durations.items()]

    # --- the end ---

    def close(self) -> None:
        """Close the pool if the router constructed it."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def __enter__(self) -> IntelligentRouter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pool_of(registry: Any) -> Any:
    """Return a pool of a registry's nodes."""
    from sollol.pool.sync import OllamaPool

    nodes = registry.nodes.values() if isinstance(registry.nodes, Mapping) else registry.nodes
    return OllamaPool([getattr(node, "url", node) for node in nodes])


def _usual_ms(type_: TaskType, tokens_in: int) -> float:
    """Return the ms of a request at the rates that a pool assumes before it has measured a node."""
    tokens_out = 0.0 if type_ is TaskType.EMBED else TOKENS_OUT
    return (tokens_in / PREFILL + tokens_out / DECODE) / 1000


_routers: list[IntelligentRouter] = []


def get_router(coordinator: Any = None) -> IntelligentRouter:
    """Return the router of this process. `coordinator` is not used."""
    if not _routers:
        _routers.append(IntelligentRouter())
    return _routers[0]


def _configured_pool() -> Any:
    from sollol.pool.sync import OllamaPool

    pool = OllamaPool.from_settings()
    return pool if pool.nodes else OllamaPool.auto_configure()


def _context(given: TaskContext | Mapping[str, Any] | None) -> TaskContext:
    if given is None:
        return TaskContext()
    if isinstance(given, TaskContext):
        return given
    if isinstance(given, Mapping):
        try:
            return TaskContext(**given)
        except TypeError as error:
            raise BadInput(f"task_context={dict(given)!r}: {error}") from None
    raise BadInput(f"task_context={short(given)}; expected a TaskContext, a dict of its fields, or None")


def _type_of(word: Any) -> TaskType | None:
    """Return the type for an operation's word, None for an unknown one."""
    if not isinstance(word, str):
        return None
    for part in word.lower().replace("-", "_").replace(" ", "_").split("_"):
        for beginning, type_ in _OPERATIONS:
            if part.startswith(beginning):
                return type_
    return None


def _complexity(value: Any) -> int:
    if isinstance(value, str) and value.lower() in COMPLEXITIES:
        return COMPLEXITIES[value.lower()]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10:
        raise BadInput(
            f"complexity={short(value)}; expected a whole number from 1 to 10, 'simple', 'medium' or 'complex'"
        )
    return value


def _size(payload: Mapping[str, Any]) -> int:
    """Return the characters of the texts in a payload."""
    contents = [m.get("content") for m in payload.get("messages") or () if isinstance(m, Mapping)]
    inputs = payload.get("input")
    contents += [payload.get("prompt"), payload.get("system"), *([inputs] if isinstance(inputs, str) else inputs or ())]
    return sum(len(text) for text in contents if isinstance(text, str))


def _with_notes(answer: Any, notes: dict[str, Any]) -> Any:
    """Add the notes to the routing record; streamed answers have none."""
    if isinstance(answer, Answer):
        answer.routing.update(notes)
    return answer
