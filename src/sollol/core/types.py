"""The frozen values of the core. Times are integers of µs on the event loop's clock.

Those that each request makes are plain classes (`core.value`), the others named tuples. Over 400 lines, because these
are the words that all rooms use (`tests/test_layers.py`), and a plain class lists its fields three times.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sollol.core.hints import mypyc_attr
from sollol.core.value import Value, fields_of

PrefixHash = object  # names a beginning of a conversation, see `Task.prefix`: a number without arithmetic
Key = Any  # the number of a task or an attempt where it is a key; compiled, an int would be made an object each time
Micros = int  # a moment, or a duration, on the event loop's clock
NEVER: Final[Micros] = (1 << 62) - 1  # the largest that is no object, compiled
SECOND: Final[Micros] = 1_000_000
MILLISECOND: Final[Micros] = 1_000


class RoutingMode(enum.StrEnum):
    """Name the aim of a request: low latency, proven nodes, or cheap background work."""

    FAST = "fast"
    RELIABLE = "reliable"
    ASYNC = "async"


class RoutingStrategy(enum.StrEnum):
    """Name the rule for requests without a mode. INTELLIGENT minimises the predicted finish."""

    ROUND_ROBIN = "round_robin"
    LATENCY_FIRST = "latency_first"
    LEAST_LOADED = "least_loaded"
    FAIRNESS = "fairness"
    INTELLIGENT = "intelligent"


class TaskType(enum.StrEnum):
    """Name the subject of a request. The length of its answer depends on it."""

    __hash__ = str.__hash__  # an enum's own is written in Python; these are parts of keys

    CHAT = "chat"
    CODE = "code"
    SUMMARISE = "summarise"
    CLASSIFY = "classify"
    EXTRACT = "extract"
    EMBED = "embed"


class TaskPriority(enum.IntEnum):
    """Name priorities on one scale, 0 to 10; higher goes first."""

    CRITICAL = 10
    URGENT = 10
    HIGH = 8
    NORMAL = 5
    LOW = 2
    DEFERRED = 0


class Kind(enum.StrEnum):
    """Name what a task needs of a model."""

    CHAT = "chat"
    GENERATE = "generate"
    EMBED = "embed"


BYTES_COUNTED: Final = 32_768  # of a text, in its cost
TOKENS_MOST: Final = 2**31 - 1  # most tokens of an answer that bound anything


class Task(Value):
    """Describe one piece of work by values. Its body stays with the dispatcher.

    Attributes:
        cost: Size of the input in cost units, about bytes (`workload.cost`).
        tokens_out: Most tokens of the answer (`num_predict`), or None.
        options: Runner options that would make a node reload the model; "" for none.
        batch: Its items arrive as ItemsAdded, and it is cut into chunks.
        width: Requests in flight for a batch (`max_workers`), or None.
        type: Its subject.
        prefix: Beginnings of the conversation, the shortest first, as (hash, cost). A node that has just read one need
            not read it again.
        hedge: Send a second attempt if the first is slow. A name of `Policies.hedgers` replaces the usual policy; None
            leaves it to the mode.
        route: The path that it is sent to.
        stream: The answer comes in parts.
        observable: Its job reports when a node begins to answer, also for a whole answer.
        only: The nodes that it may go to; None for any.
        gpu: It needs a node that holds the model on its GPU.
        exact_context: A runner with a larger `num_ctx` than its own does not serve it.
    """

    __slots__ = (
        "app",
        "batch",
        "cost",
        "deadline_us",
        "exact_context",
        "gpu",
        "hedge",
        "id",
        "kind",
        "mode",
        "model",
        "observable",
        "only",
        "options",
        "prefix",
        "priority",
        "route",
        "stream",
        "tokens_out",
        "type",
        "width",
    )

    def __init__(
        self,
        id: int,
        kind: Kind,
        model: str,
        cost: int = 0,
        priority: int = int(TaskPriority.NORMAL),
        app: str = "",
        tokens_out: int | None = None,
        options: str = "",
        deadline_us: Micros | None = None,
        batch: bool = False,
        width: int | None = None,
        type: TaskType = TaskType.CHAT,
        mode: RoutingMode | None = None,
        hedge: bool | str | None = None,
        stream: bool = False,
        prefix: tuple[tuple[PrefixHash, int], ...] = (),
        only: tuple[str, ...] | None = None,
        gpu: bool = False,
        route: str = "",
        observable: bool = False,
        exact_context: bool = False,
    ) -> None:
        self.id = id
        self.kind = kind
        self.model = model
        self.cost = cost
        self.priority = priority
        self.app = app
        # A number that no model reaches bounds nothing, and is none to reckon with.
        self.tokens_out = None if tokens_out is not None and tokens_out > TOKENS_MOST else tokens_out
        self.options = options
        self.deadline_us = deadline_us
        self.batch = batch
        self.width = width
        self.type = type
        self.mode = mode
        self.hedge = hedge
        self.stream = stream
        self.prefix = prefix
        self.only = only
        self.gpu = gpu
        self.route = route
        self.observable = observable or stream
        self.exact_context = exact_context

    def bytes_kept(self) -> int:
        """Return the bytes that a larger context must not truncate otherwise: 0 for any, -1 if none may be larger.

        The vector of a text depends on where the text is cut. A prompt that is not cut has the better answer.
        """
        if self.exact_context:
            return -1
        return kept_bytes(self.cost) if self.kind is EMBED else 0


def kept_bytes(cost: int) -> int:
    """Return the bytes of an input of this cost; -1 if they may be more than are counted."""
    return cost if cost <= BYTES_COUNTED else -1


def task_to_values(task: Task) -> dict[str, Any]:
    """Return the fields of a task as values that JSON can hold."""
    return fields_of(task)


def task_from_values(values: Mapping[str, Any]) -> Task:
    """Return the task that `task_to_values` was given."""
    mode, only = values["mode"], values["only"]
    return Task(
        **{
            **values,
            "kind": Kind(values["kind"]),
            "type": TaskType(values["type"]),
            "mode": None if mode is None else RoutingMode(mode),
            "prefix": tuple([(number, cost) for number, cost in values["prefix"]]),
            "only": None if only is None else tuple(only),
        }
    )


class Status(enum.Enum):
    """Name the ways an attempt can end. `core.scheduler` decides what follows."""

    OK = "ok"
    REFUSED = "refused"  # Ollama's own 400: the caller's fault, if a second node agrees
    MISSING = "model missing"  # 404: this node does not have the model
    BUSY = "busy"  # 503, 429: come back later
    FAILED = "failed"  # 5xx, cut, late error, wrong result
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # no connection: the node is down
    UNSUITED = "unsuited"  # this node does not serve such calls: it lacks the route, or something stands before it
    LOCKED = "needs a key"  # 401, 403, 407 of a proxy in front of the node
    NOT_SENT = "not sent"  # no file descriptor is left in this process: no evidence about the node
    TOO_LARGE = "too large"  # the model does not fit into the memory of this node, whatever else leaves it
    UNABLE = "incapable"  # this node cannot go on with an answer that another began; no fault of it
    LEFT = "left"  # we closed it
    # and, of tasks only:
    NO_NODE = "no node"
    QUEUE_FULL = "queue full"
    DEADLINE = "deadline"


class Cause(enum.Enum):
    """The reason for an attempt. Reports count by it."""

    FIRST = "first"
    RETRY = "retry"  # an earlier attempt has failed
    HEDGE = "hedge"  # another attempt of the task is late, or on trial
    TAKEOVER = "takeover"  # an idle node repeats items that another has under way
    RESUME = "resume"  # it continues an answer that another node began
    CONTROL = "control"  # it sends an item answered before, to test the node


# Compared many times in each request: an enum's member is looked up by its name.
OK: Final = Status.OK
EMBED: Final = Kind.EMBED

# Another node may do it.
TRANSIENT: Final = frozenset(
    {
        Status.BUSY,
        Status.FAILED,
        Status.TIMEOUT,
        Status.UNREACHABLE,
        Status.MISSING,
        Status.UNABLE,
        Status.UNSUITED,
        Status.LOCKED,
        Status.NOT_SENT,
        Status.TOO_LARGE,
    }
)


@mypyc_attr(acyclic=True)
class Timing(Value):
    """Hold a node's own measurements, in µs and tokens. Ollama sends nanoseconds.

    Attributes:
        received: Most tokens that the received bytes can hold, by our count; 0 if not counted.
        total_us: Time inside the node, from the request to the end of the answer; 0 if not sent.
    """

    __slots__ = ("decode_us", "load_us", "prompt_tokens", "prompt_us", "received", "tokens", "total_us")

    def __init__(
        self,
        load_us: int = 0,
        prompt_tokens: int = 0,
        prompt_us: int = 0,
        tokens: int = 0,
        decode_us: int = 0,
        total_us: int = 0,
        received: int = 0,
    ) -> None:
        self.received = received
        self.load_us = load_us
        self.prompt_tokens = prompt_tokens
        self.prompt_us = prompt_us
        self.tokens = tokens
        self.decode_us = decode_us
        self.total_us = total_us


@mypyc_attr(acyclic=True)
class Outcome(Value):
    """Hold the end of an attempt or a task.

    Attributes:
        retry_us: Time until another try is worth it, where the node sent one.
    """

    __slots__ = ("http_status", "message", "retry_us", "status", "timing")

    def __init__(
        self,
        status: Status,
        message: str = "",
        http_status: int = 0,
        timing: Timing = Timing(),
        retry_us: Micros | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.http_status = http_status
        self.timing = timing
        self.retry_us = retry_us


SHOWN: Final = 8  # predictions that `Decision.candidates` returns


@mypyc_attr(acyclic=True)
class Prediction(Value):
    """Hold the predicted µs until a task is complete on one node, by term."""

    __slots__ = (
        "decode_us",
        "displaces_us",
        "embed_us",
        "failures_us",
        "load_us",
        "node",
        "overhead_us",
        "prefill_us",
        "wait_us",
    )

    def __init__(
        self,
        node: str,
        wait_us: float,
        prefill_us: float,
        decode_us: float,
        overhead_us: float,
        load_us: float = 0.0,
        displaces_us: float = 0.0,
        embed_us: float = 0.0,
        failures_us: float = 0.0,
    ) -> None:
        self.node = node
        self.wait_us = wait_us
        self.prefill_us = prefill_us
        self.decode_us = decode_us
        self.overhead_us = overhead_us
        self.load_us = load_us
        self.displaces_us = displaces_us
        self.embed_us = embed_us
        self.failures_us = failures_us

    def after_wait_us(self) -> float:
        """Return the sum of all terms but the wait for a slot."""
        known = self.load_us + self.displaces_us + self.prefill_us + self.embed_us
        return known + self.decode_us + self.overhead_us + self.failures_us

    @property
    def finish_us(self) -> Micros:
        """Return the sum of the terms."""
        return round(self.wait_us + self.after_wait_us())

    @property
    def terms(self) -> dict[str, Micros]:
        """Return the terms that are not zero, by name."""
        named = (
            ("wait", self.wait_us),
            ("load", self.load_us),
            ("displaces", self.displaces_us),
            ("embed", self.embed_us),
            ("prefill", self.prefill_us),
            ("decode", self.decode_us),
            ("overhead", self.overhead_us),
            ("failures", self.failures_us),
        )
        return {name: round(us) for name, us in named if us}


@mypyc_attr(acyclic=True)
class Decision(Value):
    """Record where an attempt was sent and why.

    Attributes:
        predicted_us: Time from the decision to the complete answer.
        first_us: Time to the first token; 0 where it was not predicted.
        num_ctx: The context that is sent in place of the caller's; 0 for the caller's.
        predictions: The nodes that were compared.
        scores: The number that was minimised, one for each prediction.
    """

    __slots__ = ("first_us", "node", "num_ctx", "predicted_us", "predictions", "reason", "scores")

    def __init__(
        self,
        node: str,
        predicted_us: Micros,
        reason: str,
        first_us: Micros = 0,
        predictions: Sequence[Prediction] = (),
        scores: Sequence[float] = (),
        num_ctx: int = 0,
    ) -> None:
        self.node = node
        self.predicted_us = predicted_us
        self.reason = reason
        self.first_us = first_us
        self.predictions = predictions
        self.scores = scores
        self.num_ctx = num_ctx

    def first_response_us(self, stream: bool) -> Micros:
        """Return the predicted time to the first token of a stream, or to the whole answer."""
        return self.first_us if stream and self.first_us else self.predicted_us

    def prediction_for(self, node: str) -> Prediction | None:
        """Return the prediction for one node, or None if it was not compared."""
        for prediction in self.predictions:
            if prediction.node == node:
                return prediction
        return None

    @property
    def candidates(self) -> tuple[Prediction, ...]:
        """Return the best SHOWN predictions, the best first."""
        order = sorted(range(len(self.predictions)), key=self.scores.__getitem__)
        return tuple([self.predictions[place] for place in order[:SHOWN]])


class LoadedModel(NamedTuple):
    """Hold a row of /api/ps. `size_vram` below `size`: part runs on the CPU; 0 of 0 is unknown.

    Attributes:
        runners: Rows of this name: two after an upgrade that changed its digest while it was in memory.
    """

    size: int = 0
    size_vram: int = 0
    expires_at: str = ""
    context_length: int = 0
    runners: int = 1

    @property
    def gpu_share(self) -> float | None:
        """Return the share of its bytes in GPU memory, 0.0 to 1.0, or None if its size is unknown."""
        return None if self.size <= 0 else max(0.0, min(1.0, self.size_vram / self.size))

    @property
    def processor(self) -> str:
        """Return its place in the words of `ollama ps`, such as "100% GPU"; "unknown" for an unknown size."""
        share = self.gpu_share
        if share is None:
            return "unknown"
        if share in (0.0, 1.0):
            return "100% GPU" if share else "100% CPU"
        return f"{100 - round(100 * share)}%/{round(100 * share)}% CPU/GPU"


class NodeFacts(NamedTuple):
    """Hold the lists of a node: models on disk (name -> bytes), models in memory, digests.

    Attributes:
        late: Lists that have not come; the recorded ones still hold.
        odd: Rows left out, since Ollama does not write such.
    """

    version: str
    models: Mapping[str, int]
    loaded: Mapping[str, LoadedModel]
    digests: Mapping[str, str] = {}
    late: tuple[str, ...] = ()
    odd: int = 0


def canonical_model(name: str) -> str:
    """Return the canonical name of a model: lower case, with its tag, without Ollama's defaults.

    As Ollama resolves names: `Llama3.2`, `library/llama3.2:latest` and `registry.ollama.ai/library/llama3.2` are one
    model. The tag follows a colon after the last slash; `:local` is dropped.
    """
    found = _CANONICAL.get(name)
    if found is None:
        found = _canonical(name)
        if len(name) <= 256:
            if len(_CANONICAL) >= 1_000:
                _CANONICAL.clear()
            _CANONICAL[name] = found
    return found


def _canonical(name: str) -> str:
    found = name.strip().lower().removesuffix(":local")
    _, separator, rest = found.partition("://")
    if separator and rest.count("/") == 2:
        found = rest
    parts = found.split("/")
    if len(parts) == 3 and parts[0] == _HOST:
        parts = parts[1:]
    if len(parts) == 2 and parts[0] == _NAMESPACE:
        parts = parts[1:]
    last = parts[-1]
    if ":" not in last:
        parts[-1] = f"{last}:latest"
    elif last.endswith(":cloud") and last.count(":") == 2:  # two spellings of where it runs
        parts[-1] = f"{last.removesuffix(':cloud')}-cloud"
    return "/".join(parts)


def is_cloud_model(model: str) -> bool:
    """Check that a canonical name is of a model in Ollama's cloud, which no node has on disk."""
    tag = model.rsplit("/", 1)[-1].partition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


_HOST: Final = "registry.ollama.ai"
_NAMESPACE: Final = "library"
_CANONICAL: Final[dict[str, str]] = {}  # so that records of a thousand requests share one string
