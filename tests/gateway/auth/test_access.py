"""What a key without admin rights, or for some models only, is told: of its own, and of nobody else's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from sollol.errors import SollolError
from sollol.gateway.auth import access
from sollol.gateway.auth.keys import Key, Keyring, add_key, hash_of, keys_of_environment, read_keys
from sollol.gateway.settings import GatewaySettings
from sollol.pool.sync import OllamaPool
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.stage import MODEL, Stage, answering, gateway_over, talker, until

TEXT = [{"role": "user", "content": "x"}]
LLAMA, OTHER = ModelSpec(MODEL, size_bytes=2_000), ModelSpec("other", size_bytes=100)
EMBED = ModelSpec("nomic-embed-text", "embed", 200)
TOKENS = {name: f"{name}-0123456789abcdef" for name in ("ann", "anns-laptop", "bob", "boss", "llama")}
KEYS = [
    Key("ann", hash_of(TOKENS["ann"]), app="ann"),
    Key("anns-laptop", hash_of(TOKENS["anns-laptop"]), app="ann"),
    Key("bob", hash_of(TOKENS["bob"]), app="bob"),
    Key("boss", hash_of(TOKENS["boss"]), app="boss", admin=True),
    Key("llama", hash_of(TOKENS["llama"]), app="llama", models=(MODEL,)),
]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


class Asking:
    """A client that says whose key it has."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.url = str(client.base_url).rstrip("/")

    def opened(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, **more)

    def get(self, name: str, path: str) -> httpx.Response:
        return self._client.get(path, headers=bearer(name))

    def post(self, name: str, path: str, body: Any, **headers: str) -> httpx.Response:
        return self._client.post(path, json=body, headers={**bearer(name), **headers})

    def chat(self, name: str, given: str = "") -> str:
        """The number of a request of this key, which calls it `given`."""
        headers = {"X-Sollol-Request-Id": given} if given else {}
        body = {"model": MODEL, "messages": TEXT, "stream": False, "options": {"num_predict": 2}}
        answer = self.post(name, "/api/chat", body, **headers)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-sollol-request-id"]


@contextmanager
def keyed(nodes: Cluster, settings: GatewaySettings | None = None, *, required: bool = True) -> Iterator[Stage]:
    with gateway_over(nodes.urls, settings, keyring=Keyring(KEYS, required=required)) as stage:
        yield stage


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    specs = [talker(1, models=(LLAMA, OTHER, EMBED), loaded=(MODEL, "other")), NodeSpec(models=(LLAMA,))]
    settings = GatewaySettings(aliases={"gpt-4o:latest": MODEL, "secret:latest": "other"})
    with sim_cluster(specs) as nodes, keyed(nodes, settings) as stage, stage.client() as client:
        yield Asking(client)


# --- requests ---


@pytest.mark.parametrize("what", ["explain", "queue"])
def test_a_key_sees_the_requests_of_its_own_application(asking: Asking, what: str) -> None:
    number = asking.chat("ann", "mine")
    for who in ("ann", "anns-laptop", "boss"):
        for name in (number, "mine"):
            told = asking.get(who, f"/sollol/{what}/{name}")
            assert (told.status_code, told.json()["id"]) == (200, int(number)), who


@pytest.mark.parametrize("what", ["explain", "queue"])
def test_of_another_it_is_told_as_of_one_that_never_was(asking: Asking, what: str) -> None:
    number = asking.chat("ann", "only-anns")
    never = asking.get("bob", f"/sollol/{what}/4711000")
    assert never.status_code == 404
    for name in (number, "only-anns"):
        hidden = asking.get("bob", f"/sollol/{what}/{name}")
        assert hidden.status_code == 404
        assert hidden.json()["error"] == never.json()["error"].replace("4711000", name)
        assert hidden.headers.keys() == never.headers.keys()
    assert "of this key" in never.json()["error"]
    assert "X-Sollol-Request-Id" in never.json()["error"]
    assert "of this key" not in asking.get("boss", f"/sollol/{what}/4711000").json()["error"]


def test_the_same_id_of_two_keys_is_two(asking: Asking) -> None:
    """Else one could hide another's request behind his own, or learn that a name is taken."""
    anns, bobs = asking.chat("ann", "job-1"), asking.chat("bob", "job-1")
    assert asking.get("ann", "/sollol/queue/job-1").json()["id"] == int(anns)
    assert asking.get("bob", "/sollol/queue/job-1").json()["id"] == int(bobs)
    assert asking.get("boss", "/sollol/queue/job-1").json()["id"] == int(bobs)  # the last, who has none of his own


