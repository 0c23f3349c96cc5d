"""Compare the runner options of a call with those of a runner in memory.

A node loads a model again when one of them differs (Ollama's `needsReload`), also where the runner in memory has a
larger context. Then the call is sent with the runner's own `num_ctx`: its caller gets at least the context that it
requires, and nothing is loaded. A call without `num_gpu` uses a runner that was loaded with any.
"""

from __future__ import annotations

from typing import Final, NamedTuple

UNKNOWN: Final = "?"  # the runner options of a model that others have loaded
AS_REQUESTED: Final = 0  # the call needs no load, and its own `num_ctx` is sent
CONTEXT: Final = "num_ctx="
GPU: Final = "num_gpu="
CACHED: Final = 1_000


class RunnerOptions(NamedTuple):
    """Hold the parsed runner options of a call.

    Attributes:
        context: `num_ctx` in tokens; 0 if the node is to choose.
        gpu: `num_gpu` as text; "" if the node is to choose.
        others: All others, as text.
    """

    context: int
    gpu: str
    others: str


_parsed: Final[dict[str, RunnerOptions]] = {}


def parse(options: str) -> RunnerOptions:
    """Return the parsed form of a `runner_key`."""
    found = _parsed.get(options)
    if found is None:
        if len(_parsed) >= CACHED:
            _parsed.clear()
        found = _parsed[options] = _parse(options)
    return found


def _parse(options: str) -> RunnerOptions:
    context, gpu, others = 0, "", list[str]()
    for pair in options.split(","):
        if pair.startswith(CONTEXT):
            try:
                context = max(1, int(float(pair.removeprefix(CONTEXT))))
            except (ValueError, OverflowError):  # its node refuses it
                others.append(pair)
        elif pair.startswith(GPU):
            gpu = "" if pair.startswith(f"{GPU}-") else pair
        elif pair:
            others.append(pair)
    return RunnerOptions(context, gpu, ",".join(others))


def with_context(context: int, options: str = "") -> str:
    """Return a `runner_key` with this `num_ctx` in place of its own."""
    others = [pair for pair in options.split(",") if pair and not pair.startswith(CONTEXT)]
    return ",".join([f"{CONTEXT}{context}", *others])


def context_for(requested: str, held: str, listed: int, default: int, longest: int) -> int | None:
    """Return the `num_ctx` to send with a call so that its node loads nothing; None if it must load.

    Args:
        requested: Runner options of the call.
        held: Those of the runner in memory.
        listed: Context of the runner as its node lists it; 0 if that is unknown.
        default: Context that the node chooses for the model; 0 if that is unknown.
        longest: Bytes that must not be truncated otherwise than with the requested context; 0 if any larger one is
            good, and -1 if no other is.
    """
    if requested == held:
        return AS_REQUESTED
    wanted, has = parse(requested), parse(held)
    if wanted.others != has.others or (wanted.gpu and wanted.gpu != has.gpu):
        return None
    if wanted.context == has.context:
        return AS_REQUESTED
    is_capped = has.context > listed  # by the model's own limit
    if listed and wanted.context and (wanted.context == listed or (wanted.context > listed and is_capped)):
        return AS_REQUESTED
    needed, context = wanted.context or default, has.context or listed
    if not needed or context < needed or longest < 0 or longest > needed:
        return None
    return context
