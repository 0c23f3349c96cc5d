"""Counters and histograms of finished requests, and the present state, in Prometheus' text format.

Names follow Prometheus' conventions: prefix `sollol_`, base units, `_total` for counters. `FAMILIES` is the one table
of them; docs/metrics.md shows it. Label values come from callers and nodes, so their number is bounded: values beyond
the bound are counted as "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sollol.core.types import EMBED, OK, Cause, Status
from sollol.observe.request_record import RequestRecord

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
MODELS_MOST: Final = 500
MODELS_WITHOUT_NODE_MOST: Final = (
    100  # beyond it, only a request that a node answered adds a model: any may be invented
)
NODES_MOST: Final = 1_000
APPS_MOST: Final = 50
LINES_MOST: Final = 10_000  # label sets that are found at once
BRACES_MOST: Final = 50_000  # texts of label sets that are kept from scrape to scrape
LOADED_LEAST_S: Final = 0.1  # Ollama reports 1 to 7 ms of loading for a model in memory

LATENCY: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0,
)  # fmt: skip
PER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
RATIO: Final = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class Family(NamedTuple):
    """Describe a metric family. `buckets` only for histograms."""

    type: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


FAMILIES: Final[dict[str, Family]] = {
    # --- requests ---
    "sollol_requests_total": Family(
        "counter", ("kind", "model", "node", "outcome"), "Finished requests; node is empty if none answered"
    ),
    "sollol_app_requests_total": Family("counter", ("app", "outcome"), "Finished requests by application"),
    "sollol_app_tokens_total": Family("counter", ("app",), "Tokens of prompts and answers by application"),
    "sollol_request_duration_seconds": Family(
        "histogram", ("kind", "model"), "Time from the arrival of a request to its end", LATENCY
    ),
    "sollol_request_queue_seconds": Family(
        "histogram", ("kind", "model"), "Time from the arrival to the start of the answering attempt", LATENCY
    ),
    "sollol_time_to_first_token_seconds": Family(
        "histogram", ("kind", "model"), "Time from the arrival to the first part of the answer", LATENCY
    ),
    "sollol_time_per_output_token_seconds": Family("histogram", ("model",), "Decode time per output token", PER_TOKEN),
    "sollol_input_tokens_total": Family("counter", ("model", "node"), "Tokens of prompts, as nodes report them"),
    "sollol_output_tokens_total": Family("counter", ("model", "node"), "Tokens of answers, as nodes report them"),
    # --- predictions ---
    "sollol_attempt_duration_seconds": Family(
        "histogram", ("kind", "model"), "Duration of the answering attempts", LATENCY
    ),
    "sollol_attempt_predicted_seconds": Family(
        "histogram", ("kind", "model"), "Predicted duration of the answering attempts", LATENCY
    ),
    "sollol_predicted_time_to_first_token_seconds": Family(
        "histogram", ("kind", "model"), "Predicted time from the start of an attempt to its first token", LATENCY
    ),
    "sollol_prediction_ratio": Family(
        "histogram", ("kind", "model"), "Actual divided by predicted duration of the answering attempts", RATIO
    ),
    # --- attempts ---
    "sollol_attempts_total": Family("counter", ("node", "cause", "outcome"), "Finished attempts of single requests"),
    "sollol_retries_total": Family("counter", ("model",), "Attempts after a failed one"),
    "sollol_hedges_total": Family("counter", ("model",), "Second attempts of slow requests"),
    "sollol_hedges_won_total": Family("counter", ("model",), "Second attempts that answered first"),
    "sollol_resumptions_total": Family("counter", ("model",), "Streams that another node continued"),
    "sollol_loads_total": Family("counter", ("model", "node"), "Loads of a model that requests waited for"),
    "sollol_load_seconds": Family("histogram", ("model",), "Time that nodes spent loading a model", LATENCY),
    # --- present state ---
    "sollol_build_info": Family("gauge", ("version",), "1, with the version of SOLLOL"),
    "sollol_node_up": Family("gauge", ("node",), "1 if the node is up, 0 if it is down"),
    "sollol_node_info": Family("gauge", ("node", "version"), "1, with the version of the node's server"),
    "sollol_node_running": Family("gauge", ("node",), "Requests in flight at the node"),
    "sollol_node_failed_attempts_total": Family("counter", ("node",), "Failed attempts, with those of batches"),
    "sollol_node_attempts_total": Family("counter", ("node",), "Attempts, with those of batches"),
    "sollol_items_total": Family("counter", ("model", "node"), "Texts embedded in batches"),
    "sollol_takeovers_total": Family("counter", ("model",), "Repeated chunks of late items of batches"),
    "sollol_running": Family("gauge", ("model",), "Attempts in flight"),
    "sollol_waiting": Family("gauge", ("model", "priority"), "Requests in the queue"),
    "sollol_slots": Family("gauge", ("model", "node"), "Requests that the node may hold at once"),
    "sollol_breaker_open": Family("gauge", ("model", "node"), "1 while the breaker keeps requests away"),
    "sollol_model_loaded": Family("gauge", ("model", "node"), "1 if the model is in memory"),
    "sollol_model_bytes": Family("gauge", ("model", "node"), "Size of the model in memory"),
    "sollol_model_gpu_share": Family("gauge", ("model", "node"), "Share of the model that is in GPU memory, 0 to 1"),
    "sollol_decode_tokens_per_second": Family("gauge", ("model", "node"), "Measured speed of one answer"),
    "sollol_prefill_tokens_per_second": Family("gauge", ("model", "node"), "Measured speed of reading prompts"),
    "sollol_prompt_cost_total": Family("counter", ("model", "node"), "Size of prompts with a known beginning"),
    "sollol_prompt_cost_reused_total": Family("counter", ("model", "node"), "Part of it that the node had just read"),
    # --- applications that share a Redis ---
    "sollol_redis_up": Family("gauge", (), "1 if the shared Redis answers, 0 if not; absent without one"),
    "sollol_application_processes": Family("gauge", ("app",), "Pools and gateways of the application, of all machines"),
    "sollol_application_requests_per_second": Family("gauge", ("app",), "Its finished requests in the last 10 s"),
    "sollol_application_failed_per_second": Family("gauge", ("app",), "Its failed requests in the last 10 s"),
    "sollol_application_running": Family("gauge", ("app",), "Requests in flight of its processes"),
    "sollol_application_waiting": Family("gauge", ("app",), "Requests in the queues of its processes"),
    "sollol_faults_total": Family("counter", (), "Unexpected exceptions of SOLLOL itself; see its log"),
    "sollol_records_lost_total": Family("counter", ("subscriber",), "Records that a slow subscriber did not get"),
}


class _Counter:
    """Hold the value of one counter's label set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class _Buckets:
    """Hold the counts of one histogram's label set."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class _Lines:
    """Hold the counters and histograms of the requests that agree in all their labels, so that each is found once."""

    __slots__ = (
        "app", "app_tokens", "duration", "first_token", "input_tokens", "output_tokens", "per_token", "predicted",
        "predicted_first", "queue", "ratio", "requests", "taken",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, kind: str, model: str, node: str, outcome: str, app: str) -> None:
        model = metrics.bounded(
            "model", model, MODELS_MOST if node or outcome == OK.value else MODELS_WITHOUT_NODE_MOST
        )
        node = metrics.bounded("node", node, NODES_MOST)
        app = metrics.bounded("app", app, APPS_MOST)
        of_kind, of_node = (kind, model), (model, node)
        self.requests = metrics.counter("sollol_requests_total", (kind, model, node, outcome))
        self.app = metrics.counter("sollol_app_requests_total", (app, outcome))
        self.duration = metrics.histogram("sollol_request_duration_seconds", of_kind)
        self.queue = metrics.histogram("sollol_request_queue_seconds", of_kind)
        if outcome != OK.value or not node:
            return
        self.taken = metrics.histogram("sollol_attempt_duration_seconds", of_kind)
        self.predicted = metrics.histogram("sollol_attempt_predicted_seconds", of_kind)
        self.ratio = metrics.histogram("sollol_prediction_ratio", of_kind)
        if kind != EMBED.value:
            self.first_token = metrics.histogram("sollol_time_to_first_token_seconds", of_kind)
            self.predicted_first = metrics.histogram("sollol_predicted_time_to_first_token_seconds", of_kind)
            self.per_token = metrics.histogram("sollol_time_per_output_token_seconds", (model,))
        self.app_tokens = metrics.counter("sollol_app_tokens_total", (app,))
        self.input_tokens = metrics.counter("sollol_input_tokens_total", of_node)
        self.output_tokens = metrics.counter("sollol_output_tokens_total", of_node)


class Metrics:
    """Count finished requests, and render them with the values of the present state."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[tuple[str, ...], _Counter]] = {
            name: {} for name, family in FAMILIES.items() if family.type == "counter"
        }
        self._histograms: dict[str, dict[tuple[str, ...], _Buckets]] = {
            name: {} for name, family in FAMILIES.items() if family.type == "histogram"
        }
        self._known: dict[str, set[str]] = {"model": set(), "node": set(), "app": set()}
        self._lines: dict[tuple[str, str, str, str, str], _Lines] = {}
        self._attempts: dict[tuple[str, str, str], _Counter] = {}
        self._braces: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}  # texts of label sets, for the next scrape

    def count(self, record: RequestRecord) -> None:
        """Count a finished request."""
        node = record.node if not record.items else ""
        key = (record.kind, record.model, node, record.outcome, record.app)
        lines = self._lines.get(key)
        if lines is None:
            if len(self._lines) >= LINES_MOST:
                self._lines.clear()
            lines = self._lines[key] = _Lines(self, *key)
        lines.requests.value += 1
        lines.app.value += 1
        lines.duration.add(record.total_s)
        lines.queue.add(record.queue_s)
        for attempt in record.attempts:
            self._count_attempt(attempt.node, attempt.cause, attempt.outcome)
        if node and record.ok:
            self._count_answer(record, lines)
        if len(record.attempts) > 1 or record.items or record.resumptions or record.load_s > LOADED_LEAST_S:
            self._count_rare(record)

    def _count_attempt(self, node: str, cause: str, outcome: str) -> None:
        found = self._attempts.get((node, cause, outcome))
        if found is None:
            if len(self._attempts) >= LINES_MOST:
                self._attempts.clear()
            labels = (self.bounded("node", node, NODES_MOST), cause, outcome)
            found = self._attempts[node, cause, outcome] = self.counter("sollol_attempts_total", labels)
        found.value += 1

    def _count_answer(self, record: RequestRecord, lines: _Lines) -> None:
        lines.taken.add(record.actual_s)
        if record.predicted_s:
            lines.predicted.add(record.predicted_s)
            lines.ratio.add(record.actual_s / record.predicted_s)
        if record.tokens_in or record.tokens_out:
            lines.app_tokens.value += record.tokens_in + record.tokens_out
            lines.input_tokens.value += record.tokens_in
            lines.output_tokens.value += record.tokens_out
        if record.first_token_s is not None and record.kind != EMBED.value:
            lines.first_token.add(record.first_token_s)
            if record.predicted_first_s:
                lines.predicted_first.add(record.predicted_first_s)
            if record.tokens_out and record.decode_s:
                lines.per_token.add(record.decode_s / record.tokens_out)

    def _count_rare(self, record: RequestRecord) -> None:
        model = (self.bounded("model", record.model, MODELS_MOST),)
        won = sum(attempt.cause == Cause.HEDGE.value and attempt.outcome == OK.value for attempt in record.attempts)
        for name, number in (
            ("sollol_retries_total", record.caused_by(Cause.RETRY)),
            ("sollol_hedges_total", record.caused_by(Cause.HEDGE)),
            ("sollol_hedges_won_total", won),
            ("sollol_takeovers_total", record.takeovers),
            ("sollol_resumptions_total", record.resumptions),
        ):
            if number:
                self.counter(name, model).value += number
        if record.load_s > LOADED_LEAST_S:
            where = self.bounded("node", record.node, NODES_MOST)
            self.counter("sollol_loads_total", (*model, where)).value += 1
            self.histogram("sollol_load_seconds", model).add(record.load_s)

    def by_app(self) -> dict[str, tuple[int, int, int]]:
        """Return finished requests, failed ones, and tokens, by application. Callable from any thread."""
        found: dict[str, tuple[int, int, int]] = {}
        for (app, outcome), counted in list(self._counters["sollol_app_requests_total"].items()):
            requests, failed, _ = found.get(app, (0, 0, 0))
            number = int(counted.value)
            is_failed = outcome not in (OK.value, Status.LEFT.value)
            found[app] = requests + number, failed + number * is_failed, 0
        for (app,), counted in list(self._counters["sollol_app_tokens_total"].items()):
            requests, failed, _ = found.get(app, (0, 0, 0))
            found[app] = requests, failed, int(counted.value)
        return found

    def render(self, present: Mapping[str, Mapping[tuple[str, ...], float]]) -> bytes:
        """Return all families as text. `present` has the values of the state now, by family and labels."""
        lines: list[str] = []
        for name, family in FAMILIES.items():
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.type}"]
            if family.type == "histogram":
                for labels, held in list(self._histograms[name].items()):
                    lines += _histogram_lines(name, family, labels, held)
                continue
            counted = {labels: held.value for labels, held in list(self._counters.get(name, {}).items())}
            braces = self._braces.setdefault(family.labels, {})
            if len(braces) > BRACES_MOST:
                braces.clear()
            for labels, value in (present.get(name) or counted).items():
                text = braces.get(labels)
                if text is None:
                    text = braces[labels] = _braced(family.labels, labels)
                number = str(value) if value.__class__ is int else _number(value)
                lines.append(f"{name}{text} {number}")
        lines.append("")
        return "\n".join(lines).encode()

    def bounded(self, label: str, value: str, most: int) -> str:
        """Return a label value, or OTHER once `most` different ones were counted."""
        known = self._known[label]
        if value in known:
            return value
        if len(known) >= most:
            return OTHER
        known.add(value)
        return value

    def counter(self, name: str, labels: tuple[str, ...]) -> _Counter:
        """Return the counter of a label set."""
        values = self._counters[name]
        found = values.get(labels)
        if found is None:
            found = values[labels] = _Counter()
        return found

    def histogram(self, name: str, labels: tuple[str, ...]) -> _Buckets:
        """Return the histogram of a label set."""
        values = self._histograms[name]
        found = values.get(labels)
        if found is None:
            found = values[labels] = _Buckets(FAMILIES[name].buckets)
        return found


def _histogram_lines(name: str, family: Family, labels: tuple[str, ...], held: _Buckets) -> Iterable[str]:
    prefix = "".join(f'{label}="{escaped(value)}",' for label, value in zip(family.labels, labels, strict=True))
    total = 0
    for bound, number in zip((*map(_number, family.buckets), "+Inf"), held.counts, strict=True):
        total += number
        yield f'{name}_bucket{{{prefix}le="{bound}"}} {total}'
    yield f"{name}_sum{_braced(family.labels, labels)} {held.sum!r}"
    yield f"{name}_count{_braced(family.labels, labels)} {total}"


def _braced(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = ",".join([f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True)])
    return f"{{{pairs}}}"


def escaped(value: str) -> str:
    """Return a label value with backslashes, quotes and line feeds escaped, as the format demands."""
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value


def _number(value: float) -> str:
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text