def test_a_batch_is_seen_by_its_key_only(asking: Asking) -> None:
    answer = asking.post("ann", "/api/embed", {"model": "nomic-embed-text", "input": [f"text {i}" for i in range(70)]})
    number = answer.headers["x-sollol-request-id"]
    assert asking.get("ann", f"/sollol/explain/{number}").json()["kind"] == "embed"
    assert asking.get("bob", f"/sollol/explain/{number}").status_code == 404


def test_one_that_runs_is_hidden_as_well() -> None:
    import threading

    with sim_cluster([talker(1, 20.0)]) as nodes, keyed(nodes) as stage, stage.client() as client:
        asking = Asking(client)
        thread = threading.Thread(target=asking.chat, args=("ann", "slow"))
        nodes.do(lambda found: found[0].slow(1000.0))
        thread.start()
        until(lambda: stage.look(lambda gateway: gateway.engine.scheduler.view().attempts))
        with stage.client() as second:
            assert Asking(second).get("ann", "/sollol/queue/slow").json()["state"] == "running"
            assert Asking(second).get("bob", "/sollol/queue/slow").status_code == 404
        nodes.do(lambda found: found[0].slow(1.0))
        thread.join()


@pytest.mark.parametrize("path", ["/sollol/snapshot", "/sollol/nodes"])
def test_what_tells_of_everybody_needs_an_admin_key(asking: Asking, path: str) -> None:
    asking.chat("ann")
    refused = asking.get("ann", path)
    assert refused.status_code == 403
    assert "the key 'ann' may not see requests of others" in refused.json()["error"]
    assert "--admin" in refused.json()["error"]
    assert asking.get("boss", path).status_code == 200


@pytest.mark.parametrize("path", ["/api/me", "/api/signout"])
def test_the_account_of_a_node_is_the_admins_business(asking: Asking, path: str) -> None:
    assert asking.post("ann", path, {}).status_code == 403
    assert asking.post("boss", path, {}).status_code == 503  # what the node says


def test_what_every_key_may_read(asking: Asking) -> None:
    for path in ("/sollol/openapi.json", "/sollol/ready", "/sollol/health", "/api/version", "/api/status"):
        assert asking.get("ann", path).status_code == 200, path


def test_a_url_may_carry_the_key(asking: Asking) -> None:
    """What has no header for it, such as a pool over gateways, has a URL with credentials."""
    with asking.opened(auth=("any", TOKENS["ann"])) as client:
        assert client.get("/api/tags").status_code == 200
        assert client.get("/sollol/snapshot").status_code == 403
        assert client.get("/sollol/snapshot", headers={"x-api-key": TOKENS["boss"]}).status_code == 200  # a proxy's
        for wrong in ("Basic", "Basic !", "Basic YW55", f"Basic {TOKENS['ann']}", f"Digest {TOKENS['ann']}"):
            refused = client.get("/api/tags", headers={"Authorization": wrong}, auth=None)
            assert refused.status_code == 401, wrong
            assert refused.headers["www-authenticate"] == "Bearer"  # no browser asks for a password
    with OllamaPool([asking.url.replace("//", f"//any:{TOKENS['llama']}@")]) as pool:
        assert [row.model for row in pool.list().models] == [f"{MODEL}:latest"]
        assert pool.generate(MODEL, "x", options={"num_predict": 2}).response
    with OllamaPool([asking.url]) as pool, pytest.raises(SollolError, match="401"):
        pool.list()


def test_without_keys_all_is_open() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        body = {"model": MODEL, "messages": TEXT, "stream": False, "options": {"num_predict": 2}}
        answer = client.post("/api/chat", json=body, headers={"X-Sollol-Request-Id": "any", "X-Sollol-App": "someone"})
        assert answer.status_code == 200
        for path in ("queue/any", f"explain/{answer.headers['x-sollol-request-id']}", "snapshot", "nodes"):
            assert client.get(f"/sollol/{path}").status_code == 200, path
        assert "of this key" not in client.get("/sollol/queue/none").json()["error"]


def test_where_keys_are_not_asked_for_who_sends_one_is_held_to_it() -> None:
    with sim_cluster([talker(1)]) as nodes, keyed(nodes, required=False) as stage, stage.client() as client:
        asking = Asking(client)
        asking.chat("ann", "anns")
        assert client.get("/sollol/queue/anns").status_code == 200
        assert client.get("/sollol/snapshot").status_code == 200
        assert asking.get("bob", "/sollol/queue/anns").status_code == 404
        assert asking.get("bob", "/sollol/snapshot").status_code == 403


def test_whether_it_is_ready_may_be_asked_by_anybody_and_where_its_nodes_are_by_who_has_a_key() -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, keyed(nodes) as stage, stage.client() as client:
        nodes.do(lambda found: found[1].die())
        assert Asking(client).get("ann", "/api/tags").status_code == 200  # it sees that one is down
        until(lambda: client.get("/sollol/ready").json()["nodes_up"] == 1)
        assert "127.0.0.1" not in client.get("/sollol/ready").text
        assert "1 of 2" in client.get("/sollol/ready").json()["why"]["gateway"]
        assert list(Asking(client).get("ann", "/sollol/ready").json()["why"]) == [nodes.urls[1].removeprefix("http://")]


