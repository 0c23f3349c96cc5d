"""The registry against a client that does what Ollama's does, and against hostile ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.registry import service, uploads
from sollol.registry.grants import Grant
from sollol.registry.seeders import Seeder
from sollol.registry.server import Registry
from sollol.registry.store import NoRoom
from sollol.sim.ollama_store import OllamaStore, digests_of, parse_name
from sollol.sim.registry_client import TransferFailed
from tests.registry.stage import (
    MODEL,
    SIZE,
    client_in,
    grant_of,
    name_at,
    registry,
    run,
    silent,
    until,
    with_model,
)

KEY = "k" * 20


def web() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=20)


def base(made: Registry, grant: Grant) -> str:
    return f"http://127.0.0.1:{made.port}/v2/{grant.namespace}/llama3.2"


def weights_of(store: OllamaStore) -> str:
    """The digest of the model's weights."""
    raw = store.manifest(parse_name(MODEL.name))
    assert raw is not None
    return digests_of(json.loads(raw))[0]


# --- push and pull ---


def test_a_model_goes_from_node_to_node_and_keeps_its_digest(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made:
            grant = grant_of(made)
            source, target = client_in(tmp_path / "a"), client_in(tmp_path / "b")
            digest = with_model(source, name_at(made, grant))
            grant.digest = f"sha256:{digest}"
            await source.push(name_at(made, grant), silent)
            assert made.service.received_bytes == source.sent >= SIZE
            await target.pull(name_at(made, grant), silent)
            found = target.store.read(name_at(made, grant))
            assert found.digest == digest
            assert target.received == source.sent, "every byte came once"
            again = client_in(tmp_path / "a")
            await again.push(name_at(made, grant), silent)
            assert again.sent == 0, "blobs that are there are not sent again"

    run(main)


def test_blobs_of_a_push_stay_until_its_path_ends(tmp_path: Path) -> None:
    """Others need room while a node pushes: what it has pushed, or found here, is not taken away."""

    async def main() -> None:
        async with registry(tmp_path, most=int(1.5 * SIZE)) as made, web() as client:
            grant = grant_of(made)
            source = client_in(tmp_path / "a")
            with_model(source, name_at(made, grant))
            digest = weights_of(source.store)
            blob = source.store.blob(digest).read_bytes()
            place = (await client.post(f"{base(made, grant)}/blobs/uploads/")).headers["location"]
            assert (await client.put(place, params={"digest": digest}, content=blob)).status_code == 201
            with pytest.raises(NoRoom):
                made.service.store.make_room(SIZE)
            made.service.end_grant(grant)
            again = grant_of(made)
            assert (await client.head(f"{base(made, again)}/blobs/{digest}")).status_code == 200
            with pytest.raises(NoRoom):
                made.service.store.make_room(SIZE)
            made.service.end_grant(again)
            made.service.store.make_room(SIZE)
            assert made.service.store.size(digest) is None

    run(main)


def test_a_cut_pull_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made:
            grant = grant_of(made)
            source, target = client_in(tmp_path / "a"), client_in(tmp_path / "b")
            with_model(source, name_at(made, grant))
            await source.push(name_at(made, grant), silent)
            target.bytes_per_s = 2_000_000
            pull = asyncio.create_task(target.pull(name_at(made, grant), silent))
            await until(lambda: target.received >= SIZE / 3)
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)
            target.bytes_per_s = None
            await target.pull(name_at(made, grant), silent)
            whole = sum(file.stat().st_size for file in source.store.folder.glob("blobs/sha256-*"))
            assert target.received <= whole * 1.05
            assert target.store.read(name_at(made, grant)).size_bytes == SIZE

    run(main)


