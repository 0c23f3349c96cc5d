"""Findings: what is wrong with the cluster, what it costs, and the exact fix.

Each check reads a snapshot (`pool.snapshot()`) and what a monitor saw over time, and returns findings in words. It
returns nothing where all is well. The dashboard, `sollol doctor` and alerts show the same findings.

Over 400 lines, because each check is a function with its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import asdict

from sollol.core.types import LoadedModel
from sollol.observe.replica_state import moment
from sollol.observe.rows import LoadedRow, NodeStateRow, Snapshot

INFO: Final = "info"
WARNING: Final = "warning"
ERROR: Final = "error"
SEVERITIES: Final = (ERROR, WARNING, INFO)

CALIBRATION_LEAST: Final = 50  # answered requests before their calibration is judged
CALIBRATION_GOOD: Final = (0.6, 1.6)  # median of actual divided by predicted time
LOADS_WAR: Final = 4  # loads of one model on one node within LOADS_WITHIN_S that make a war
LOADS_WITHIN_S: Final = 600.0
LOAD_OVERDUE: Final = 4.0  # times its prediction
LOAD_OVERDUE_LEAST_S: Final = 60.0
UNLOAD_OVERDUE_S: Final = 60.0  # after the end that the node itself listed
FAILED_SHARE: Final = 0.05  # of the requests of the last minutes
FAILED_LEAST: Final = 5
QUEUE_LONG_S: Final = 30.0
CONTEXT_FULL: Final = 0.95  # share of the context that prompts of recent requests fill
CONTEXT_LARGE: Final = 65_536  # tokens
ONE_SLOT_WAITING: Final = 2
CPU_TIMES: Final = 20  # measured: a model on the CPU against the same on a GPU


class Finding(Struct, frozen=True):
    """Report one fault of the cluster.

    Attributes:
        id: Name of the check, such as "node-down".
        subject: The node, model, or both, that it concerns.
        summary: The fault, in one sentence.
        cost: Its effect on requests.
        fix: The steps that mend it.
        data: The values that the check saw.
    """

    id: str
    severity: str
    subject: str
    summary: str
    cost: str
    fix: str
    data: dict[str, Any] = {}


class ModelLoad(NamedTuple):
    """Report one load of a model that a request waited for; `at` in seconds since 1970."""

    at: float
    node: str
    model: str
    options: str
    app: str


class Evidence(NamedTuple):
    """Hold what checks read.

    Attributes:
        snapshot: `pool.snapshot()`.
        at: The present, in seconds since 1970.
        loads: Loads of the last LOADS_WITHIN_S.
        failed: Requests without an answer in the last minutes, by error.
        finished: Requests that ended in the last minutes.
        prompts: (model, node) to the largest prompt of the last minutes, in tokens.
    """

    snapshot: Snapshot
    at: float
    loads: tuple[ModelLoad, ...] = ()
    failed: Mapping[str, int] = {}
    finished: int = 0
    prompts: Mapping[tuple[str, str], int] = {}

    @property
    def nodes(self) -> list[NodeStateRow]:
        """Return the rows of the nodes."""
        return self.snapshot.nodes

    @property
    def up(self) -> list[NodeStateRow]:
        """Return the rows of the nodes that are up."""
        return [node for node in self.nodes if node.state == "up"]


def no_nodes(seen: Evidence) -> Iterator[Finding]:
    """Find a cluster without nodes, or with none that is up."""
    if not seen.nodes:
        yield Finding(
            "no-nodes", ERROR, "", "No nodes are known.", "No request can be answered.",
            "Name them in SOLLOL_NODES or the configuration file; `sollol discover` lists what is in the network.",
        )  # fmt: skip
    elif not seen.up and all(node.state == "down" for node in seen.nodes):
        all_nodes = "The only node is" if len(seen.nodes) == 1 else f"All {len(seen.nodes)} nodes are"
        yield Finding(
            "all-down", ERROR, "", f"{all_nodes} down.", "No request can be answered.",
            "Start Ollama on one of them (`ollama serve`), or check the network.",
        )  # fmt: skip


def node_down(seen: Evidence) -> Iterator[Finding]:
    """Find nodes that are down."""
    for node in seen.nodes:
        if node.state == "down":
            since = f" for {duration(seen.at - node.since)}" if node.since else ""
            yield Finding(
                "node-down", ERROR, node.host, f"{node.host} is down{since}: {node.why}.",
                "Its share of the work is done by the others.",
                f"On it, run `ollama serve` (or restart its service), with OLLAMA_HOST=0.0.0.0 if it is another "
                f"machine; test with `curl {node.url}/api/version`.",
                {"why": node.why},
            )  # fmt: skip


def twin_runners(seen: Evidence) -> Iterator[Finding]:
    """Find models of which two versions are in memory at once."""
    for node in seen.up:
        for held in node.loaded:
            if held.runners > 1:
                subject = f"{held.model} on {node.host}"
                yield Finding(
                    "twin-runners", WARNING, subject,
                    f"{held.runners} versions of {subject} are in memory at once, with {held.size / 1e9:.1f} GB.",
                    "The memory of the older one is lost to all other models.",
                    f"Unload it twice: `sollol models unload {held.model} --on {node.host}`; "
                    "`sollol serve --controller` does it when the model is idle.", {"runners": held.runners},
                )  # fmt: skip


def asleep(seen: Evidence) -> Iterator[Finding]:
    """Find nodes that sleep."""
    for node in seen.nodes:
        if node.state == "asleep":
            yield Finding(
                "node-asleep", INFO, node.host, f"{node.host} is asleep.",
                "It is woken when a request would wait longer than it takes to boot.",
                f"To wake it now: `curl -X POST http://127.0.0.1:11435/sollol/nodes/{node.host}/wake`.",
            )  # fmt: skip


def key_needed(seen: Evidence) -> Iterator[Finding]:
    """Find nodes behind a proxy that requires a key, and requests that a node cannot serve."""
    for node in seen.up:
        for words in node.unable:
            locked = "key" in words
            yield Finding(
                "key-needed" if locked else "incapable", WARNING, node.host, f"{node.host}: {words}.",
                "Such requests go to other nodes.",
                "Write the key into the address of the node: http://any:KEY@host:port." if locked
                else "Update the node's server, or leave these requests to others.",
            )  # fmt: skip


def on_the_cpu(seen: Evidence) -> Iterator[Finding]:
    """Find models that run partly or wholly on a CPU, although a GPU is there."""
    on_gpu = {held.model for node in seen.up for held in node.loaded if _share(held) == 1.0}
    for node in seen.up:
        for held in node.loaded:
            share = _share(held)
            if share is None or share == 1.0 or not (node.has_gpu or held.model in on_gpu):
                continue
            subject = f"{held.model} on {node.host}"
            if share == 0.0:
                cost = f"It can be {CPU_TIMES} times slower than on a GPU."
                fix = f"On {node.host}: `ollama stop {held.model}`, so that the next request loads it again."
                if not node.has_gpu:
                    fix = "If that machine has a GPU, check its driver; else leave this model to the other nodes."
                severity = WARNING if node.has_gpu else INFO
                yield Finding("on-cpu", severity, subject, f"{subject} runs on the CPU.", cost, fix, asdict(held))
            else:
                yield Finding(
                    "partly-on-cpu", WARNING, subject, f"{subject} runs {held.processor}.",
                    f"The {1 - share:.0%} on the CPU can make it {1 + (CPU_TIMES - 1) * (1 - share):.0f} times slower.",
                    "Use a smaller context (num_ctx) or quantisation, or unload the other models of this node.",
                    asdict(held),
                )  # fmt: skip


def mixed_digests(seen: Evidence) -> Iterator[Finding]:
    """Find models that nodes have in different versions under one name."""
    for model, found in seen.snapshot.mixed_digests.items():
        nodes = found.nodes
        listed = "; ".join(f"{digest[:12]} on {', '.join(keys)}" for digest, keys in nodes.items())
        yield Finding(
            "mixed-digests", WARNING, model, f"{model} has {len(nodes)} versions: {listed}.",
            "Answers depend on the node, and embeddings of different versions must not be mixed.",
            f"Pull it again where it is old: `ollama pull {model}`; meanwhile embeddings use one version only.",
            {"versions": {digest: list(keys) for digest, keys in nodes.items()}},
        )  # fmt: skip


def version_skew(seen: Evidence) -> Iterator[Finding]:
    """Find nodes whose servers have different versions."""
    versions: dict[str, list[str]] = {}
    for node in seen.up:
        if node.version:
            versions.setdefault(node.version, []).append(node.host)
    if len(versions) > 1:
        listed = "; ".join(f"{version} on {', '.join(nodes)}" for version, nodes in sorted(versions.items()))
        yield Finding(
            "version-skew", INFO, "", f"The nodes have {len(versions)} versions: {listed}.",
            "Some may lack routes or models that others have.", "Update the older ones.", {"versions": versions},
        )  # fmt: skip


def load_wars(seen: Evidence) -> Iterator[Finding]:
    """Find models that are loaded again and again: by other options, or by turns with another model."""
    by_replica: dict[tuple[str, str], list[ModelLoad]] = {}
    for load in seen.loads:
        by_replica.setdefault((load.node, load.model), []).append(load)
    for (node, model), loads in by_replica.items():
        if len(loads) < LOADS_WAR:
            continue
        options = {load.options or "no options" for load in loads}
        apps = ", ".join(sorted({load.app or "an application without a name" for load in loads}))
        subject = f"{model} on {node}"
        often = f"{subject} was loaded {len(loads)} times in {duration(LOADS_WITHIN_S)}"
        if len(options) > 1:
            yield Finding(
                "reload-war", WARNING, subject, f"{often}, by turns with {' and '.join(sorted(options))} ({apps}).",
                "Each change of options is a load, for which requests wait.",
                "Let all clients use the same num_ctx (the largest), or set OLLAMA_CONTEXT_LENGTH and send none.",
                {"options": sorted(options), "apps": apps, "loads": len(loads)},
            )  # fmt: skip
        else:
            others = sorted({load.model for load in seen.loads if load.node == node} - {model})
            by_turns = f", by turns with {', '.join(others)}" if others else ""
            yield Finding(
                "eviction-war", WARNING, subject, f"{often}{by_turns} ({apps}).",
                "The models do not fit into its memory together, and evict one another.",
                "Keep one of them on this node and the other elsewhere, or raise keep_alive if it just expires.",
                {"others": others, "apps": apps, "loads": len(loads)},
            )  # fmt: skip


def hung_load(seen: Evidence) -> Iterator[Finding]:
    """Find loads that take many times their prediction."""
    for node in seen.up:
        for load in node.loading:
            elapsed_s, predicted_s = load.elapsed_ms / 1000, load.predicted_ms / 1000
            if elapsed_s > max(LOAD_OVERDUE_LEAST_S, LOAD_OVERDUE * predicted_s):
                subject = f"{load.model} on {node.host}"
                yield Finding(
                    "hung-load", ERROR, subject,
                    f"{subject} has been loading for {duration(elapsed_s)}; {duration(predicted_s)} were predicted.",
                    "Requests that wait for it get no answer from this node.",
                    f"Restart Ollama on {node.host}; look for GPU errors in its log.", asdict(load),
                )  # fmt: skip


def stuck_unload(seen: Evidence) -> Iterator[Finding]:
    """Find models that should have left the memory."""
    busy = {(row.node, row.model) for row in seen.snapshot.running}
    for node in seen.up:
        for held in node.loaded:
            late_s = seen.at - moment(held.expires_at, seen.at)
            if UNLOAD_OVERDUE_S < late_s < 365 * 86_400 and (node.host, held.model) not in busy:
                subject = f"{held.model} on {node.host}"
                yield Finding(
                    "stuck-unload", WARNING, subject,
                    f"{subject} should have left the memory {duration(late_s)} ago, and is still there.",
                    "Its memory is missing for other models; a wrong clock of the node looks the same.",
                    f"Compare the clocks (`date`); restart Ollama on {node.host} if they agree.", asdict(held),
                )  # fmt: skip


def open_breaker(seen: Evidence) -> Iterator[Finding]:
    """Find models that get no requests on a node because they failed in a row."""
    for node in seen.up:
        for model in node.breakers:
            subject = f"{model} on {node.host}"
            yield Finding(
                "breaker-open", WARNING, subject, f"{subject} failed several times in a row and gets few requests.",
                "Other nodes do its share.",
                f"`sollol explain` of a failed request has the node's error; try `ollama run {model}` on the node.",
            )  # fmt: skip


def requests_fail(seen: Evidence) -> Iterator[Finding]:
    """Find a share of failed requests."""
    failed = sum(seen.failed.values())
    if failed >= FAILED_LEAST and failed > FAILED_SHARE * seen.finished:
        error = max(seen.failed, key=lambda text: seen.failed[text])
        yield Finding(
            "requests-fail", ERROR, "", f"{failed} of the last {seen.finished} requests failed, most with: {error}.",
            "Callers got an error.", "Open one of them in the list of recent requests: it names each node's error.",
            {"errors": dict(seen.failed)},
        )  # fmt: skip


def long_queue(seen: Evidence) -> Iterator[Finding]:
    """Find models whose next request would wait long."""
    longest: dict[str, tuple[float, int]] = {}
    for row in seen.snapshot.waiting:
        before = longest.get(row.model, (0.0, 0))
        longest[row.model] = (max(before[0], row.eta_ms / 1000), before[1] + 1)
    for model, (eta_s, number) in longest.items():
        if eta_s > QUEUE_LONG_S:
            yield Finding(
                "long-queue", WARNING, model,
                f"{number} requests wait for {model}; the last one starts in {duration(eta_s)}.",
                "Every new request waits as long.", f"Pull {model} to more nodes, or send batches with priority LOW.",
                {"waiting": number, "eta_s": eta_s},
            )  # fmt: skip


def one_slot(seen: Evidence) -> Iterator[Finding]:
    """Find nodes that answer one request at a time while others wait."""
    waiting: dict[str, int] = {}
    for row in seen.snapshot.waiting:
        waiting[row.model] = waiting.get(row.model, 0) + 1
    for node in seen.up:
        for held in node.loaded:
            model = held.model
            if node.slots.get(model) == 1 and waiting.get(model, 0) >= ONE_SLOT_WAITING and _share(held) == 1.0:
                subject = f"{model} on {node.host}"
                yield Finding(
                    "one-slot", INFO, subject, f"{subject} answers one request at a time, and {waiting[model]} wait.",
                    "A GPU often answers four at once at two to three times the total speed.",
                    f"On {node.host}, set OLLAMA_NUM_PARALLEL=4, if its memory has room for four contexts.",
                )  # fmt: skip


def context(seen: Evidence) -> Iterator[Finding]:
    """Find contexts that prompts fill, and contexts so large that a model does not fit."""
    for node in seen.up:
        for held in node.loaded:
            size, model = held.context_length, held.model
            subject = f"{model} on {node.host}"
            prompt = seen.prompts.get((model, node.host), 0)
            if size and prompt >= CONTEXT_FULL * size:
                yield Finding(
                    "context-full", WARNING, subject,
                    f"A prompt of {prompt:,} tokens fills the context of {subject} ({size:,}).",
                    "Ollama cuts the beginning of such a prompt without an error, and reads the rest again each time.",
                    f"Send options.num_ctx of at least {2 * size:,}, or set OLLAMA_CONTEXT_LENGTH on the node.",
                    {"prompt_tokens": prompt, "context_length": size},
                )  # fmt: skip
            elif size > CONTEXT_LARGE and (_share(held) or 0.0) < 1.0:
                yield Finding(
                    "context-too-large", WARNING, subject,
                    f"{subject} has a context of {size:,} tokens and does not fit into the GPU.",
                    "The memory of the context pushes the model onto the CPU.",
                    "Send a smaller options.num_ctx, or lower OLLAMA_CONTEXT_LENGTH on the node.",
                    {"context_length": size},
                )  # fmt: skip


def calibration(seen: Evidence) -> Iterator[Finding]:
    """Find predictions that are far from what happens."""
    median, count = seen.snapshot.calibration.median, seen.snapshot.calibration.count
    low, high = CALIBRATION_GOOD
    if median is not None and count >= CALIBRATION_LEAST and not low <= median <= high:
        slower = f"{median:.1f} times" if median > 1 else f"{median:.0%} of"
        yield Finding(
            "calibration", INFO, "", f"Requests take {slower} their predicted time.",
            "Requests may go to a node that is not the fastest.",
            "It corrects itself within some answers; if it stays, send us `sollol report`.",
            {"median": median, "count": count},
        )  # fmt: skip


def faults(seen: Evidence) -> Iterator[Finding]:
    """Find unexpected exceptions of SOLLOL itself."""
    number = seen.snapshot.totals.faults
    if number:
        yield Finding(
            "faults", WARNING, "", f"{number} unexpected errors of SOLLOL itself.", "Some requests may have failed.",
            "The log has their tracebacks ('fault'); please report them.", {"faults": number},
        )  # fmt: skip


Check = Callable[[Evidence], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    no_nodes, node_down, hung_load, requests_fail, key_needed, on_the_cpu, load_wars, mixed_digests, open_breaker,
    asleep, twin_runners, stuck_unload, long_queue, context, one_slot, version_skew, calibration, faults,
)  # fmt: skip


def findings_of(seen: Evidence, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Return the findings of all checks, the most severe first."""
    found = [finding for check in checks for finding in check(seen)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def duration(seconds: float) -> str:
    """Return a duration in words, such as "40 s" or "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7_200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02} min"
    return f"{whole // 86_400} days"


def _share(held: LoadedRow) -> float | None:
    return LoadedModel(held.size, held.size_vram).gpu_share