def test_keys_of_a_file_written_by_hand_are_not_one_application(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "a", "hash": hash_of("x")}, {"name": "b", "hash": hash_of("y")}]}))
    assert [key.app for key in read_keys(path)] == ["a", "b"]
    add_key(path, Key("c", "", app="a"))
    assert [key.app for key in read_keys(path)] == ["a", "b", "a"]
    assert [key.app for key in keys_of_environment("0123456789abcdef n=0123456789abcdeF")] == ["key-1", "n"]


# --- models ---

LISTS: list[tuple[str, Callable[[Any], list[str]]]] = [
    ("/api/tags", lambda told: [row["name"] for row in told["models"]]),
    ("/api/ps", lambda told: [row["name"] for row in told["models"]]),
    ("/v1/models", lambda told: [row["id"] for row in told["data"]]),
]


@pytest.mark.parametrize(("path", "names"), LISTS)
def test_lists_have_the_models_that_a_key_may_use(asking: Asking, path: str, names: Callable[..., list[str]]) -> None:
    assert "other:latest" in names(asking.get("ann", path).json())
    assert "other:latest" in names(asking.get("boss", path).json())
    allowed = list(dict.fromkeys(names(asking.get("llama", path).json())))  # two nodes may have it in memory
    assert allowed == [f"{MODEL}:latest"] + ["gpt-4o:latest"] * (path == "/v1/models")  # an alias goes by its model


def test_one_model_that_a_key_may_not_use_is_refused_whether_or_not_it_is_there(asking: Asking) -> None:
    for name in ("other", "other:latest", "secret", "nowhere"):
        shown = asking.post("llama", "/api/show", {"model": name})
        assert shown.status_code == 403
        assert shown.json()["error"] == f"this key may not use the model '{name}'; it may use {MODEL}"
        found = asking.get("llama", f"/v1/models/{name}")
        assert found.status_code == 403
        assert found.json()["error"]["type"] == "permission_error"
        assert found.json()["error"]["message"] == shown.json()["error"]
        asked = asking.post("llama", "/v1/chat/completions", {"model": name, "messages": TEXT})
        assert (asked.status_code, asked.json()["error"]["message"]) == (403, shown.json()["error"])
    for name in (MODEL, f"{MODEL}:latest", "gpt-4o"):
        assert asking.post("llama", "/api/show", {"model": name}).json()["details"]["family"] == "llama"
        assert asking.get("llama", f"/v1/models/{name}").json()["id"] == name


def test_an_error_names_no_other_models() -> None:
    """Where one node that has the model is down, the others are told to lack it, with what they have."""
    specs = [talker(1, models=(LLAMA,)), NodeSpec(models=(OTHER,)), NodeSpec(models=(EMBED,))]
    with sim_cluster(specs) as nodes, keyed(nodes) as stage, stage.client() as client:
        nodes.do(lambda found: found[0].error_rate(1.0))
        body = {"model": MODEL, "messages": TEXT, "stream": False}
        told = {name: Asking(client).post(name, "/api/chat", body).json()["error"] for name in ("ann", "llama")}
        assert "it has other:latest" in told["ann"]
        assert "other" not in told["llama"]
        assert "nomic" not in told["llama"]
        assert all(url.removeprefix("http://") in told["llama"] for url in nodes.urls)


def is_done(client: httpx.Client, task: str) -> bool:
    return bool(client.get(f"/sollol/queue/{task}").json().get("state") == "done")


def asked_by(key: Key | None) -> Any:
    return _Request(key)


def test_all_models_are_visible_without_patterns() -> None:
    rows = [{"model": "a"}, {"model": "b:1"}, {}]
    assert access.visible(asked_by(None), rows) == rows
    assert access.visible(asked_by(Key("k", "")), rows) == rows
    assert access.visible(asked_by(Key("k", "", models=("b:*",))), rows) == [{"model": "b:1"}]


class _Request:
    def __init__(self, key: Key | None) -> None:
        self.key = key


