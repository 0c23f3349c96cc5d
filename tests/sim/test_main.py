"""`sollol sim`, also `python -m sollol.sim`, as a command."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest

from sollol.sim.serve import sim_cluster


def test_a_port_that_is_taken_is_told_without_a_traceback() -> None:
    with sim_cluster(1) as nodes:
        port = nodes.urls[0].rpartition(":")[2]
        command = [sys.executable, "-m", "sollol.sim", "--port", port, "--nodes", "2"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: " in ended.stderr
    assert "choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_none_is_told_too() -> None:
    command = [sys.executable, "-m", "sollol.sim", "--host", "no-such-host.invalid"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "cannot listen on no-such-host.invalid" in ended.stderr
    assert "Traceback" not in ended.stderr


def started(*options: str) -> list[str]:
    """Run the command, and return the models' lists of its nodes while they are up."""
    command = [sys.executable, "-m", "sollol.sim", *options, "--until-stdin-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while b"}" in lines[-1] and len(lines) < 3:
            lines.append(process.stdout.readline())
        found = []
        for line in lines:
            with urllib.request.urlopen(json.loads(line)["url"] + "/api/version") as answer:
                found.append(json.load(answer)["version"])
        process.stdin.close()
        assert process.wait(10) == 0
    return found


def test_unequal_nodes_and_a_spec_for_each() -> None:
    assert started("--speeds", "4,2,1") == ["0.33.0"] * 3
    specs = [word for version in ("0.1.0", "0.2.0", "0.3.0") for word in ("--spec", json.dumps({"version": version}))]
    assert started(*specs) == ["0.1.0", "0.2.0", "0.3.0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--speeds", "4,a"], "--speeds 4,a; expected numbers above 0"),
        (["--speeds", "4,-1"], "expected numbers above 0"),
        (["--speeds", "4,2", "--nodes", "3"], "2 and 3 nodes; expected the same number"),
        (["--spec", "{"], "--spec {; expected JSON such as"),
        (["--spec", "[]"], "--spec []; expected JSON such as"),
        (["--spec", '{"wheels": 4}'], "NodeSpec has no wheels"),
        (["--schedule", "[{}]"], "--schedule [{}]; expected JSON such as"),
        (["--schedule", '[{"at_s": 0, "do": "die", "node": "a:1"}]'], "fault 'die' is for a:1; there are 127.0.0.1:"),
        (["--schedule", "[3]"], "--schedule [3]; expected JSON such as"),
    ],
)
def test_options_that_cannot_be_used(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "sollol.sim", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert words in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_unequal_nodes_have_relative_rates() -> None:
    from sollol.cli.sim import node_specs

    specs = node_specs(None, [4, 2, 1], "127.0.0.1", ["{}"], {"embed_items_per_s": 200.0, "decode_tokens_per_s": None})
    assert [spec.embed_items_per_s for spec in specs] == [200, 100, 50]
    assert [spec.decode_tokens_per_s for spec in specs] == [60, 30, 15]
    assert [spec.seed for spec in specs] == [0, 1, 2]
    instant = node_specs(2, [], "127.0.0.1", ["{}"], {"embed_items_per_s": None})
    assert [spec.embed_items_per_s for spec in instant] == [None, None]
