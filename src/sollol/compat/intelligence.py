"""Routing with a word about the task: what it is about, how urgent it is, whether it needs a GPU.

    router = IntelligentRouter(pool)
    answer = router.route_request("llama3.2", messages, TaskContext(operation="summarization", priority=8))

The pool decides where a call goes, by predicted completion time; the task's type tells it how long the answer will
probably be. `IntelligentRouter` translates a description of a task into the arguments of the pool.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from sollol.answers import Answer
from sollol.compat.background import check_number
from sollol.compat.hosts import Host, read_host
from sollol.core.types import TaskType, canonical_model
from sollol.errors import BadInput, NoNodeAvailable
from sollol.workload import classification
from sollol.workload.validation import check_model, check_priority, check_type

if TYPE_CHECKING:
    from sollol.compat.gpu_controller import SOLLOLGPUController

COMPLEXITIES = {"simple": 2, "medium": 5, "complex": 8}
# What applications call their operations, by how the word begins.
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
REMEMBERED = 100  # durations for each task type, model and host
BYTES_PER_TOKEN = 4


@dataclass
class TaskContext:
    """What is known of a task; everything may be left out. Raises BadInput.

    `operation`: a free word ("code_generation", "research"), from which the type is told if it can be; `task_type`: one
    of TaskType's, or an older word for it ("generation"). `complexity`: 1 to 10, or "simple" (2), "medium" (5),
    "complex" (8). `priority`: 0 to 10. `estimated_duration_ms` and `estimated_tokens` are for your own records.
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
            self.task_type = None if named is TaskType.CHAT else named  # "generation" says nothing: look at the text
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


