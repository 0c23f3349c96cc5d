"""Read what `sollol top` shows, and carry out its actions: at a gateway, a dashboard, nodes, or a Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from rich.text import Text

from sollol.cli import applications, explain, screen
from sollol.cli.attach import Remote
from sollol.cli.listings import Listing, Row
from sollol.cli.top_session import Action
from sollol.core.endpoint import Endpoint
from sollol.core.types import Kind
from sollol.errors import SollolError

if TYPE_CHECKING:
    from sollol.observe.rows import Snapshot

SERIES_EVERY: Final = 10  # frames between two readings of the whole last minute
NEEDS_GATEWAY: Final = "only a gateway can do this; start one with `sollol serve` and watch it with --url"
UNLOAD_S: Final = 6.0


class Source(Protocol):
    """Read frames, and act on what they show."""

    async def snapshot(self) -> dict[str, Any]:
        """Return the present frame, without waiting for late nodes."""
        ...

    async def whole(self) -> dict[str, Any]:
        """Return the present frame of all nodes."""
        ...

    def listings(self, frame: Row) -> list[Listing]:
        """Return the lists of a frame."""
        ...

    def head(self, frame: Row, width: int) -> list[Text]:
        """Return the lines above the lists."""
        ...

    def refusal(self, verb: str, frame: Row) -> str:
        """Return why a verb cannot be used here, "" if it can."""
        ...

    async def act(self, action: Action) -> str:
        """Do it, and return a sentence about it.

        Raises:
            SollolError: It cannot be done.
        """
        ...

    async def explain(self, task_id: int) -> list[Text]:
        """Return the explanation of a request as lines."""
        ...


class RemoteSource:
    """Watch a gateway or a dashboard."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._rates: dict[str, dict[float, float]] = {}  # tokens per second by node and begin of the interval
        self._step_s = screen.NO_SPARK.step_s
        self._frames = 0

    async def snapshot(self) -> dict[str, Any]:
        """Return the present frame, and take in the work of the last intervals."""
        frame = await self._remote.snapshot()
        latest = frame.get("latest")
        if latest:
            if self._frames % SERIES_EVERY == 0:
                try:
                    self._take(await self._remote.series())
                except SollolError:  # an older server; its frames have the newest intervals
                    pass
            self._take(latest)
        self._frames += 1
        return frame

    async def whole(self) -> dict[str, Any]:
        """Return the present frame."""
        return await self.snapshot()

    def listings(self, frame: Row) -> list[Listing]:
        """Return the lists of a frame."""
        newest = max((at for row in self._rates.values() for at in row), default=0.0)
        count = int(screen.SPARK_S / self._step_s)
        moments = [newest - self._step_s * back for back in range(count, 0, -1)]  # the newest is still growing
        rates = {node: [row.get(at, 0.0) for at in moments] for node, row in self._rates.items()}
        return screen.listings_of(frame, screen.Spark(rates, self._step_s))

    def head(self, frame: Row, width: int) -> list[Text]:
        """Return the counts and the verdict."""
        return [screen.headline(frame, width), screen.verdict(frame)]

    def refusal(self, verb: str, frame: Row) -> str:
        """Return why a verb cannot be used here, "" if it can."""
        if verb == "explain" or frame.get("can_act"):
            return ""
        if self._remote.is_gateway:
            return f"{verb}: this key may only look; actions need one made with --admin"
        return f"{verb}: a dashboard only shows; {NEEDS_GATEWAY}"

    async def act(self, action: Action) -> str:
        """Send the change to the gateway."""
        if action.verb in ("drain", "resume"):
            await self._remote.post(f"nodes/{action.node}/{action.verb}")
            return f"{action.node} " + ("is drained" if action.verb == "drain" else "gets new requests again")
        if action.verb == "unload":
            await self._remote.post("models/unload", {"model": action.model, "node": action.node})
            return f"{action.model} is being unloaded from {action.node}"
        await self._remote.post(f"requests/{action.id}/cancel")
        return f"request {action.id} is cancelled"

    async def explain(self, task_id: int) -> list[Text]:
        """Return the explanation of a request as lines."""
        return explain.explanation(await self._remote.explain(task_id))

    def _take(self, columns: Mapping[str, Any]) -> None:
        self._step_s = columns["step_s"]
        oldest = (columns["at"] or [0.0])[-1] - 2 * screen.SPARK_S
        for node, rates in zip(columns["nodes"], columns["tokens"], strict=True):
            row = self._rates.setdefault(node, {})
            row.update(zip(columns["at"], rates, strict=True))
            for at in [at for at in row if at < oldest]:
                del row[at]


