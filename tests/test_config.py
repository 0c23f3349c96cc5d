"""Settings: the order of their sources, what each accepts, and what the user reads when one is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sollol.config import VARIABLES, Settings, load_settings
from sollol.core.endpoint import Endpoint
from sollol.errors import BadInput, ConfigError

FILE = """
nodes = ["10.0.0.5", {host = "10.0.0.6", port = 11435}, {url = "https://gate.example/team-a"}]
app_name = "from file"
observer_sampling = 0.5
[discovery]
subnets = ["10.9.66.0/24"]
ports = [11434, 11435]
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: Any) -> Any:
        path = tmp_path / "sollol.toml"
        path.write_text(text)
        return str(path)

    return write


def test_nothing_set_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert Settings() == Settings(None, (), None, 1.0, None, (11434,))


def test_a_file_sets_everything(file: Any) -> None:
    settings = load_settings({"SOLLOL_CONFIG": file(FILE)})
    assert settings.nodes == (
        Endpoint("10.0.0.5"),
        Endpoint("10.0.0.6", 11435),
        Endpoint("gate.example", 443, "https", "/team-a"),
    )
    assert settings.app_name == "from file"
    assert settings.observer_sampling == 0.5
    assert settings.discovery_subnets == ("10.9.66.0/24",)
    assert settings.discovery_ports == (11434, 11435)


def test_environment_over_file_and_arguments_over_both(file: Any) -> None:
    env = {"SOLLOL_CONFIG": file(FILE), "SOLLOL_APP_NAME": "from env", "SOLLOL_OBSERVER_SAMPLING": "0.2"}
    settings = load_settings(env, observer_sampling=False)
    assert (settings.app_name, settings.observer_sampling) == ("from env", 0.0)
    assert len(settings.nodes) == 3


def test_the_config_argument_stands_for_the_variable(file: Any) -> None:
    path = file('app_name = "x"')
    assert load_settings({"SOLLOL_CONFIG": "/nowhere"}, config=path).app_name == "x"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    env = dict.fromkeys([*VARIABLES, "SOLLOL_CONFIG"], " ")
    assert load_settings(env) == Settings()


@pytest.mark.parametrize("text", ["a:1,b:2", "a:1 b:2", " a:1 ,\n b:2;", "a:1,b:2,a:1"])
def test_nodes_are_separated_by_commas_or_spaces_and_kept_once(text: Any) -> None:
    assert load_settings({"SOLLOL_NODES": text}).nodes == (Endpoint("a", 1), Endpoint("b", 2))


@pytest.mark.parametrize(
    ("text", "host"),
    [("0.0.0.0", "127.0.0.1"), (":11434", "127.0.0.1"), ("[::]:11434", "::1"), ("box.lan", "box.lan"), ("::1", "::1")],
)
def test_ollama_host_is_read_as_a_client_reads_it(text: Any, host: Any) -> None:
    assert load_settings({"OLLAMA_HOST": text}).ollama_host == Endpoint(host, 11434)


@pytest.mark.parametrize(
    ("text", "share"),
    [("true", 1.0), ("ON", 1.0), ("false", 0.0), ("off", 0.0), ("0", 0.0), ("1", 1.0), ("0.1", 0.1), (".25", 0.25)],
)
def test_sampling(text: Any, share: Any) -> None:
    assert load_settings({"SOLLOL_OBSERVER_SAMPLING": text}).observer_sampling == share