def test_a_cut_push_goes_on_with_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry cuts the first connection of each part; the client repeats the part, from its beginning."""
    cut: set[int] = set()
    receive = uploads.Uploads._receive

    async def cutting(self: Any, upload: Any, out: Any, pieces: Any, part: Any) -> None:
        if part and part[0] not in cut:
            cut.add(part[0])
            await pieces.__anext__()
            raise ConnectionResetError
        await receive(self, upload, out, pieces, part)

    async def main() -> None:
        async with registry(tmp_path) as made:
            grant = grant_of(made)
            source, target = client_in(tmp_path / "a"), client_in(tmp_path / "b")
            with_model(source, name_at(made, grant))
            monkeypatch.setattr(uploads.Uploads, "_receive", cutting)
            await source.push(name_at(made, grant), silent)
            assert len(cut) == 8
            await target.pull(name_at(made, grant), silent)

    run(main)


def test_a_repeated_part_replaces_what_came_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            url = base(made, grant_of(made))
            place = (await client.post(f"{url}/blobs/uploads/")).headers["location"]
            for start, text in ((0, b"abc"), (3, b"xyz"), (3, b"def"), (6, b"ghi")):
                headers = {"Content-Range": f"{start}-{start + 2}"}
                assert (await client.patch(place, content=text, headers=headers)).status_code == 202
            digest = f"sha256:{hashlib.sha256(b'abcdefghi').hexdigest()}"
            done = await client.put(place, params={"digest": digest})
            assert (done.status_code, done.headers["location"]) == (201, f"{url}/blobs/{digest}")

    run(main)


# --- answers that Ollama's client needs ---


def test_the_particularities_of_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            grant = grant_of(made)
            source = client_in(tmp_path / "a")
            with_model(source, name_at(made, grant))
            await source.push(name_at(made, grant), silent)
            url = f"{base(made, grant)}/blobs/{weights_of(source.store)}"
            head = await client.head(url)
            assert (head.status_code, head.headers["content-length"]) == (200, str(SIZE))
            assert head.headers["location"] == url
            first = await client.get(url)
            assert first.status_code == 307, "to another port, for models of tensors"
            direct = httpx.URL(first.headers["location"])
            assert (direct.host, direct.port) == ("127.0.0.1", made.service.blob_port)
            whole = await client.get(direct)
            assert (whole.status_code, whole.headers["location"], len(whole.content)) == (200, str(direct), SIZE)
            for asked, start, stop in (("0-9", 0, 10), ("2999990-", 2_999_990, SIZE), ("-5", SIZE - 5, SIZE)):
                part = await client.get(direct, headers={"Range": f"bytes={asked}"})
                assert part.status_code == 206
                assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
                assert part.content == whole.content[start:stop]
            for asked in ("0-1,4-5", f"{SIZE}-", "x"):
                part = await client.get(direct, headers={"Range": f"bytes={asked}"})
                assert (part.status_code, part.headers["content-range"]) == (416, f"bytes */{SIZE}")
            manifest = await client.get(f"{base(made, grant)}/manifests/latest")
            assert manifest.headers["location"] == f"{base(made, grant)}/manifests/latest"
            assert (await client.get(f"http://127.0.0.1:{made.port}/v2/")).status_code == 200

    run(main)


async def tensor_pull(client: httpx.AsyncClient, url: str) -> tuple[bytes, list[int]]:
    """Read a blob as x/transfer/download.go does: find its place first, and read a 200 of that to its end."""
    headers = {"User-Agent": "ollama-transfer/1.0"}
    statuses = []
    place = httpx.URL(url)
    for _ in range(10):
        found = await client.get(place, headers=headers)
        statuses.append(found.status_code)
        if found.status_code == 200:
            break
        target = httpx.URL(found.headers["location"])
        there = (target.host, target.port) != (place.host, place.port)
        place = target
        if there:
            break
    answer = await client.get(place, headers=headers, follow_redirects=True)
    statuses.append(answer.status_code)
    return answer.content, statuses


def test_a_blob_of_a_model_of_tensors_comes_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            grant = grant_of(made)
            source = client_in(tmp_path / "a")
            with_model(source, name_at(made, grant))
            await source.push(name_at(made, grant), silent)
            url = f"{base(made, grant)}/blobs/{weights_of(source.store)}"
            before = made.service.sent_bytes
            body, statuses = await tensor_pull(client, url)
            assert statuses == [307, 200]
            assert hashlib.sha256(body).hexdigest() in url
            assert made.service.sent_bytes - before == SIZE, "not twice"

    run(main)


def test_a_client_that_needs_only_the_head_costs_little(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made:
            grant = grant_of(made)
            source, target = client_in(tmp_path / "a"), client_in(tmp_path / "b")
            with_model(source, name_at(made, grant))
            await source.push(name_at(made, grant), silent)
            before = made.service.sent_bytes
            await target._direct(f"{name_at(made, grant).url}/blobs/{weights_of(source.store)}")
            await asyncio.sleep(service.PAUSE_S)
            assert made.service.sent_bytes - before <= service.FIRST

    run(main)


def test_parts_are_sent_by_seeders_and_by_the_registry_where_one_fails(tmp_path: Path) -> None:
    """Two seeders, one of which answers with nothing: its parts are requested again, and come from elsewhere."""

    async def main() -> None:
        parts: list[tuple[str, str]] = []

        async def seeder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            asked = next(line for line in head.split("\r\n") if line.lower().startswith("range:"))
            bad = writer.get_extra_info("sockname")[1] == ports[1]
            parts.append(("bad" if bad else "good", asked))
            if not bad:
                start, stop = (int(number) for number in asked.partition("=")[2].split("-"))
                body = blob.read_bytes()[start : stop + 1]
                writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        async with registry(tmp_path) as made:
            servers = [await asyncio.start_server(seeder, "127.0.0.1", 0) for _ in range(2)]
            ports = [server.sockets[0].getsockname()[1] for server in servers]
            grant = grant_of(made)
            source, target = client_in(tmp_path / "a"), client_in(tmp_path / "b")
            with_model(source, name_at(made, grant))
            await source.push(name_at(made, grant), silent)
            digest = weights_of(source.store)
            blob = source.store.blob(digest)
            for port in ports:
                made.service.seeders.add(Seeder(f"http://127.0.0.1:{port}", "key"), [digest])
            before = made.service.sent_bytes
            await target.pull(name_at(made, grant), silent)
            assert {kind for kind, _ in parts} == {"good", "bad"}
            assert len({asked for kind, asked in parts if kind == "good"}) == 8, "all eight, the failed ones again"
            assert made.service.sent_bytes - before < SIZE / 10
            for server in servers:
                server.close()

    run(main)


# --- the cache before an upstream registry ---


def test_five_nodes_cost_one_transfer(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path / "up") as upstream:
            key = "upstream-key-of-the-test"
            stored = grant_of(upstream)
            stored.namespace = "library"  # as the public registry, whose paths are no secrets
            source = client_in(tmp_path / "a")
            digest = with_model(source, name_at(upstream, stored))
            stored.digest = f"sha256:{digest}"
            await source.push(name_at(upstream, stored), silent)
            url = f"http://127.0.0.1:{upstream.port}"
            async with registry(tmp_path / "cache", upstream=url, key=key) as cache:
                nodes = [client_in(tmp_path / f"n{i}") for i in range(5)]
                name = parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2")
                await asyncio.gather(*(node.pull(name, silent) for node in nodes))
                assert cache.service.fetches is not None
                assert cache.service.fetches.fetched_bytes == source.sent, "1.0 transfers"
                assert {node.store.read(name).digest for node in nodes} == {digest}
                late = client_in(tmp_path / "late")
                await late.pull(name, silent)
                assert cache.service.fetches.fetched_bytes == source.sent, "and later ones none"
                with pytest.raises(TransferFailed, match="pull model manifest: file does not exist"):
                    await late.pull(name._replace(model="absent"), silent)

    run(main)


class CuttingUpstream:
    """An upstream registry that cuts its answers after a few bytes, or lies."""

    def __init__(self, blobs: dict[str, bytes], manifest: bytes) -> None:
        self.blobs, self.manifest = blobs, manifest
        self.cut_after: int | None = None
        self.lies = False
        self.ignores_range = False
        self.sent = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        if "/manifests/" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.manifest) + self.manifest)
        elif path.startswith("/v2/"):  # as the public registry, whose blobs are elsewhere
            writer.write(f"HTTP/1.1 307 T\r\nLocation: /cdn{path}?x=1\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            body = self.blobs[path.partition("?")[0].rpartition("/")[2]]
            start, status, extra = 0, "200 OK", ""
            found = [line for line in head.split("\r\n") if line.lower().startswith("range:")]
            if found and not self.ignores_range:
                start = int(found[0].partition("=")[2].rstrip("-"))
                status, extra = "206 P", f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}\r\n"
            rest = b"\0" * (len(body) - start) if self.lies else body[start:]
            sent = rest if self.cut_after is None else rest[: self.cut_after]
            self.sent += len(sent)
            writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(rest)}\r\n\r\n".encode() + sent)
        try:
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[CuttingUpstream, str]]:
    """An upstream registry with the model, and its URL."""
    store = OllamaStore(folder)
    store.make(MODEL)
    raw = store.manifest(parse_name(MODEL.name))
    assert raw is not None
    upstream = CuttingUpstream({d: store.blob(d).read_bytes() for d in digests_of(json.loads(raw))}, raw)
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
    yield upstream, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_fetch_that_is_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignores_range: bool) -> None:
    monkeypatch.setattr("sollol.registry.upstream.PAUSE_S", 0.001)

    async def main() -> None:
        async with serving(tmp_path / "up") as (upstream, url):
            upstream.cut_after = 1_300_000 if not ignores_range else None
            key = KEY
            if ignores_range:  # the beginning is here from before a restart
                (tmp_path / "registry").mkdir()
                digest, body = next((d, b) for d, b in upstream.blobs.items() if len(b) == SIZE)
                (tmp_path / "registry" / f"{digest.replace(':', '-')}.partial").write_bytes(body[:1_000_000])
                upstream.ignores_range = True
            async with registry(tmp_path, upstream=url, key=key) as cache:
                node = client_in(tmp_path / "n")
                await node.pull(parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2"), silent)
                assert cache.service.fetches is not None
                blobs = sum(map(len, upstream.blobs.values()))
                assert cache.service.fetches.fetched_bytes == blobs - (1_000_000 if ignores_range else 0)

    run(main)


def test_an_upstream_that_lies_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(tmp_path / "up") as (upstream, url):
            upstream.lies = True
            key = KEY
            async with registry(tmp_path, upstream=url, key=key) as cache:
                node = client_in(tmp_path / "n")
                with pytest.raises(TransferFailed):
                    await node.pull(parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2"), silent)
                assert [f for f in cache.service.store.folder.iterdir() if f.stat().st_size == SIZE] == []
                sent = upstream.sent
                with pytest.raises(TransferFailed):
                    await client_in(tmp_path / "m").pull(parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2"), silent)
                assert upstream.sent == sent, "it is not fetched again and again"
                upstream.lies = False
                monkeypatch.setattr("sollol.registry.upstream.WRONG_S", 0.0)
                await client_in(tmp_path / "o").pull(parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2"), silent)

    run(main)


def test_no_room_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "up") as (upstream, url):
            key = KEY
            async with registry(tmp_path, most=SIZE // 2, upstream=url, key=key) as cache:
                node = client_in(tmp_path / "n")
                with pytest.raises(TransferFailed):
                    await node.pull(parse_name(f"127.0.0.1:{cache.port}/{key}/llama3.2"), silent)
                assert upstream.sent == 0

    run(main)


# --- hostile clients ---


def test_a_path_is_a_secret_for_one_model_and_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            grant = grant_of(made)
            url = base(made, grant)
            digest = "sha256:" + "0" * 64
            for path in (
                url.replace(grant.namespace, "0" * 40) + "/manifests/latest",
                url.replace("llama3.2", "other") + "/manifests/latest",
                f"{url}/manifests/other",
                f"{url}/blobs/{digest}",
                f"{url}/blobs/sha256:..%2f..%2fetc%2fpasswd",
                f"{url}/blobs/uploads/..%2f..%2fx",
            ):
                assert (await client.get(path)).status_code in (404, 405)
                assert (await client.patch(path, content=b"x")).status_code in (404, 405)
            assert (await client.delete(f"{url}/manifests/latest")).status_code == 405
            reading = grant_of(made, pushes=False)
            refused = await client.post(f"{base(made, reading)}/blobs/uploads/")
            assert refused.status_code == 403
            made.service.end_grant(grant)
            assert (await client.post(f"{url}/blobs/uploads/")).status_code == 404

    run(main)


def test_the_error_of_a_part_has_no_body_that_could_become_part_of_the_blob(tmp_path: Path) -> None:
    """Ollama's client copies whatever comes, and does not look at the status."""

    async def main() -> None:
        async with serving(tmp_path / "up") as (upstream, url):
            key = KEY
            async with registry(tmp_path, most=SIZE // 2, upstream=url, key=key) as cache, web() as client:
                place = f"http://127.0.0.1:{cache.service.blob_port}/v2/{key}/llama3.2"
                await client.get(f"{place}/manifests/latest")
                digest = next(d for d, blob in upstream.blobs.items() if len(blob) == SIZE)
                for path in (f"{place}/blobs/sha256:{'0' * 64}", f"{place.replace(key, 'x' * 20)}/blobs/{digest}"):
                    refused = await client.get(path, headers={"Range": "bytes=0-9"})
                    assert (refused.status_code, refused.content) == (404, b"")
                assert refused.headers["x-sollol-error"]
                with pytest.raises(httpx.RemoteProtocolError):  # there is no room
                    await client.get(f"{place}/blobs/{digest}", headers={"Range": "bytes=0-9"})

    run(main)


def test_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            grant = grant_of(made, size_most=1_000_000)
            url = f"{base(made, grant)}/blobs/uploads/"

            async def endless() -> Any:
                while True:
                    yield b"x" * 65_536

            place = (await client.post(url)).headers["location"]
            with pytest.raises((httpx.HTTPError, AssertionError)):
                assert (await client.patch(place, content=endless())).status_code != 413
            too_long = {"Content-Range": "0-1000000"}
            place = (await client.post(url)).headers["location"]
            assert (await client.patch(place, content=b"x", headers=too_long)).status_code == 413
            assert list(made.service.store.folder.glob("*.upload")) == []
            grant.pushed = 0
            place = (await client.post(url)).headers["location"]
            gap = await client.patch(place, content=b"x", headers={"Content-Range": "5-5"})
            assert gap.status_code == 416
            more = await client.patch(place, content=b"xxxxxxxx", headers={"Content-Range": "0-3"})
            assert more.status_code == 413
            for _ in range(uploads.OPEN_MOST):
                assert (await client.post(url)).status_code == 202
            assert (await client.post(url)).status_code == 429
            made.service.uploads.sweep(made.service.now() + uploads.IDLE_S + 1, made.service.grants.all())
            assert (await client.post(url)).status_code == 202
            made.service.end_grant(grant)
            assert list(made.service.store.folder.glob("*.upload")) == []

    run(main)


def test_wrong_digests_and_manifests_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            grant = grant_of(made)
            url = base(made, grant)
            digest = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
            for wrong in ("sha256:" + "0" * 64, "sha256:../../x", ""):
                place = (await client.post(f"{url}/blobs/uploads/")).headers["location"]
                await client.patch(place, content=b"abc", headers={"Content-Range": "0-2"})
                assert (await client.put(place, params={"digest": wrong})).status_code == 400
            assert [file.name for file in made.service.store.folder.iterdir()] == []
            for body in (b"{}", b"x" * (8 * 1024 * 1024 + 1), json.dumps({"layers": [{"digest": digest, "size": 3}]})):
                answer = await client.put(f"{url}/manifests/latest", content=body)
                assert answer.status_code in (400, 413)
                assert answer.json()["errors"][0]["message"]
            place = (await client.post(f"{url}/blobs/uploads/")).headers["location"]
            assert (await client.put(place, params={"digest": digest}, content=b"abc")).status_code == 201
            wrong_size = {"layers": [{"digest": digest, "size": 4}]}
            assert (await client.put(f"{url}/manifests/latest", json=wrong_size)).status_code == 400
            right = {"layers": [{"digest": digest, "size": 3}]}
            assert (await client.put(f"{url}/manifests/latest", json=right)).status_code == 201
            host = {"Host": "a b"}
            assert (await client.get(f"{url}/manifests/latest", headers=host)).status_code == 400

    run(main)


def test_concurrent_uploads_of_one_blob_end_as_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made:
            grant = grant_of(made)
            clients = [client_in(tmp_path / name) for name in "abc"]
            for client in clients:
                with_model(client, name_at(made, grant))
            await asyncio.gather(*(client.push(name_at(made, grant), silent) for client in clients))
            target = client_in(tmp_path / "t")
            await target.pull(name_at(made, grant), silent)
            sizes = sorted(file.stat().st_size for file in made.service.store.folder.iterdir())
            assert sizes.count(SIZE) == 1
            assert len(sizes) == 3

    run(main)


def test_an_upload_takes_one_part_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry(tmp_path) as made, web() as client:
            place = (await client.post(f"{base(made, grant_of(made))}/blobs/uploads/")).headers["location"]
            go_on = asyncio.Event()

            async def slow() -> Any:
                yield b"a"
                await go_on.wait()
                yield b"b"

            first = asyncio.create_task(client.patch(place, content=slow()))
            await until(lambda: next(iter(made.service.uploads._open.values())).busy)
            assert (await client.patch(place, content=b"c")).status_code == 409
            assert (await client.put(place, params={"digest": "sha256:" + "0" * 64})).status_code == 409
            go_on.set()
            assert (await first).status_code == 202

    run(main)