def _plain(frame: Snapshot) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(frame)
    return found


class NodesSource:
    """Watch nodes without a gateway. A model can be unloaded, because every node can do that itself."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        from sollol.dashboard.watch import Watch

        self._endpoints = {endpoint.key: endpoint for endpoint in endpoints}
        self._watch = Watch(endpoints)

    async def snapshot(self) -> dict[str, Any]:
        """Return the present frame; a late node shows in a later one."""
        return _plain(await self._watch.snapshot())

    async def whole(self) -> dict[str, Any]:
        """Return the present frame of all nodes."""
        return _plain(await self._watch.snapshot(None))

    def listings(self, frame: Row) -> list[Listing]:
        """Return the list of nodes."""
        return screen.listings_of(frame)

    def head(self, frame: Row, width: int) -> list[Text]:
        """Return the counts."""
        return [screen.headline(frame, width)]

    def refusal(self, verb: str, frame: Row) -> str:
        """Return why a verb cannot be used here, "" if it can."""
        return "" if verb == "unload" else f"{verb}: {NEEDS_GATEWAY}"

    async def act(self, action: Action) -> str:
        """Unload a model from a node."""
        from sollol.backends.ollama import load_call
        from sollol.transport.base import Call, Timeouts, TransportFault
        from sollol.transport.http import HttpTransport

        transport = HttpTransport()
        try:
            unload = load_call(Kind.GENERATE, action.model, "", 0)
            call = Call("POST", unload.path, unload.body, timeouts=Timeouts(1.5, UNLOAD_S, UNLOAD_S))
            reply = await transport.send(self._endpoints[action.node], call)
            await reply.read()
        except TransportFault as fault:
            raise SollolError(f"{action.node}: {fault}") from None
        finally:
            await transport.aclose()
        if reply.status != 200:
            raise SollolError(f"{action.node} refuses to unload {action.model} ({reply.status})")
        return f"{action.model} is unloaded from {action.node}"

    async def explain(self, task_id: int) -> list[Text]:
        """Raise SollolError, because no requests are seen."""
        raise SollolError(NEEDS_GATEWAY)

    async def aclose(self) -> None:
        """End the probes."""
        await self._watch.aclose()


class RedisSource:
    """Watch all applications that share a Redis."""

    def __init__(self) -> None:
        self._applications = applications.Applications()

    async def snapshot(self) -> dict[str, Any]:
        """Return the applications, their processes, and their last requests."""
        return await self._applications.snapshot()

    async def whole(self) -> dict[str, Any]:
        """Return the same as `snapshot`."""
        return await self._applications.snapshot()

    def close(self) -> None:
        """Close the connection."""
        self._applications.close()

    def listings(self, frame: Row) -> list[Listing]:
        """Return the lists of applications, processes and requests."""
        return list(applications.LISTINGS)

    def head(self, frame: Row, width: int) -> list[Text]:
        """Return the counts."""
        return [applications.headline(frame, width)]

    def refusal(self, verb: str, frame: Row) -> str:
        """Return that a Redis is only read."""
        return f"{verb}: a shared Redis is only read; watch the gateway of that application with --url to act"

    async def act(self, action: Action) -> str:
        """Raise SollolError, because a Redis is only read."""
        raise SollolError(self.refusal(action.verb, {}))

    async def explain(self, task_id: int) -> list[Text]:
        """Raise SollolError, because a Redis is only read."""
        raise SollolError(self.refusal("explain", {}))
