"""The fleet and the traffic of `bench.routing`, drawn from a seed.

Fleet: 50 nodes whose speed is 2^u, u uniform in 0..4, so 1:16; a node of speed 1 writes 8 tokens/s, reads 100
tokens/s and embeds 5 texts/s, one of speed s does all that s times as fast. VRAM grows with speed (8 to 24 GB); a node
has about three in four of the models that fit into it on disk, starts with as many in memory as fit together (at
most three), and loads others at 1 GB/s, putting out what is in the way. Each model has one slot, and models that
work at the same time share the node's GPU (`SharedNode`): without that, a node would be as fast as it has models.

Traffic: Poisson arrivals. A quarter are embeddings of 1 to 16 texts; the others are chats of five types with four
models of unequal popularity. The type is told by the words of the prompt only. The length of an answer is lognormal
around the mean of its type and known to nobody but the node (and the oracle): `HiddenLengths` writes it into the
request on the wire, behind every balancer.

Capacity: the greatest rate of requests at which a work-conserving fleet could keep up if loading cost nothing and
lengths were known. The work of a request is its seconds on a node of speed 1; a node does `speed` of them a second.
A set S of models can be served no faster than by all nodes that hold any of S, so by max-flow min-cut
    capacity = min over S of  sum(speed of nodes that hold any of S) / (work of S in the mean request).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from sollol.backends.ollama import decode, encode
from sollol.core.endpoint import Endpoint
from sollol.core.value import replaced
from sollol.sim import ModelSpec, NodeSpec, SimNode, SimTransport, World
from sollol.sim.machine import Machine
from sollol.sim.models import full_name
from sollol.sim.reply import SimReply
from sollol.sim.runner import Runner, Runners, Slots
from sollol.transport.base import Call

WRITES, READS, EMBEDS = 8.0, 100.0, 5.0  # a node of speed 1: tokens/s, tokens/s, texts/s
LOADS = 1e9  # bytes/s
LATENCY_S = 0.001
JITTER = 0.1
GB = 1_000_000_000
EMBED = "nomic-embed-text"
CHATS = (("llama3.2", 2 * GB, 0.4), ("qwen2.5", 5 * GB, 0.3), ("gemma2", 6 * GB, 0.2), ("mistral-nemo", 8 * GB, 0.1))
TYPES = (  # type, share, mean tokens of the answer, mean words of the prompt
    ("chat", 0.40, 150.0, 80.0),
    ("code", 0.15, 300.0, 150.0),
    ("summarise", 0.15, 100.0, 800.0),
    ("classify", 0.20, 6.0, 60.0),
    ("extract", 0.10, 40.0, 300.0),
)
LENGTHS, PROMPTS = 0.4, 0.6  # sigma of the logarithm, within a type
EMBED_SHARE = 0.25
WORD = "lorem "  # every word of every prompt costs the same to read
PHRASES = {
    "chat": ("What do you think about this?", "I would like to talk about my garden.", "Why is the sky blue?"),
    "code": ("Write a Python function that does this:", "Fix the bug in this program:", "Implement this in Rust:"),
    "summarise": ("Summarise the following text.", "Give me the gist of this report:", "TL;DR of this, please:"),
    "classify": (
        "Classify this review as positive or negative:",
        "Is this e-mail spam? Answer yes or no.",
        "Which of the labels a, b or c fits?",
    ),
    "extract": (
        "Extract all names and dates from this text.",
        "List every company mentioned here:",
        "Pull the address out of this letter.",
    ),
}
MARKS = 38  # tokens of a prompt besides its words: the phrase and the template's own
TEXT = "a passage of ordinary length about nodes, models and queues, as an index is made of"


class Ask(NamedTuple):
    """One request: when it comes, what it is, and what only nodes and oracles know: its seconds at speed 1."""

    number: int
    at_s: float
    model: str
    type: str
    words: int  # of the prompt, or texts to embed
    tokens: int  # of the answer
    work_s: float

    @property
    def is_embed(self) -> bool:
        return self.type == "embed"

    @property
    def messages(self) -> list[dict[str, str]]:
        phrases = PHRASES[self.type]
        text = f"[{self.number}] {phrases[self.number % len(phrases)]} " + WORD * self.words
        return [{"role": "user", "content": text}]

    @property
    def texts(self) -> list[str]:
        return [TEXT] * self.words

    def call(self) -> Call:
        if self.is_embed:
            return Call("POST", "/api/embed", encode({"model": self.model, "input": self.texts}))
        body = {"model": self.model, "messages": self.messages, "stream": False}
        return Call("POST", "/api/chat", encode(body))


class Site(NamedTuple):
    spec: NodeSpec
    speed: float
    models: frozenset[str]


def fleet(seed: int, count: int = 50) -> list[Site]:
    rng = random.Random(f"fleet {seed}")
    return [_site(place, rng) for place in range(count)]


def _site(place: int, rng: random.Random) -> Site:
    speed = 2 ** rng.uniform(0, 4)
    vram = (8 if speed < 3 else 12 if speed < 8 else 24) * GB
    chats = [ModelSpec(name, size_bytes=size, mean_words=math.inf, context_length=8192) for name, size, _ in CHATS]
    fitting = [model for model in chats if model.size_bytes <= 0.8 * vram]
    models = [model for model in fitting if rng.random() < 0.75] or [rng.choice(fitting)]
    if rng.random() < 0.8:
        models.append(ModelSpec(EMBED, "embed", 300_000_000, dim=4))
    rng.shuffle(models)
    loaded: list[ModelSpec] = []
    for model in models:
        if len(loaded) < 3 and sum(m.size_bytes for m in [*loaded, model]) <= vram:
            loaded.append(model)
    spec = NodeSpec(
        host=f"10.0.0.{place + 1}",
        models=tuple(models),
        loaded=tuple(model.name for model in loaded),
        decode_tokens_per_s=WRITES * speed,
        prefill_tokens_per_s=READS * speed,
        embed_items_per_s=EMBEDS * speed,
        load_bytes_per_s=LOADS,
        vram_bytes=vram,
        num_ctx=8192,
        latency_s=LATENCY_S,
        jitter=JITTER,
        vectors="cheap",
        seed=place,
    )
    return Site(spec, speed, frozenset(model.name.removesuffix(":latest") for model in models))


def traffic(sites: Sequence[Site], load: float, count: int, seed: int) -> list[Ask]:
    """`count` requests at `load` times the capacity of the fleet."""
    rng = random.Random(f"traffic {seed}")
    drawn = list(_draw(count, rng))
    rate = load * capacity(sites, drawn)
    at_s, found = 0.0, []
    for ask in drawn:
        at_s += rng.expovariate(rate)
        found.append(ask._replace(at_s=at_s))
    return found


def _draw(count: int, rng: random.Random) -> Iterator[Ask]:
    for number in range(count):
        if rng.random() < EMBED_SHARE:
            texts = rng.choice((1, 1, 1, 2, 4, 16))
            yield Ask(number, 0.0, EMBED, "embed", texts, 0, texts / EMBEDS)
            continue
        kind, _, mean_tokens, mean_words = rng.choices(TYPES, [share for _, share, _, _ in TYPES])[0]
        model = rng.choices(CHATS, [share for _, _, share in CHATS])[0][0]
        tokens = max(1, round(lognormal(mean_tokens, LENGTHS, rng)))
        words = min(6000, max(1, round(lognormal(mean_words, PROMPTS, rng))))
        yield Ask(number, 0.0, model, kind, words, tokens, (words + MARKS) / READS + tokens / WRITES)


def lognormal(mean: float, sigma: float, rng: random.Random) -> float:
    return mean * math.exp(rng.gauss(0, sigma) - sigma * sigma / 2)


def capacity(sites: Sequence[Site], asks: Sequence[Ask]) -> float:
    """Requests a second; see above."""
    demand: dict[str, float] = {}
    for ask in asks:
        demand[ask.model] = demand.get(ask.model, 0.0) + ask.work_s / len(asks)
    bounds = [
        sum(site.speed for site in sites if site.models & set(some)) / sum(demand[model] for model in some)
        for size in range(1, len(demand) + 1)
        for some in combinations(sorted(demand), size)
    ]
    return min(bounds)


# --- a node whose models share one GPU -------------------------------------------------------------------------------


class _SharedSlots(Slots):
    def __init__(self, machine: Machine, count: int, runners: _SharedRunners) -> None:
        super().__init__(machine, count)
        self._runners = runners

    async def acquire(self) -> None:
        await super().acquire()
        self._runners.share()

    def release(self) -> None:
        super().release()
        self._runners.share()


class _SharedRunners(Runners):
    def __init__(self, machine: Machine, spec: NodeSpec) -> None:
        super().__init__(machine, spec)
        self._gpu = machine

    def put(self, model: ModelSpec, options: tuple[Any, ...]) -> Runner:
        runner = super().put(model, options)
        runner.slots = _SharedSlots(self._gpu, runner.slots.count, self)
        return runner

    def share(self) -> None:
        """Each of n models at work gets 1/n of the GPU, from this moment on."""
        working = sum(runner.slots.free < runner.slots.count for runner in self.loaded.values())
        self._gpu.set_pace(slow=max(1, working))


class SharedNode(SimNode):
    """A node whose models work at the same time at the cost of each other, as on one GPU."""

    def __init__(self, spec: NodeSpec) -> None:
        super().__init__(spec)
        self.runners = _SharedRunners(self.machine, spec)
        self._preload()


def number_of(body: dict[str, Any]) -> int:
    """Which request this is: its prompt begins with the number in brackets."""
    text: str = body["messages"][0]["content"]
    return int(text.partition("]")[0][1:])


class HiddenLengths(SimTransport):
    """Tells each node how long its answer will be; what balancers send does not say it."""

    def __init__(self, world: World, asks: Sequence[Ask]) -> None:
        super().__init__(world)
        self._tokens = [ask.tokens for ask in asks]

    async def send(self, node: Endpoint, call: Call) -> SimReply:
        if call.path == "/api/chat" and isinstance(call.body, bytes):
            data = decode(call.body)
            data["options"] = {**(data.get("options") or {}), "num_predict": self._tokens[number_of(data)]}
            call = replaced(call, body=encode(data))
        return await super().send(node, call)


def universe(sites: Sequence[Site], asks: Sequence[Ask]) -> HiddenLengths:
    return HiddenLengths(World([SharedNode(site.spec) for site in sites]), asks)


def holders(sites: Sequence[Site], model: str) -> list[Site]:
    """The nodes that have a model on disk."""
    return [site for site in sites if model in site.models]


def size_of(model: str) -> int:
    return next((size for name, size, _ in CHATS if full_name(name) == full_name(model)), 300_000_000)