@pytest.mark.parametrize("count", [1, 9, 70])
@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings", "/api/generate"])
def test_a_fallback_that_the_key_may_not_use_is_passed_over_and_not_named(path: str, count: int) -> None:
    """On single calls and on lists that are split: the key's own fallback answers, or nobody, and none is named."""
    hidden, own = ModelSpec("hidden", "embed"), ModelSpec("own", "embed")
    words, own_words = ModelSpec("hidden-words"), ModelSpec("own-words")
    embeds = path != "/api/generate"
    models, fallbacks = (
        ((hidden, own), ("hidden", "own")) if embeds else ((words, own_words), ("hidden-words", "own-words"))
    )
    aliases = {"by-alias": fallbacks[0]}
    asked = {"input": ["a"] * count} if embeds else {"prompt": "a", "stream": False, "options": {"num_predict": 2}}
    for reachable in (True, False):
        key = Key("k", hash_of("k-0123456789abcdef"), app="k", models=("gone", *(fallbacks[1:] if reachable else ())))
        settings = GatewaySettings(fallbacks={"gone:latest": ("by-alias", *fallbacks)}, aliases=aliases)
        with (
            sim_cluster([NodeSpec(models=models, seed=number) for number in (1, 2)]) as nodes,
            gateway_over(nodes.urls, settings, keyring=Keyring([key], required=True)) as stage,
            stage.client(headers={"Authorization": "Bearer k-0123456789abcdef"}) as client,
        ):
            answer = client.post(path, json={"model": "gone", **asked})
            assert answer.status_code == (200 if reachable else 404), answer.text
            assert "hidden" not in answer.text
            assert "by-alias" not in answer.text
            refused = client.post(path, json={"model": "hidden", **asked})
            assert (refused.status_code, "own" in refused.text) == (403, reachable)


class Telling(BaseHTTPRequestHandler):
    """A node that tells of models that a key may not see, wherever it can; its calls fail as `fails` says."""

    fails: ClassVar[str] = "missing"

    def log_message(self, *args: Any) -> None: ...

    def _say(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode() if not isinstance(value, bytes) else value
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        names = ("mine:latest", "hidden:latest")
        rows = [{"name": n, "model": n, "id": n, "size": 1, "details": {"parent_model": "hidden"}} for n in names]
        lists = {"/api/version": {"version": "0.33.0"}, "/v1/models": {"object": "list", "data": rows}}
        self._say(200, lists.get(self.path, {"models": rows}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/api/show":
            self._say(200, {"details": {"parent_model": "hidden:latest"}, "capabilities": ["completion"]})
        elif self.fails == "missing":
            self._say(404, {"error": "model 'mine' not found"})
        else:
            line = b'{"model":"mine","message":{"role":"assistant","content":"a"},"done":false}\n'
            self._say(200, line)


ASKED = [
    *(("GET", path, None) for path in ("/api/tags", "/api/ps", "/v1/models", "/v1/models/mine", "/sollol/ready")),
    *(("POST", path, {"model": "mine", "messages": TEXT, "max_tokens": 5}) for path in ("/api/chat", "/v1/messages")),
    ("POST", "/api/generate", {"model": "mine", "prompt": "a"}),
    ("POST", "/api/generate", {"model": "mine", "keep_alive": 0}),
    ("POST", "/api/embed", {"model": "mine", "input": ["a"] * 70}),
    ("POST", "/v1/embeddings", {"model": "mine", "input": "a"}),
    ("POST", "/api/show", {"model": "mine"}),
    ("POST", "/v1/unknown", {"model": "mine"}),
    *(("POST", path, {"model": name, "prompt": "a", "input": "a", "messages": TEXT, "max_tokens": 5})
      for name in ("nobody-has-it", "other-alias") for path in ("/api/chat", "/api/show", "/api/embed", "/v1/unknown")),
]  # fmt: skip


@pytest.mark.parametrize("fails", ["missing", "cut"])
def test_no_answer_names_a_model_that_the_key_may_not_use(fails: str) -> None:
    """Lists, details, errors, explanations; behind aliases and fallbacks."""
    key = Key("k", hash_of("k-0123456789abcdef"), app="k", models=("mine", "nobody-has-it"))
    settings = GatewaySettings(
        fallbacks={"mine:latest": ("hidden", "other-alias"), "nobody-has-it:latest": ("hidden",)},
        aliases={"other-alias": "hidden"},
    )
    node = type("Here", (Telling,), {"fails": fails})
    lacks = NodeSpec(models=(ModelSpec("hidden"), ModelSpec("hidden-too")))
    with (
        answering(node) as url,
        sim_cluster([lacks]) as nodes,
        gateway_over([url, *nodes.urls], settings, keyring=Keyring([key], required=True)) as stage,
        stage.client(headers={"Authorization": "Bearer k-0123456789abcdef"}) as client,
    ):
        for method, path, body in ASKED:
            answer = client.request(method, path, json=body, headers={"X-Sollol-Deadline-Ms": "1500"})
            assert "hidden" not in answer.text, (method, path, body)
            task = answer.headers.get("X-Sollol-Request-Id")
            if task is not None:
                until(partial(is_done, client, task))
                assert "hidden" not in client.get(f"/sollol/explain/{task}").text, (method, path, body)
