"""Carry out changes of models on nodes: pull, keep in memory, release, unload.

Changes run one after another, because a node loads one model at a time; pulls of one model to several nodes run
together. A failed change does not stop the others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any, Final, NamedTuple

from sollol.answers import Answer
from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, Micros
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.models import operations
from sollol.models.desired import Change
from sollol.models.inventory import is_pinned
from sollol.transport.base import Transport

FOREVER: Final = -1  # as `keep_alive`: until it is unloaded
USUAL: Final = "5m"  # as `keep_alive`: Ollama's default; a call without one would keep the value of the last
KEEP_ALIVE: Final[Mapping[str, int | str]] = {"warm": FOREVER, "unpin": USUAL, "unload": 0}

Pull = Callable[[str, Sequence[Endpoint]], AsyncGenerator[Answer, None]]


def plain_pull(transport: Transport) -> Pull:
    """Return a function that pulls a model to each node from its usual registry."""

    def pull(model: str, nodes: Sequence[Endpoint]) -> AsyncGenerator[Answer, None]:
        return operations.progress(transport, nodes, "/api/pull", {"model": model})

    return pull


async def carry_out(
    transport: Transport, nodes: Mapping[str, Endpoint], changes: Sequence[Change], pull: Pull | None = None
) -> AsyncGenerator[Answer, None]:
    """Make the changes, and yield lines with `verb`, `model` and `node`.

    The last line of a change has `status` "success", or an `error`; those of pulls before it have their progress.
    """
    pull = pull or plain_pull(transport)
    for (verb, model), group in groupby(changes, key=lambda change: (change.verb, change.model)):
        keys = [change.node for change in group]
        head = {"verb": verb, "model": model}
        if verb != "pull":
            for key in keys:
                yield Answer({**head, **await _kept(transport, nodes[key], model, KEEP_ALIVE[verb])})
            continue
        async with aclosing(pull(model, [nodes[key] for key in keys])) as lines:
            async for line in lines:
                yield Answer({**head, **line})


async def outcomes_of(lines: AsyncGenerator[Answer, None]) -> dict[tuple[str, str, str], str]:
    """Read the lines of `carry_out`; return (verb, model, node) -> "success", or the error."""
    outcomes: dict[tuple[str, str, str], str] = {}
    async with aclosing(lines):
        async for line in lines:
            if "error" in line or line.get("status") == "success":
                outcomes[line["verb"], line["model"], line["node"]] = str(line.get("error") or "success")
    return outcomes


async def _kept(transport: Transport, node: Endpoint, model: str, keep_alive: int | str) -> dict[str, Any]:
    try:
        await operations.load(transport, [node], {"model": model, "keep_alive": keep_alive})
    except (ResponseError, NoNodeAvailable) as error:
        text = error.error if isinstance(error, ResponseError) else error.tried[0][1] if error.tried else str(error)
        return {"node": node.key, "error": text.removeprefix(f"{node.key}: ")}
    return {"node": node.key, "status": "success"}


# --- room in memory ---


class HeldModel(NamedTuple):
    """A model in the memory of a node, with its use. `busy`: calls run there."""

    name: str
    loaded: LoadedModel
    last_use: Micros = 0
    busy: bool = False

    @property
    def freed_bytes(self) -> int:
        """The memory that an unload frees: of the GPU, or of the machine where nothing is on the GPU."""
        return self.loaded.size_vram or self.loaded.size


class Unloads(NamedTuple):
    """The models to unload, the bytes that this frees, and why the others stay."""

    models: tuple[str, ...]
    freed_bytes: int
    kept: Mapping[str, str]


def choose_unloads(held: Sequence[HeldModel], needed_bytes: int) -> Unloads:
    """Choose models to unload until `needed_bytes` are free, the one unused for longest first.

    Busy and pinned models stay.
    """
    chosen: list[str] = []
    kept: dict[str, str] = {}
    freed = 0
    for model in sorted(held, key=lambda each: (each.last_use, each.loaded.expires_at, each.name)):
        if model.busy:
            kept[model.name] = "calls run there"
        elif is_pinned(model.loaded):
            kept[model.name] = f"it is pinned; `sollol models unpin {model.name}` releases it"
        elif freed >= needed_bytes:
            kept[model.name] = "its room is not needed"
        else:
            chosen.append(model.name)
            freed += model.freed_bytes
    return Unloads(tuple(chosen), freed, kept)
