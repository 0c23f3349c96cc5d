"""The watch of `sollol serve` over its files: nothing ends it, so a revoked key ends."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from sollol.files import SETTINGS_MOST
from sollol.gateway.auth.keys import Key, add_key, revoke_key
from sollol.sim.serve import sim_cluster
from tests.cli.test_serve import WAIT_S, serving, wait_for

BROKEN = {
    "no such user": 'keys_file = "~nosuchuser/k"',
    "NUL": 'keys_file = "a\\u0000b"',
    "digits": "idle_timeout_s = " + "9" * 5000,
    "nested": "cors_origins = " + "[" * 20_000,
    "no TOML": "=",
}


def status(url: str, token: str) -> int:
    answer = httpx.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {token}"}, timeout=WAIT_S, trust_env=False)
    return answer.status_code


@pytest.mark.parametrize("what", BROKEN)
def test_settings_that_cannot_be_read_do_not_keep_a_revoked_key_good(tmp_path: Path, what: str) -> None:
    keys, config = tmp_path / "keys.json", tmp_path / "sollol.toml"
    token, other = add_key(keys, Key("me", "", app="me")), add_key(keys, Key("other", "", app="other"))
    good = f'[gateway]\nkeys_file = "{keys}"\nrequire_keys = true\n'
    config.write_text(good)
    with (
        sim_cluster(1) as nodes,
        serving(tmp_path, "--config", str(config), "--nodes", nodes.urls[0]) as (process, url),
    ):
        assert status(url, token) == 200
        line = BROKEN[what]
        table = "limits" if line.startswith("idle") else "gateway"
        config.write_text(f"[{table}]\n{line}\n")
        assert process.stderr is not None
        while "everything stays as it was" not in (told := process.stderr.readline()):
            assert told
        revoke_key(keys, "me")
        wait_for(lambda: status(url, token) == 401)
        assert status(url, other) == 200
        config.write_text(good)
        revoke_key(keys, "other")
        wait_for(lambda: status(url, other) == 401)
        assert process.poll() is None


def put(kind: str, path: Path) -> None:
    """Put something at `path` that is no file of keys."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, SETTINGS_MOST + 1)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)


@pytest.mark.skipif(os.name != "posix", reason="pipes, devices and links")
@pytest.mark.parametrize(
    ("kind", "what"),
    [("pipe", "keys"), ("pipe", "settings"), ("device", "keys"), ("huge", "keys"), ("link to itself", "settings")],
)
def test_the_watch_neither_dies_nor_waits_at_what_is_no_file(tmp_path: Path, kind: str, what: str) -> None:
    """The keys that were read last hold meanwhile, and a key that was revoked ends when the file is back."""
    keys, config = tmp_path / "keys.json", tmp_path / "sollol.toml"
    token, other = add_key(keys, Key("me", "", app="me")), add_key(keys, Key("other", "", app="other"))
    config.write_text(f'[gateway]\nkeys_file = "{keys}"\nrequire_keys = true\n')
    path = keys if what == "keys" else config
    with (
        sim_cluster(1) as nodes,
        serving(tmp_path, "--config", str(config), "--nodes", nodes.urls[0]) as (process, url),
    ):
        assert status(url, token) == 200
        kept = path.rename(tmp_path / "kept")
        put(kind, path)
        assert process.stderr is not None
        while path.name not in (line := process.stderr.readline()):
            assert line
        assert status(url, token) == 200
        if what == "settings":  # the watch over the keys goes on meanwhile
            revoke_key(keys, "me")
            wait_for(lambda: status(url, token) == 401)
        revoke_key(kept if what == "keys" else keys, "other")
        path.unlink()
        kept.rename(path)
        wait_for(lambda: status(url, other) == 401)
        assert process.poll() is None
