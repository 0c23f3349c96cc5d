"""`sollol models`: the table of models and nodes, and the changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from sollol.models.progress import MergedProgress
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

Run = Callable[..., Result]
LLAMA = ModelSpec("llama3.2", size_bytes=2_000_000_000)
OTHER = ModelSpec("other", size_bytes=274_000_000)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    first = NodeSpec(models=(LLAMA, OTHER), loaded=("llama3.2",))
    second = NodeSpec(models=(ModelSpec("llama3.2", digest="f" * 64),), registry=(OTHER,))
    with sim_cluster([first, second]) as running:
        yield running


def names(cluster: Cluster) -> tuple[str, str]:
    return cluster[0].removeprefix("http://"), cluster[1].removeprefix("http://")


def test_the_table_of_models_and_nodes(run: Run, cluster: Cluster) -> None:
    result = run("models", "list", "--nodes", ",".join([*cluster, "127.0.0.1:9"]))
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "node", "size", "digest", "in", "memory", "last", "used"]
    assert len(lines) == 4
    assert "2 models on 2 of 3 nodes" in result.stderr
    assert "127.0.0.1:9 is down" in result.stderr
    assert "version differs between nodes" in result.stderr
    told = json.loads(run("models", "list", "--nodes", ",".join(cluster), "--json").stdout)
    by = {(row["model"], row["node"]): row for row in told["models"]}
    first, second = names(cluster)
    assert by["llama3.2:latest", first]["gpu_share"] == 1.0
    assert by["llama3.2:latest", second]["processor"] is None
    assert by["llama3.2:latest", second]["differs"] is True
    assert by["other:latest", first]["differs"] is False


def test_memory_is_changed_on_the_nodes_that_are_named(run: Run, cluster: Cluster) -> None:
    first, second = names(cluster)
    both = ["--nodes", ",".join(cluster)]
    run("models", "unpin", "llama3.2", *both)  # a simulated node never forgets what it began with
    assert f"{second}: llama3.2 pinned" in run("models", "pin", "llama3.2", "--on", second, *both).stdout
    rows = json.loads(run("models", "list", *both, "--json").stdout)["models"]
    assert {row["node"]: row["pinned"] for row in rows if row["model"] == "llama3.2:latest"} == {
        first: False,
        second: True,
    }
    assert f"{second}: llama3.2 unpinned" in run("models", "unpin", "llama3.2", *both).stdout
    run("models", "unload", "llama3.2", *both)
    gone = run("models", "unload", "llama3.2", *both, code=1)
    assert "is not in the memory of" in gone.stderr
    lacking = run("models", "warm", "other", *both)
    assert f"{second} lacks other: `sollol models pull other --on {second}`" in lacking.stderr


def test_disks_are_changed(run: Run, cluster: Cluster) -> None:
    first, second = names(cluster)
    both = ["--nodes", ",".join(cluster)]
    pulled = run("models", "pull", "other", "--on", second, *both)
    assert f"{second}: other pulled" in pulled.stdout
    assert f"no agent reports it, on {second}." in pulled.stderr
    assert run("models", "copy", "other", "another", *both).stdout.count("copied to another") == 2
    run("models", "rm", "other", "--on", first, *both)
    run("models", "rm", "another", "--all", *both)
    rows = json.loads(run("models", "list", *both, "--json").stdout)["models"]
    assert {(row["model"], row["node"]) for row in rows} == {
        ("llama3.2:latest", first),
        ("llama3.2:latest", second),
        ("other:latest", second),
    }


def test_a_failed_node_is_named_and_the_exit_code_is_1(run: Run, cluster: Cluster) -> None:
    result = run("models", "pull", "absent", "--nodes", ",".join(cluster), "--json", code=1)
    assert all("no such host" in why for why in json.loads(result.stdout)["nodes"].values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rm", "other"], "--on HOST:PORT, or --all"),
        (["pin", "other", "--on", "10.9.9.9"], "--on 10.9.9.9 is not a node here"),
        (["sync"], "no configuration file that names models"),
    ],
)
def test_bad_input(run: Run, cluster: Cluster, words: list[str], expected: str) -> None:
    assert expected in run("models", *words, "--nodes", ",".join(cluster), code=2).stderr


def test_without_a_file_or_a_gateway_the_next_step_is_named(run: Run, tmp_path: Path) -> None:
    assert (
        "there is no configuration file that names models; `sollol init` writes one"
        in run("models", "sync", code=2).stderr
    )
    file = tmp_path / "sollol.toml"
    file.write_text("")
    assert f"{file} names no model; expected tables" in run("models", "sync", "--config", str(file), code=2).stderr


def test_sync_plans_then_makes(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "sollol.toml"
    file.write_text('[models.other]\nreplicas = 2\n[models."llama3.2"]\npin = true\nnodes = ["nowhere"]\n')
    where = ["--config", str(file), "--nodes", ",".join(cluster)]
    planned = json.loads(run("models", "sync", "--dry-run", "--json", *where, code=1).stdout)
    assert [change["verb"] for change in planned["changes"]] == ["unpin", "pull"]
    assert "'nowhere' is not a node here" in planned["unmet"][0]
    file.write_text("[models.other]\nreplicas = 2\npin = true\n")
    assert "1 of 2 nodes have it" in run("models", "sync", "--dry-run", *where).stdout
    run("models", "sync", *where)
    assert "Nothing has to change" in run("models", "sync", *where).stderr


def test_sync_names_each_node_that_refuses_and_the_next_step(run: Run, tmp_path: Path) -> None:
    small = NodeSpec(models=(OTHER,), ram_bytes=1, vram_bytes=1)
    with sim_cluster([NodeSpec(models=(OTHER,)), small, NodeSpec(models=())]) as nodes:
        first, second, third = (url.removeprefix("http://") for url in nodes)
        file = tmp_path / "sollol.toml"
        file.write_text("[models.other]\nreplicas = 3\npin = true\n")
        told = run("models", "sync", "--config", str(file), "--nodes", ",".join(nodes), code=1).stderr
    assert f"warm other:latest {first}: success" in told
    assert f"warm other:latest {second}: model requires more system memory" in told
    assert f"`sollol models unload MODEL --on {second}` frees memory" in told
    assert f"{third} does not reach the registry; `sollol models pull other:latest --lan`" in told
    assert f"`sollol models pull other:latest --on {third}` brings it" in told
    assert "1 of 4 changes made." in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.a]\nreplica = 1\n", "is not a setting; expected replicas, pin, nodes"),
        ("[models.a]\nreplicas = -1\n", 'models."a".replicas: -1 cannot be used; expected int >= 0'),
        ("[models]\na = 1\n", "expected table"),
    ],
)
def test_wrong_tables_are_explained(run: Run, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "sollol.toml"
    file.write_text(text)
    assert says in run("models", "sync", "--config", file, code=2).stderr


def test_merged_progress_never_goes_back() -> None:
    merged = MergedProgress(2)
    lines: list[dict[str, Any]] = [
        {"node": "a", "digest": "x", "total": 100, "completed": 40},
        {"node": "b", "digest": "x", "total": 100},
        {"node": "a", "digest": "x", "total": 100, "completed": 20},
        {"node": "a", "digest": "y", "total": 10, "completed": 10},
        {"node": "a", "status": "success"},
        {"node": "b", "digest": "x", "total": 100, "completed": 900},
    ]
    seen = []
    for line in lines:
        merged.add(line)
        seen.append((merged.completed, merged.total))
    assert seen == [(40, 200), (40, 200), (40, 200), (50, 220), (110, 220), (210, 220)]
    merged.add({"node": "b", "error": "gone"})
    assert (merged.completed, merged.total) == (110, 110)
    assert merged.outcomes == {"a": "success", "b": "gone"}


def test_over_the_lan_the_model_comes_from_a_node_that_has_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = ModelSpec("llama3.2", size_bytes=1_000_000)
    specs = [NodeSpec(models=(model,) * (i == 0), models_dir=str(tmp_path / f"node{i}")) for i in range(3)]
    with sim_cluster(specs) as running:
        where = ["--nodes", ",".join(running)]
        result = run("models", "pull", "llama3.2", "--lan", *where)
        assert result.stdout.count("llama3.2 pulled") == 3
        rows = json.loads(run("models", "list", *where, "--json").stdout)["models"]
        assert len(rows) == 3
        assert not any(row["differs"] for row in rows)
        absent = run("models", "pull", "absent", "--lan", *where, code=1)
        assert "no such host" in absent.stderr
        bad = tmp_path / "sollol.toml"
        bad.write_text('[registry]\nfolder = "/dev/null/x"\n')
        refused = run("models", "pull", "llama3.2", "--lan", "--config", bad, *where, code=2)
        assert "the registry cannot start" in refused.stderr