class IntelligentRouter:
    """Asks a pool with a TaskContext. A context manager; may be shared by threads.

    `pool`: an OllamaPool or an AsyncOllamaPool. Without one: the pool of the GPU controller it is integrated with, else
    one that is made when it is first needed, of the nodes of the settings, or of those that discovery finds.
    """

    def __init__(self, pool: Any = None) -> None:
        if pool is not None and not callable(getattr(pool, "chat", None)):
            raise BadInput(f"pool={pool!r}; expected an OllamaPool or an AsyncOllamaPool, or None")
        self.gpu_controller: SOLLOLGPUController | None = None
        self._pool = pool
        self._own: Any = None
        self._lock = threading.Lock()
        self._durations: dict[tuple[str, str, str], deque[float]] = {}

    @property
    def pool(self) -> Any:
        """The pool it asks; made now if there is none."""
        if self._pool is not None:
            return self._pool
        if self.gpu_controller is not None and self.gpu_controller.pool is not None:
            return self.gpu_controller.pool
        with self._lock:
            if self._own is None:
                self._own = _made_pool()
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
        """The pool's answer to a chat, or to a `prompt`; of an AsyncOllamaPool, what to await. Other keywords go to it.

        `answer.routing` tells besides what the pool says: `operation`, `complexity`, and if a GPU is required,
        `gpu_node` (the node that has the model on its GPU; None if there is none). With a GPU controller a call that
        requires a GPU waits, for 20 s at most, until the model is on one.
        Raises BadInput, and what `pool.chat` raises.
        """
        context = _context(task_context)
        if (messages is None) == (prompt is None):
            raise BadInput("route_request(): expected either messages or a prompt")
        name = check_model(model if model is not None else context.model_preference)
        asked = {"messages": messages, **more} if prompt is None else {"prompt": prompt, **more}
        type_ = check_type(context.task_type)  # None: the pool finds it out
        more = {"stream": stream, "priority": context.priority, "task_type": type_, **more}
        if context.requires_gpu:
            more["requires_gpu"] = True
        notes = {
            "operation": context.operation,
            "complexity": context.complexity or classification.estimate_complexity(asked),
        }
        pool, subject = self.pool, (prompt if messages is None else messages)
        call = pool.generate if messages is None else pool.chat
        if hasattr(pool, "aclose"):
            return self._ask_async(call, name, subject, context, more, notes)
        controller = self._controller_for(name, context)
        if controller is not None:
            notes["gpu_node"] = controller.ensure_on_gpu(name)
        return _noted(call(name, subject, **more), notes)

    async def _ask_async(
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
        return _noted(await answer, notes)

    def _controller_for(self, model: str, context: TaskContext) -> SOLLOLGPUController | None:
        """The controller, if this call is its concern."""
        controller = self.gpu_controller
        if controller is None:
            return None
        mine = {canonical_model(name) for name in controller.priority_models}
        return controller if context.requires_gpu or canonical_model(model) in mine else None

    # --- analysing ---

    def analyze_request(self, payload: Mapping[str, Any], priority: int = 5) -> TaskContext:
        """A payload of Ollama's API as a TaskContext. `estimated_tokens` are those of the input; the duration is the
        median of what was recorded for this type and model, if anything was."""
        if not isinstance(payload, Mapping):
            raise BadInput(f"payload is {type(payload).__name__}; expected a dict with messages, prompt or input")
        type_, model = classification.detect_task_type(payload), payload.get("model")
        known = [ms for (kind, name, _), list_ in self._known() if (kind, name) == (type_, model) for ms in list_]
        return TaskContext(
            operation=type_.value,
            task_type=type_,
            complexity=classification.estimate_complexity(payload),
            priority=priority,
            estimated_tokens=_size(payload) // BYTES_PER_TOKEN,
            model_preference=model,
            estimated_duration_ms=median(known) if known else None,
        )

    def detect_task_type(self, payload: Any) -> TaskType:
        """What a payload, a list of messages or a text is about."""
        return classification.detect_task_type(payload)

    def estimate_complexity(self, payload: Any) -> int:
        """How demanding it is, 1 to 10."""
        return classification.estimate_complexity(payload)

    def record_performance(
        self, task_type: TaskType | str, model: str, duration_ms: float, host: str = "", success: bool = True
    ) -> None:
        """Remember what a request of your own took; `select_optimal_node` goes by it. One that failed counts as one
        that took four times as long: a quick failure is not a quick host."""
        type_ = _type_of(task_type) or check_type(task_type)
        taken_ms = check_number("duration_ms", duration_ms, 0) * (1 if success else 4)
        with self._lock:
            key = (str(type_), check_model(model), host)
            self._durations.setdefault(key, deque(maxlen=REMEMBERED)).append(taken_ms)

    def select_optimal_node(
        self, context: TaskContext | Mapping[str, Any], available_hosts: Sequence[Any]
    ) -> tuple[str, dict[str, Any]]:
        """The host where a task should end first, for requests that you send yourself: (host, decision).

        Hosts are names, dicts (`host` or `url`; of `available`, `latency_ms`, `success_rate`, `cpu_load`,
        `gpu_free_mem`, `active_requests` what is known), or nodes of a pool. The prediction is the recorded (else the
        given) latency, times the requests under way, divided by the share of good answers squared; on a host without a
        GPU a task that requires one takes 20 times as long. `decision` has `predicted_ms`, `score` (1000 divided by
        it), `reasoning`, `fallbacks` (the other hosts, the best first), `task_type`, `complexity` and `priority`.
        Raises BadInput without hosts, NoNodeAvailable if none of them is available.
        """
        wanted = _context(context)
        if isinstance(available_hosts, (str, Mapping)) or not isinstance(available_hosts, Sequence):
            raise BadInput(f"available_hosts={available_hosts!r}; expected a list of hosts")
        if not available_hosts:
            raise BadInput("available_hosts=[]; No available hosts: expected one at least")
        hosts = [read_host(host) for host in available_hosts]
        usable = [host for host in hosts if host.available]
        if not usable:
            raise NoNodeAvailable("No available hosts", [(host.name, "not available") for host in hosts])
        given = [host.latency_ms for host in usable if host.latency_ms]
        unknown_ms = median(given) if given else 1000.0
        ranked = sorted((self._predict(host, wanted, unknown_ms), place) for place, host in enumerate(usable))
        predicted_ms, best = ranked[0]
        host = usable[best]
        return host.name, {
            "host": host.name,
            "predicted_ms": predicted_ms,
            "score": 1000 / predicted_ms,
            "reasoning": f"should take {predicted_ms:.0f} ms there; {host.why(wanted.requires_gpu)}",
            "fallbacks": [usable[place].name for _, place in ranked[1:]],
            "task_type": wanted.task_type,
            "complexity": wanted.complexity,
            "priority": wanted.priority,
        }

    def _predict(self, host: Host, context: TaskContext, unknown_ms: float) -> float:
        own = [
            ms
            for (kind, model, name), list_ in self._known()
            if name == host.name and context.task_type in (None, kind) and context.model_preference in (None, model)
            for ms in list_
        ]
        return host.predict_ms(median(own) if own else host.latency_ms or unknown_ms, context.requires_gpu)

    def _known(self) -> list[tuple[tuple[str, str, str], list[float]]]:
        with self._lock:
            return [(key, list(found)) for key, found in self._durations.items()]

    # --- the end ---

    def close(self) -> None:
        """Close the pool, if it was made here."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def __enter__(self) -> IntelligentRouter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _made_pool() -> Any:
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
    raise BadInput(f"task_context={given!r}; expected a TaskContext, a dict of its fields, or None")


def _type_of(word: Any) -> TaskType | None:
    """What a word for an operation means; None for one that is not known."""
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
        raise BadInput(f"complexity={value!r}; expected a whole number from 1 to 10, 'simple', 'medium' or 'complex'")
    return value


def _size(payload: Mapping[str, Any]) -> int:
    """Characters of the texts in a payload."""
    contents = [m.get("content") for m in payload.get("messages") or () if isinstance(m, Mapping)]
    inputs = payload.get("input")
    contents += [payload.get("prompt"), payload.get("system"), *([inputs] if isinstance(inputs, str) else inputs or ())]
    return sum(len(text) for text in contents if isinstance(text, str))


def _noted(answer: Any, notes: dict[str, Any]) -> Any:
    """The notes beside the pool's own words; an answer that comes in parts is left as it is."""
    if isinstance(answer, Answer):
        answer.routing.update(notes)
    return answer
