"""The gateway's settings: what the file may say, what is said of mistakes, and that a running gateway follows it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sollol.cli.init import MEANINGS, text_of
from sollol.config import Settings, gateway_tables, load_settings
from sollol.config.paths import find_file
from sollol.errors import ConfigError
from sollol.gateway.settings import (
    AlertSettings,
    GatewaySettings,
    Listen,
    StoreSettings,
    applicable,
    gateway_settings,
    not_applied,
    problems_of,
    template,
)
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import gateway_over

FULL = """
nodes = ["10.0.0.5"]
app_name = "office"
[gateway]
host = "0.0.0.0"
port = 1
keys_file = "/k"
cors_origins = ["https://a.example"]
drain_s = 5
[limits]
max_body_mb = 7
queue = 3
request_timeout_s = 60
[routing]
mode = "fast"
strategy = "fairness"
hedge = false
[aliases]
"gpt-4o" = "mini"
"mini" = "llama3.2"
[fallbacks]
"big:70b" = ["llama3.2", "small"]
"""


def read(tmp_path: Path, text: str) -> GatewaySettings:
    path = tmp_path / "sollol.toml"
    path.write_text(text)
    return gateway_settings(load_settings({}, config=str(path)), str(path))


def test_the_file_says_everything(tmp_path: Path) -> None:
    found = read(tmp_path, FULL)
    assert (found.listen.host, found.listen.port, found.listen.drain_s) == ("0.0.0.0", 1, 5.0)
    assert (found.limits.max_body_bytes, found.limits.queue) == (7 * 1024 * 1024, 3)
    assert (found.mode, found.strategy, found.routing.hedge) == ("fast", "fairness", False)
    assert found.resolve_model("gpt-4o") == "llama3.2"
    assert found.resolve_model("gpt-4o:latest") == "llama3.2"
    assert found.resolve_model("other") == "other"
    assert found.fallbacks_of("big:70b") == ("llama3.2", "small")
    assert [node.key for node in found.nodes] == ["10.0.0.5:11434"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gateway]\nprot = 1", "gateway.prot is not a setting; expected host, port"),
        ("[gateway]\nport = 'x'", "gateway.port: 'x' cannot be used; expected int"),
        ("[gateway]\nport = 70000", "gateway.port: 70000 cannot be used; expected int <= 65535"),
        ("[limits]\nqueue = 0", "limits.queue: 0 cannot be used; expected int >= 1"),
        ("[routing]\nmode = 'slow'", "routing.mode: 'slow' cannot be used"),
        ("[aliases]\na = 1", 'aliases."a": 1 cannot be used; expected str'),
        ("[aliases]\na = ''", "aliases.\"a\": '' cannot be used; expected str of length >= 1"),
        ("[aliases]\na = 'a'", "aliases a:latest -> a:latest never end"),
        ("[aliases]\n'' = 'a'", "a name in aliases: '' cannot be used; expected str of length >= 1"),
        ("[models.'']\nreplicas = 1", "a name in models: '' cannot be used; expected str of length >= 1"),
        ("[models.x]\n[models.'x:latest']\npin = true", "'x' and 'x:latest' are one model; expected"),
        ("[models.x]\n[models.y]\nreplicas = -1\n[models.z]\nreplicas = -2", 'models."y".replicas: -1 cannot'),
        ("[models.x]\nnodes = ['gpu:99999']", "models.nodes: 'gpu:99999' of 'x' cannot be used; "),
        ("[fallbacks]\na = 'b'", "cannot be used; expected array"),
        ("[limits]\nidle_timeout_s = nan", "limits.idle_timeout_s: nan cannot be used; expected float > 0"),
        ("[limits]\nrequest_timeout_s = inf", "limits.request_timeout_s: inf cannot be used"),
        (
            "[gateway]\ncors_origins = ['a.example']",
            "gateway.cors_origins: 'a.example' cannot be used; expected an origin",
        ),
        ("[gateway]\ncors_origins = ['https://a.example/']", "without a path"),
        ("[aliases]\na = 'b'\nb = 'a'", "never end"),
        (
            "[gateway]\nkeys_file = '~nosuchuser/k'",
            "gateway.keys_file: '~nosuchuser/k' names a user who does not exist",
        ),
        ('[gateway]\nkeys_file = "a\\u0000b"', "has a NUL"),
        ("aliases = 3", "aliases: 3 cannot be used; expected a table"),
        ("[gatewya]\nport = 1", "gatewya is not a setting; expected nodes"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)
    assert "sollol.toml" in str(caught.value)


def test_the_written_file_has_every_setting_and_means_the_defaults(tmp_path: Path) -> None:
    text = text_of()
    assert read(tmp_path, text) == GatewaySettings()
    for fields in template().values():
        for field, _ in fields:
            assert f"# {field} = " in text
            assert MEANINGS[field] in text
    # Uncommented it can be used, too.
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line or line.startswith("[")]
    tomllib.loads("\n".join(line for line in lines if not line.startswith(("nodes", "Settings"))))
    assert read(tmp_path, "\n".join(line for line in lines if not line.startswith("#"))).mode == "fast"


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    for table, fields in template().items():
        assert f"`[{table}]`" in page
        for field, _ in fields:
            assert f"`{field}`" in page, field
    assert "`SOLLOL_API_KEYS`" in page


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "config" / "sollol"
    here.mkdir()
    home.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SOLLOL_CONFIG", raising=False)
    assert find_file() is None
    (home / "sollol.toml").write_text("")
    assert find_file() == str(home / "sollol.toml")
    (here / "sollol.toml").write_text("")
    assert find_file() == "sollol.toml"
    monkeypatch.setenv("SOLLOL_CONFIG", "named.toml")
    assert find_file() == "named.toml"
    assert find_file("given.toml") == "given.toml"


def ask(client: Any, model: str) -> Any:
    return client.post("/api/generate", json={"model": model, "prompt": "x", "stream": False})


def test_aliases_and_fallbacks() -> None:
    small = ModelSpec("small", size_bytes=10)
    settings = GatewaySettings(
        aliases={"gpt-4o:latest": "small"}, fallbacks={"big:70b": ("nothing", "small"), "lost:latest": ("gone",)}
    )
    with (
        sim_cluster([NodeSpec(models=(small,))]) as nodes,
        gateway_over(nodes.urls, settings) as stage,
        stage.client() as client,
    ):
        assert ask(client, "gpt-4o").json()["model"] == "small"
        assert client.post("/api/show", json={"model": "gpt-4o"}).status_code == 200
        assert "gpt-4o:latest" in [row["id"] for row in client.get("/v1/models").json()["data"]]
        assert ask(client, "big:70b").json()["model"] == "small"
        lost = ask(client, "lost")
        assert (lost.status_code, lost.json()) == (404, {"error": "model 'lost' not found"})


def test_a_running_gateway_takes_up_a_change() -> None:
    with sim_cluster(2) as nodes, gateway_over(nodes.urls[:1]) as stage, stage.client() as client:
        from sollol.core.endpoint import parse_endpoint

        before = stage.gateway.settings
        new = msgspec.structs.replace(
            before, nodes=tuple(map(parse_endpoint, nodes.urls[1:])), aliases={"x:latest": "llama3.2"}
        )
        stage.look(lambda gateway: gateway.apply(new))
        answer = ask(client, "x")
        assert answer.headers["x-sollol-node"] == nodes.urls[1].removeprefix("http://")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"listen": Listen(port=1)}, "port is 1 now, and 11435 stays in use"),
        ({"listen": Listen(host="::1")}, "host is '::1' now, and '127.0.0.1' stays in use"),
        ({"store": StoreSettings(days=1.0)}, "[store] has changed, and its old settings stay in use"),
        ({"alerts": AlertSettings(every_s=60.0)}, "[alerts] has changed, and its old settings stay in use"),
    ],
)
def test_what_a_running_gateway_cannot_change_is_reported_and_stays(changed: dict[str, Any], message: str) -> None:
    old = GatewaySettings()
    new = msgspec.structs.replace(old, **changed)
    assert not_applied(new, old) == [message]
    assert applicable(new, old) == old


def test_the_key_of_the_registry_is_not_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"registry\.key: '\*\*\*' cannot be used; expected .*A-Za-z0-9") as raised:
        read(tmp_path, '[registry]\nkey = "short secret"\n')
    assert "short secret" not in str(raised.value)


def test_each_of_several_tables_with_the_same_mistake_is_named(tmp_path: Path) -> None:
    text = "".join(f"[models.{name}]\nreplicas = {count}\n" for name, count in (("x", -1), ("y", 1), ("z", -1)))
    path = tmp_path / "sollol.toml"
    path.write_text(text)
    found = problems_of(Settings(gateway=gateway_tables(str(path))), str(path))
    assert [problem.partition(": ")[2].partition(" cannot")[0] for problem in found] == [
        'models."x".replicas: -1',
        'models."z".replicas: -1',
    ]
