"""Keys: made once, kept as hashes, and what they allow is what is allowed."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sollol.errors import BadInput, ConfigError
from sollol.gateway.auth.keys import Key, Keyring, add_key, hash_of, keys_of_environment, read_keys, revoke_key
from sollol.gateway.settings import GatewaySettings
from sollol.sim import NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import MODEL, WAIT_S, gateway_over, talker

MESSAGES = [{"role": "user", "content": "x"}]


def test_a_key_is_kept_as_a_hash_in_a_file_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    token = add_key(path, Key("me", "", admin=True))
    assert token.startswith("sk-sollol-")
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = Keyring(path=path)
    found = ring.find(token)
    assert found is not None
    assert (found.name, found.app, found.admin) == ("me", "me", True)
    assert ring.find(token + "x") is None
    assert ring.find("") is None
    with pytest.raises(BadInput, match="already"):
        add_key(path, Key("me", ""))
    with pytest.raises(BadInput, match="cannot be used"):
        add_key(path, Key("me and you", ""))


def test_a_revoked_key_is_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token, other = add_key(path, Key("a", "")), add_key(path, Key("b", ""))
    ring = Keyring(path=path)
    assert not ring.reload()
    revoke_key(path, "a")
    assert ring.reload()
    assert ring.find(token) is None
    assert ring.find(other) is not None
    with pytest.raises(BadInput, match="there are: b"):
        revoke_key(path, "a")


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=add_key, args=(path, Key(f"k{i}", ""))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path)} == {f"k{i}" for i in range(20)}


def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = add_key(path, Key("a", ""))
    ring = Keyring(path=path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        ring.reload()
    assert ring.find(token) is not None
    assert not ring.reload(), "a fault is told once, not every two seconds"
    path.unlink()
    assert ring.reload()
    assert ring.find(token) is None


def test_a_change_of_the_same_length_in_the_same_moment_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, Key("a", ""))
    ring, before = Keyring(path=path), path.stat()
    revoke_key(path, "a")
    token = add_key(path, Key("b", ""))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert ring.reload()
    assert ring.find(token) is not None


def test_a_ring_follows_the_settings(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    add_key(one, Key("a", ""))
    token = add_key(two, Key("b", ""))
    ring = Keyring(keys_of_environment("env=0123456789abcdef"), one)
    ring.follow(two, required=True)
    assert ring.reload()
    assert ring.required
    assert ring.find(token) is not None
    assert ring.find("0123456789abcdef") is not None
    assert len(ring) == 2


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written.*keys_file"):
        add_key(tmp_path / "file" / "keys.json", Key("a", ""))
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(BadInput, match=r"keys\.json: "):
        add_key(tmp_path / "keys.json", Key("a", ""))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "keys.json", "keys.json.lock"]


def test_a_ring_without_keys_lets_nobody_in() -> None:
    ring = Keyring(required=True)
    assert len(ring) == 0
    with gateway_over([], keyring=ring) as stage, stage.client() as client:
        assert client.get("/api/tags").status_code == 401
        assert client.get("/sollol/health").status_code == 200


def test_keys_of_the_environment() -> None:
    found = keys_of_environment("webui=0123456789abcdef, me:admin=fedcba9876543210 0123456789abcdeX")
    assert [(key.name, key.admin) for key in found] == [("webui", False), ("me", True), ("key-3", False)]
    assert found[0].hash == hash_of("0123456789abcdef")
    # The third is a token in base64, whose end looks like a name without one.
    for wrong in ("a=short", "a:root=0123456789abcdef", "0123456789abcdef==", "=0123456789abcdef"):
        with pytest.raises(ConfigError, match=r"SOLLOL_API_KEYS.* entry 1 ") as caught:
            keys_of_environment(wrong)
        assert "0123456789abcdef" not in str(caught.value)
    assert keys_of_environment("  ") == []


def test_patterns_of_models() -> None:
    key = Key("a", "", models=("llama3.2", "qwen*", "nomic-embed-text:*"))
    assert key.allows("llama3.2:latest")
    assert key.allows("llama3.2")
    assert not key.allows("llama3.2:1b")
    assert key.allows("nomic-embed-text:v1.5")
    assert Key("a", "", models=("*",)).allows("anything:1b")


def test_the_gateway_holds_to_what_a_key_allows(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    plain = add_key(path, Key("plain", "", models=(MODEL,), priority_max=3, requests_per_minute=3))
    admin = add_key(path, Key("boss", "", admin=True))
    ring = Keyring(path=path, required=True)
    with (
        sim_cluster([NodeSpec()]) as nodes,
        gateway_over(nodes.urls, keyring=ring) as stage,
        stage.client() as client,
    ):

        def ask(token: str = "", path: str = "/api/chat", **more: object) -> tuple[int, dict[str, Any]]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            body = {"model": MODEL, "messages": MESSAGES, "stream": False, "max_tokens": 4, **more}
            answer = client.post(path, json=body, headers={**headers, "X-Sollol-Priority": "9"})
            return answer.status_code, answer.json()

        assert ask()[0] == 401
        assert ask("wrong")[0] == 401
        assert "wrong" not in json.dumps(ask("wrong")[1])
        status, body = ask("", "/v1/chat/completions")
        assert (status, body["error"]["type"]) == (401, "authentication_error")
        assert client.get("/api/tags").status_code == 401
        assert client.get("/sollol/health").status_code == 200
        assert ask(plain)[0] == 200
        task = stage.look(lambda gateway: gateway.engine.recorder.history.recent()[0])
        assert task.app == "plain"
        assert stage.last_task().priority == 3
        assert ask(plain, model="nomic-embed-text")[0] == 403
        assert client.post("/v1/messages", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 4},
                           headers={"x-api-key": plain}).status_code == 200  # fmt: skip
        limited = client.post("/api/chat", json={"model": MODEL}, headers={"Authorization": f"Bearer {plain}"})
        assert limited.status_code == 429
        assert 1 <= int(limited.headers["retry-after"]) <= 60
        bearer = {"Authorization": f"Bearer {plain}"}
        assert client.request("DELETE", "/api/delete", json={"model": MODEL}, headers=bearer).status_code == 403
        bearer = {"Authorization": f"Bearer {admin}"}
        assert client.request("DELETE", "/api/delete", json={"model": MODEL}, headers=bearer).status_code == 200


def test_a_model_that_a_key_may_not_use_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    headers = {"Authorization": f"Bearer {add_key(path, Key('other', '', models=('nomic-embed-text',)))}"}
    ring = Keyring(path=path, required=True)
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=ring) as stage,
        stage.client(headers=headers) as client,
    ):
        refused = client.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
        assert refused.status_code == 403
        assert MODEL in refused.json()["error"]
        assert client.get("/api/ps").json()["models"] == []  # which it is not told
        loaded = httpx.get(f"{nodes.urls[0]}/api/ps", trust_env=False).json()["models"]
        assert [row["name"] for row in loaded] == [f"{MODEL}:latest"]


def test_who_hangs_up_is_charged_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    headers = {"Authorization": f"Bearer {add_key(path, Key('a', '', tokens_per_minute=20))}"}
    ring = Keyring(path=path, required=True)
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=ring) as stage,
        stage.client(headers=headers) as client,
    ):
        body = {"model": MODEL, "messages": MESSAGES, "options": {"num_predict": 10_000}}
        with client.stream("POST", "/api/chat", json=body) as answer:
            assert answer.status_code == 200
            for read, _ in enumerate(answer.iter_lines()):
                if read == 60:
                    break
        deadline = time.monotonic() + WAIT_S
        while not stage.look(lambda gateway: gateway.engine.recorder.history.recent()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        again = client.post("/api/chat", json=body)
        assert again.status_code == 429
        assert int(again.headers["retry-after"]) >= 1


def test_on_this_machine_an_unknown_key_is_no_key() -> None:
    settings = GatewaySettings()
    assert not settings.needs_keys
    assert settings.listening(host="0.0.0.0").needs_keys
    assert not settings.listening(host="0.0.0.0", insecure=True).needs_keys
    listen = msgspec.structs.replace(settings.listen, require_keys=True)
    assert msgspec.structs.replace(settings, listen=listen).needs_keys
    with sim_cluster([NodeSpec()]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        headers = {"Authorization": "Bearer ollama"}
        assert client.get("/api/tags", headers=headers).status_code == 200