@pytest.mark.parametrize(("raw", "share"), [("true", 1.0), ("false", 0.0), ("0.1", 0.1), ("1", 1.0)])
def test_sampling_in_a_file(file: Any, raw: Any, share: Any) -> None:
    assert load_settings({}, config=file(f"observer_sampling = {raw}")).observer_sampling == share


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SOLLOL_OBSERVER_SAMPLING", "maybe", "expected true, false"),
        ("SOLLOL_OBSERVER_SAMPLING", "1.5", "expected true, false"),
        ("SOLLOL_OBSERVER_SAMPLING", "nan", "expected true, false"),
        ("SOLLOL_NODES", "a:1 b:99999", "node 'b:99999' is not an address; expected 'host'"),
        ("OLLAMA_HOST", "http://", "expected 'host'"),
        ("SOLLOL_DISCOVERY_PORTS", "11434,x", "expected port numbers"),
        ("SOLLOL_DISCOVERY_PORTS", "0", "expected port numbers"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(variable: Any, value: Any, expected: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({variable: value})
    assert f"environment variable {variable}: {value!r} cannot be used" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes = [5]", "nodes: [5] cannot be used; node '5' is not an address"),
        ("nodes = 5", "nodes: 5 cannot be used; node '5' is not an address"),
        ("nodes = ['a:x']", "nodes: ['a:x'] cannot be used; node 'a:x' is not an address"),
        ("nodes = [{host = [1]}]", "nodes: [{'host': [1]}] cannot be used"),
        (
            "nods = []",
            "nods is not a setting; expected nodes, app_name, observer_sampling, [discovery], [redis], [otel] and "
            "[agents]",
        ),
        ("app_name = 3", "app_name: 3 cannot be used; expected a name"),
        ("app_name = ''", "app_name: '' cannot be used; expected a name"),
        ("observer_sampling = 2", "observer_sampling: 2 cannot be used; expected true, false"),
        ("[discovery]\nport = 1", "discovery.port is not a setting; expected subnets and ports"),
        ("[discovery]\nports = ['a']", "discovery.ports: ['a'] cannot be used; expected port numbers"),
        ("[discovery]\nports = [70000]", "discovery.ports: [70000] cannot be used; expected port numbers"),
        ("[discovery]\nports = []", "discovery.ports: [] cannot be used; expected at least one port"),
        ("[redis]\nurl = 'http://a'", "redis.url: 'http://a' cannot be used; expected redis://"),
        ("[redis]\nhost = 'a/b'", "redis.host: 'a/b' cannot be used; expected a host name"),
        ("[redis]\nport = [1, 2]", "redis.port: [1, 2] cannot be used; expected one port number"),
        ("[redis]\ndb = 1", "redis.db is not a setting; expected url, host and port"),
        ("redis = 3", "redis: 3 cannot be used; expected a table"),
        ("discovery = 3", "discovery: 3 cannot be used; expected a table"),
        ("nodes", "is not valid TOML"),
    ],
)
def test_a_wrong_file_names_field_value_and_what_was_expected(file: Any, text: Any, says: Any) -> None:
    path = file(text)
    with pytest.raises(ConfigError) as caught:
        load_settings({"SOLLOL_CONFIG": path})
    assert path in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_says_where_its_name_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; check SOLLOL_CONFIG"):
        load_settings({"SOLLOL_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_settings({"SOLLOL_CONFIG": str(tmp_path)})


def test_bytes_that_are_no_text_are_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_bytes(b'app_name = "\xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings({}, config=path)


def test_a_wrong_argument_is_the_callers_error() -> None:
    with pytest.raises(BadInput, match=r"argument observer_sampling: 3 cannot be used") as caught:
        load_settings({}, observer_sampling=3)
    assert not isinstance(caught.value, ConfigError)


def test_passwords_stay_out_of_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"SOLLOL_NODES": "http://me:secret@gate:99999"})
    assert "secret" not in str(caught.value)


def test_every_setting_is_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    for variable, field in VARIABLES.items():
        assert f"`{variable}`" in text
        key = field.replace("discovery_", "").replace("redis_", "").replace("otel_", "").replace("agents_", "")
        assert f"`{key}`" in text or variable == "OLLAMA_HOST"
    assert "`SOLLOL_CONFIG`" in text


def test_importing_loads_neither_msgspec_nor_asyncio() -> None:
    code = (
        "import sys, sollol.config; print([m for m in ('msgspec', 'tomllib', 'asyncio', 'socket') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("secret", ["secret", "sec/ret", "sec@ret", "s:e?c#r@e/t"])
def test_no_password_of_a_node_is_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"SOLLOL_NODES": f"http://user:{secret}@gpu-box:0"})
    for part in ("sec", "ret", "e?c#r"):
        assert part not in str(caught.value).replace("expected", "")


def test_the_key_of_the_agents_is_not_in_an_error() -> None:
    with pytest.raises(ConfigError, match=r"SOLLOL_AGENTS_KEY: '\*\*\*' cannot be used; expected the key") as caught:
        load_settings({"SOLLOL_AGENTS_KEY": "too short"})
    assert "too short" not in str(caught.value)
