"""Bring a model to nodes with one download: from a node that has it, over a registry of this machine.

Blobs cannot be read from a node over its API, but a node pushes to any registry. So a node that has the model copies it
to a name at our registry, pushes it, and the others pull that name, copy it to the short one and delete the long one.
If no node has it, the registry fetches it from upstream, once. The path in the name is a secret that ends with the
transfer. A node that cannot call this machine pulls from its usual registry.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final
from urllib.parse import quote

from sollol.answers import Answer
from sollol.core.endpoint import Endpoint, parse_endpoint, with_key
from sollol.core.types import canonical_model
from sollol.errors import NoNodeAvailable, ResponseError, SollolError
from sollol.models import operations
from sollol.models.desired import stored_somewhere, unfit
from sollol.models.hints import with_next_step
from sollol.models.inventory import NodeInventory, read_inventory, with_rooms
from sollol.registry.grants import Grant
from sollol.registry.manifest import MOST_BYTES, BadManifest, Manifest, parse_manifest
from sollol.registry.names import split_model
from sollol.registry.seeders import Seeder
from sollol.registry.server import Registry, address_for
from sollol.transport.base import Call, Transport, TransportFault

TRIES: Final = 3  # of the pull of a node; a later one goes on where the one before was cut
PAUSE_S: Final = 1.0  # before the second try; it doubles
SLACK: Final = 1.02  # a push may have this many times the size of the model: parts are repeated
SLACK_BYTES: Final = 64 * 1024 * 1024
SPOILED: Final = "digest mismatch"  # in Ollama's error for bytes of another digest
# Words of Ollama's errors for a registry that it cannot call.
UNREACHABLE: Final = ("dial tcp", "connection refused", "no route to host", "i/o timeout")


class Distribution:
    """One model on its way to nodes."""

    def __init__(
        self,
        transport: Transport,
        registry: Registry,
        model: str,
        seeders: Mapping[str, Seeder] | None = None,
        rooms: Mapping[str, int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            transport: The way to the nodes.
            registry: The registry of this machine.
            model: The name of the model.
            seeders: Node -> its agent, of nodes that can send blobs themselves.
            rooms: Node -> free bytes on its disk, of nodes whose agents report them.
        """
        self._seeders = seeders or {}
        self._rooms = rooms or {}
        self._transport = transport
        self._registry = registry
        self._model = canonical_model(model)
        self._namespace, self._name, self._tag = split_model(self._model)
        self._digest = ""
        self._grant: Grant | None = None

    async def run(self, targets: Sequence[Endpoint], nodes: Sequence[Endpoint]) -> AsyncGenerator[Answer, None]:
        """Bring the model to the targets, and yield lines of progress with `node`.

        The last line of a target has `status` "success", or an `error`. Lines of the node that sends the model have
        `phase` "push".

        Args:
            targets: The nodes that are to have it.
            nodes: All nodes, one of which may have it.
        """
        found = await read_inventory(self._transport, list(dict.fromkeys([*targets, *nodes])))
        inventory = with_rooms(found, self._rooms)
        holders = self._holders(inventory)
        wanted, lines = self._sorted_out(targets, inventory)
        for line in lines:
            yield line
        if not wanted:
            return
        left = {node.key: node for node in wanted}
        try:
            for way in range(2):  # with the agents, and without them where one has sent spoiled bytes
                async with aclosing(self._supply(holders, wanted)) as supplying:
                    async for line in supplying:
                        if line.get("status") == "success":  # the first target has it from its usual registry
                            left.pop(line["node"], None)
                        yield line
                async with aclosing(merged([self._bring(node) for node in list(left.values())])) as bringing:
                    async for line in bringing:
                        if way == 0 and self._seeders and SPOILED in str(line.get("error")):
                            continue
                        if "error" in line or line.get("status") == "success":
                            left.pop(line["node"], None)
                        yield line
                if not left:
                    break
                self._end()
                self._seeders = {}
        except (SollolError, TransportFault, OSError) as error:
            for node in left.values():
                text = f"{self._model} cannot be had: {_text(error)}"
                yield _error(node, with_next_step(text, self._model, node.key))
        finally:
            self._end()

    def _end(self) -> None:
        """End the path of the transfer, and forget its agents."""
        if self._grant is not None:
            self._registry.service.end_grant(self._grant)
        for seeder in self._seeders.values():
            self._registry.service.seeders.drop(seeder)

    # --- where it is ---

    def _holders(self, inventory: Sequence[NodeInventory]) -> list[NodeInventory]:
        """Return the nodes that have the version that most have."""
        have = [node for node in inventory if self._model in node.stored]
        if not have:
            return []
        self._digest = Counter(node.stored[self._model].digest for node in have).most_common(1)[0][0]
        return [node for node in have if node.stored[self._model].digest == self._digest]

    def _sorted_out(
        self, targets: Sequence[Endpoint], inventory: Sequence[NodeInventory]
    ) -> tuple[list[Endpoint], list[Answer]]:
        """Return the targets that lack the model, and the last lines of the others."""
        known = stored_somewhere(self._model, inventory)
        found = {node.key: node for node in inventory}
        wanted: list[Endpoint] = []
        lines: list[Answer] = []
        for target in targets:
            node = found[target.key]
            if not node.is_up:
                lines.append(_error(target, with_next_step(node.why, self._model, target.key)))
            elif self._digest and self._model in node.stored and node.stored[self._model].digest == self._digest:
                lines.append(Answer(node=target.key, status="success"))
            elif why := unfit(known, node, named=False):
                lines.append(_error(target, with_next_step(why, self._model, target.key)))
            else:
                wanted.append(target)
        return wanted, lines

    # --- into the registry ---

    async def _supply(
        self, holders: Sequence[NodeInventory], wanted: Sequence[Endpoint]
    ) -> AsyncGenerator[Answer, None]:
        """Let the registry have the model, or a way to it."""
        service = self._registry.service
        loop = asyncio.get_running_loop()
        digest = f"sha256:{self._digest.removeprefix('sha256:')}"
        here = await asyncio.to_thread(service.store.manifest, digest) if self._digest else None
        full = f"{self._name}:{self._tag}"
        if here is not None:
            self._grant = service.grants.issue(full, loop.time(), pushes=True)
            self._grant.manifest = here
            service.hold(self._grant, here.blobs)
        elif (seeded := await self._seeded(holders, digest)) is not None:
            self._grant = service.grants.issue(full, loop.time())
            self._grant.manifest = seeded
        elif holders:
            size = holders[0].stored[self._model].size
            most = int(size * SLACK) + SLACK_BYTES
            await asyncio.to_thread(service.store.make_room, size)
            self._grant = service.grants.issue(full, loop.time(), pushes=True, size_most=most, digest=digest)
            async with aclosing(self._push([node.node for node in holders])) as pushing:
                async for line in pushing:
                    yield line
        elif service.fetches is not None and "/" not in self._namespace:  # no name of another registry
            self._grant = service.grants.issue(full, loop.time(), upstream=self._namespace)
        else:
            async with aclosing(self._pull_first(wanted)) as pulling:
                async for line in pulling:
                    yield line

    async def _seeded(self, holders: Sequence[NodeInventory], digest: str) -> Manifest | None:
        """Let the agents of the holders send the blobs; return the manifest, None if no agent can."""
        found = None
        for node in holders:
            seeder = self._seeders.get(node.key)
            if seeder is None:
                continue
            try:
                manifest = await self._manifest(seeder)
            except (TransportFault, ResponseError, BadManifest):
                continue  # as a node without an agent
            if manifest.digest == digest:
                found = manifest
                self._registry.service.seeders.add(seeder, list(manifest.blobs))
        return found

    async def _manifest(self, seeder: Seeder) -> Manifest:
        agent = with_key(parse_endpoint(seeder.url), seeder.key)
        path = f"/agent/manifest?model={quote(self._model)}"
        call = Call("GET", path, timeouts=operations.LISTING, most=MOST_BYTES)
        status, body, _ = await operations.fetch(self._transport, agent, call)
        if status != 200:
            raise ResponseError(f"{agent.url}{path} answers {status}", 502)
        return parse_manifest(body)

    async def _pull_first(self, wanted: Sequence[Endpoint]) -> AsyncGenerator[Answer, None]:
        """Pull to one target from its usual registry; it sends the model to the others."""
        first = wanted[0]
        async with aclosing(self._plain(first)) as lines:
            async for line in lines:
                if "error" in line:
                    raise ResponseError(str(line["error"]), 502)
                yield line
        if len(wanted) > 1:
            found = await read_inventory(self._transport, [first])
            async with aclosing(self._supply(self._holders(found), ())) as supplying:
                async for line in supplying:
                    yield line

    async def _push(self, holders: Sequence[Endpoint]) -> AsyncGenerator[Answer, None]:
        """Push the model from the first holder that can.

        Raises:
            ResponseError: None can.
        """
        problems = []
        for node in holders:
            try:
                long = await self._long_name(node)
                await self._call(node, "POST", "/api/copy", {"source": self._model, "destination": long})
                try:
                    body = {"model": long, "insecure": True}
                    lines = operations.stream_progress(self._transport, [node], "/api/push", body)
                    async with aclosing(lines):
                        async for _, line in lines:
                            if isinstance(line, Exception):
                                raise line
                            if line.get("status") != "success":
                                yield Answer({**line, "node": node.key, "phase": "push"})
                finally:
                    await self._forget(node, long)
            except (ResponseError, TransportFault, OSError) as error:
                problems.append(f"{node.key}: {_text(error)}")
            else:
                return
        raise ResponseError(f"no node that has it could push it ({'; '.join(problems)})", 502)

    # --- to the nodes ---

    async def _bring(self, node: Endpoint) -> AsyncGenerator[Answer, None]:
        """Pull the model to one node, and give it its short name."""
        try:
            long = await self._long_name(node)
        except OSError as failed:
            yield _error(node, f"there is no way to {node.key}: {failed}")
            return
        error: Exception | None = None
        try:
            for number in range(TRIES):
                if number:
                    await asyncio.sleep(PAUSE_S * 2 ** (number - 1))
                try:
                    async with aclosing(self._pulled(node, long)) as lines:
                        async for line in lines:
                            yield line
                except (ResponseError, TransportFault) as problem:
                    error = problem
                    if isinstance(problem, ResponseError) and any(word in problem.error for word in UNREACHABLE):
                        async with aclosing(self._plain(node)) as plain:
                            async for line in plain:
                                yield line
                        return
                else:
                    self._add_seeder(node)
                    yield Answer(node=node.key, status="success")
                    return
            yield _error(node, with_next_step(_text(error), self._model, node.key))
        finally:
            await self._forget(node, long)

    async def _pulled(self, node: Endpoint, long: str) -> AsyncGenerator[Answer, None]:
        """Pull the long name once, copy it to the short one, and check the version.

        Raises:
            ResponseError: The node refused, or lists another version.
            TransportFault: It did not answer.
        """
        body = {"model": long, "insecure": True}
        async with aclosing(operations.stream_progress(self._transport, [node], "/api/pull", body)) as lines:
            async for _, line in lines:
                if isinstance(line, Exception):
                    raise line
                if line.get("status") != "success":
                    yield Answer({**line, "node": node.key})
        await self._call(node, "POST", "/api/copy", {"source": long, "destination": self._model})
        await self._check(node)

    def _add_seeder(self, node: Endpoint) -> None:
        """Let a node that has the model now send it to the others, if its agent can."""
        manifest = self._grant.manifest if self._grant is not None else None
        if manifest is not None and node.key in self._seeders:
            self._registry.service.seeders.add(self._seeders[node.key], list(manifest.blobs))

    async def _check(self, node: Endpoint) -> None:
        """Check that a node lists the version that was sent.

        Raises:
            ResponseError: It lists another.
        """
        sent = self._grant.manifest if self._grant is not None else None
        (found,) = await read_inventory(self._transport, [node])
        listed = found.stored.get(self._model)
        if sent is None or listed is None or f"sha256:{listed.digest.removeprefix('sha256:')}" != sent.digest:
            version = listed.digest[:12] if listed is not None else "no such model"
            raise ResponseError(f"{node.key} lists {version} after the pull", 502)

    async def _plain(self, node: Endpoint) -> AsyncGenerator[Answer, None]:
        lines = operations.progress(self._transport, [node], "/api/pull", {"model": self._model})
        async with aclosing(lines):
            async for line in lines:
                yield line

    async def _long_name(self, node: Endpoint) -> str:
        assert self._grant is not None
        address = await asyncio.to_thread(address_for, node)  # may look a name up
        return f"{address}:{self._registry.port}/{self._grant.namespace}/{self._name}:{self._tag}"

    async def _call(self, node: Endpoint, method: str, path: str, body: dict[str, Any]) -> None:
        await operations.fetch_bytes(self._transport, node, method, path, body)

    async def _forget(self, node: Endpoint, name: str) -> None:
        """Delete the long name from a node; one that is not there is no error."""
        with suppress(ResponseError, TransportFault):
            await self._call(node, "DELETE", "/api/delete", {"model": name})


def _error(node: Endpoint, text: str) -> Answer:
    return Answer(node=node.key, error=text)


def _text(error: Exception | None) -> str:
    if isinstance(error, NoNodeAvailable):
        return str(error)
    return operations.error_message(error) if error is not None else "unknown"


async def merged(sources: Sequence[AsyncGenerator[Answer, None]]) -> AsyncGenerator[Answer, None]:
    """Yield the lines of several generators as they come. Closing it closes them."""
    lines: asyncio.Queue[Answer | BaseException | None] = asyncio.Queue(operations.LINES_AHEAD)

    async def relay(source: AsyncGenerator[Answer, None]) -> None:
        try:
            async with aclosing(source):
                async for line in source:
                    await lines.put(line)
        except Exception as error:
            await lines.put(error)
        await lines.put(None)

    tasks = [asyncio.create_task(relay(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            found = await lines.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
