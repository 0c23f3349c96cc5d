"""Every Python block of the guide (`fixtures/guide.md`, whole) runs as written, on a network of its own.

The network is made of namespaces: the guide's three hosts with a simulated node each, and a client. A section is a
program: its blocks run in order in one namespace, in a new process on the client; what they need of earlier sections
is run before. What cannot run as it stands is listed here, with the reason.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bench.lan import ROOT, Host, Lan

from sollol.config import load_settings
from sollol.network_observer import NetworkObserver

GUIDE = Path(__file__).parent / "fixtures" / "guide.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
HOSTS = ("10.9.66.15", "10.9.66.154", "192.168.1.100")
CLIENT = ("10.9.66.10/24", "192.168.1.10/24")

NOT_PYTHON = {
    697: "a line for the shell, `export SOLLOL_OBSERVER_SAMPLING=false`; what it sets is tested below",
}
"""Blocks marked as Python that are none, by line."""

SHELL = {
    601: "settings for the shell; that they are read is tested in test_config.py",
    737: "curl and pip, for the shell",
    758: "apt and systemctl: an optional Redis",
    776: "`self.sample_rate = 0.1` is an edit of another program's source; the attribute is tested below",
}
"""Blocks for the shell."""

GIVEN = {
    "document_chunks": "document_chunks = [f'Chunk {i} of 21 PDF files' for i in range(2453)]",
    "logger": "import logging; logger = logging.getLogger('the reader')",
}
"""What the guide takes from its reader's program."""

BEFORE = {
    620: (
        "the success rate of a pool that was never asked cannot be divided",
        "pool.chat('llama3.2', [dict(role='user', content='Hi')])",
    ),
}
"""What a reader has done before this block, and why it matters."""

PLACEHOLDER = ("messages=[...]", 'messages=[{"role": "user", "content": "A question."}]')
ELLIPSIS = 549  # the block that has placeholders: it runs with messages; as it stands, it must be told from a request

CHECKS = {
    100: "assert len(embeddings) == 10_000 and all(item is not None for item in embeddings)\n"
    "assert embeddings.vectors.shape == (10_000, 64) and len(embeddings.report.nodes) >= 2",
    165: "assert response.message.content and response.routing.task_type == 'code'\n"
    "assert response.routing.complexity == 7 and response.routing.gpu_node",
    233: "assert pool.routing_mode == 'fast'",
    245: "assert pool.routing_mode == 'reliable'",
    253: "assert pool.routing_mode == 'async'",
    262: "assert [a.routing.mode for a in (plan, code, docs)] == ['fast', 'reliable', 'async']\npage(8080)",
    331: "assert len(nodes) == 3 and unique_hosts == 3 and should_parallel is True\n"
    "assert (master_node, worker_nodes) == ('10.9.66.15', ['10.9.66.154', '192.168.1.100'])",
    394: "assert isinstance(response['message']['content'], str) and response['message']['content']",
    423: "assert nodes == [{'host': h, 'port': 11434} for h in ('10.9.66.15', '10.9.66.154', '192.168.1.100')]",
    505: "assert len(results) == 10_000 and None not in results[:100]",
    531: "assert response.message.content",
    578: "page(8080)",
    620: "assert stats['total_requests'] == stats['successful_requests'] == 1 and len(stats['node_performance']) == 3",
    639: "assert response.message.content",
    662: "assert [n.url for n in pool.nodes] == node_urls and len(node_urls) == 3",
    715: "gpu_controller.optimize_cluster()\nassert gpu_controller.get_placement_stats()['gpu_percentage'] == 100",
    744: "assert [n.host for n in pool.nodes] == ['10.9.66.15', '10.9.66.154', '192.168.1.100']\n"
    "assert pool.chat('llama3.2', [{'role': 'user', 'content': 'Hi'}]).message.content",
    886: "assert len(embeddings) == 2453 and not embeddings.errors",
    923: "assert router.gpu_controller is gpu_controller and router.pool is gpu_controller.pool",
    993: "assert unique == 3 and should_parallel is True",
}
"""What must be true after a block: the guide's own words about it."""

DRIVER = r"""
import io, json, os, sys, time, traceback, urllib.request
from contextlib import redirect_stdout
steps = json.load(open(sys.argv[1]))
os.chdir(os.path.dirname(sys.argv[1]))

def page(port):
    for attempt in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/snapshot", timeout=5) as answer:
                shown = json.load(answer)
            assert len(shown["nodes"]) == 3
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no dashboard on port {port}")

namespace = {"__name__": "__main__", "page": page}
told = []
for step in steps:
    began, out, error = time.perf_counter(), io.StringIO(), ""
    try:
        with redirect_stdout(out):
            exec(compile("\n" * step["line"] + step["code"], step["name"], "exec"), namespace)
    except BaseException:
        error = traceback.format_exc()
    told.append(dict(name=step["name"], error=error, out=out.getvalue(), seconds=time.perf_counter() - began))
    if error:
        break
print(json.dumps(told))
sys.stdout.flush()
os._exit(0)  # pools and dashboards end with their program, closed or not
"""


class Block(NamedTuple):
    line: int
    section: str
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"guide.md, line {self.line}"


def blocks() -> list[Block]:
    text = GUIDE.read_text()
    sections = [(match.start(), match[1]) for match in re.finditer(r"^## (.*)$", text, re.M)]
    return [
        Block(
            text.count("\n", 0, match.start()) + 1,
            next((name for at, name in reversed(sections) if at < match.start()), ""),
            match[1],
            match[2],
        )
        for match in FENCE.finditer(text)
    ]


PYTHON = [block for block in blocks() if block.language == "python" and block.line not in NOT_PYTHON]
SECTIONS = list(dict.fromkeys(block.section for block in PYTHON))


def names(code: str) -> tuple[set[str], set[str]]:
    """The names a block needs from outside, and those it gives."""
    loads: set[str] = set()
    stores: set[str] = set()
    for item in ast.walk(ast.parse(code)):
        if isinstance(item, ast.Name):
            (loads if isinstance(item.ctx, ast.Load) else stores).add(item.id)
        elif isinstance(item, (ast.Import, ast.ImportFrom)):
            stores |= {alias.asname or alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ExceptHandler) and item.name:
            stores.add(item.name)
    return loads - stores - set(vars(builtins)), stores


def program(section: str) -> list[Block]:
    """The blocks of a section, after those of earlier sections that give what they need."""
    own = [block for block in PYTHON if block.section == section]
    before: dict[int, Block] = {}

    def supply(wanted: set[str], until: int) -> None:
        for name in sorted(wanted):
            giver = next((b for b in reversed(PYTHON) if b.line < until and name in names(b.code)[1]), None)
            if giver is None:
                assert name in GIVEN, f"{name} is not defined before line {until}"
            elif giver.line not in before:
                before[giver.line] = giver
                supply(names(giver.code)[0], giver.line)

    given: set[str] = set()
    for block in own:
        wanted, gives = names(block.code)
        supply(wanted - given, own[0].line)
        given |= gives
    return [before[line] for line in sorted(before)] + own


def steps(section: str) -> list[dict[str, Any]]:
    found = [{"name": f"given: {name}", "line": 0, "code": code} for name, code in GIVEN.items()]
    for block in program(section):
        mine = block.section == section
        if mine and block.line in BEFORE:
            found.append({"name": f"before {block.name}", "line": 0, "code": BEFORE[block.line][1]})
        code = block.code.replace(*PLACEHOLDER) if block.line == ELLIPSIS else block.code
        found.append({"name": block.name, "line": block.line, "code": code})
        if mine and block.line in CHECKS:
            found.append({"name": f"check of {block.name}", "line": 0, "code": CHECKS[block.line]})
    return found


# --- what is not run ---


def test_every_block_is_run_or_listed() -> None:
    found = {block.line for block in blocks() if block.language}
    assert found == {block.line for block in PYTHON} | set(NOT_PYTHON) | set(SHELL)
    for line in NOT_PYTHON:
        with pytest.raises(SyntaxError):
            ast.parse(next(block.code for block in blocks() if block.line == line))


def test_what_the_shell_blocks_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_OBSERVER_SAMPLING", "false")
    assert NetworkObserver().sample_rate == load_settings().observer_sampling == 0.0
    observer = NetworkObserver(sample_rate=1.0)
    observer.sample_rate = 0.1
    assert observer.sample_rate == 0.1


# --- what is ---


@pytest.fixture(scope="module")
def client() -> Iterator[Host]:
    if Lan.missing():
        pytest.skip(Lan.missing())
    models = [
        {"name": "llama3.2", "size_bytes": 2_000_000_000, "mean_words": 20},
        {"name": "qwen2.5-coder:7b", "size_bytes": 4_700_000_000, "mean_words": 20},
        {"name": "mxbai-embed-large", "kind": "embed", "size_bytes": 670_000_000},
    ]
    speed = {"decode_tokens_per_s": 200, "prefill_tokens_per_s": 5_000, "load_bytes_per_s": 20_000_000_000}
    with Lan() as lan:
        started = []
        try:
            for seed, (host, rate) in enumerate(zip(HOSTS, (4_000, 720, 2_000), strict=True)):
                spec = {"models": models, "vectors": "cheap", "embed_items_per_s": rate, "seed": seed, **speed}
                machine = lan.host(f"{host}/24")
                words = ("-m", "sollol.sim", "--host", host, "--port", "11434", "--spec", json.dumps(spec))
                command = machine.command(sys.executable, *words, "--until-stdin-ends")
                env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
                started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env))
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline(), "a simulated node did not start"
            yield lan.host(*CLIENT)
        finally:
            for process in started:
                process.kill()
                process.communicate()


def run(client: Host, folder: Path, plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    code = f"import sys; sys.argv = ['guide', {str(path)!r}]\n{DRIVER}"
    told: list[dict[str, Any]] = json.loads(client.python(code, timeout_s=120, PYTHONWARNINGS="error::UserWarning"))
    return told


@pytest.mark.root
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_as_written(client: Host, tmp_path: Path, section: str) -> None:
    plan = steps(section)
    told = run(client, tmp_path, plan)
    for step in told:
        assert not step["error"], f"{step['name']}:\n{step['error']}"
    assert len(told) == len(plan)


@pytest.mark.root
def test_a_placeholder_is_told_from_a_message(client: Host, tmp_path: Path) -> None:
    code = next(block.code for block in PYTHON if block.line == ELLIPSIS)
    plan = [
        {"name": "as written", "line": ELLIPSIS, "code": "from sollol import OllamaPool; pool = OllamaPool()\n" + code}
    ]
    (told,) = run(client, tmp_path, plan)
    assert "BadInput: chat: messages[0]=Ellipsis; expected" in told["error"]


@pytest.mark.root
def test_what_is_said_when_the_whole_cluster_is_down(client: Host, tmp_path: Path) -> None:
    """The guide's error handling, with nodes that are not there."""
    code = next(block.code for block in PYTHON if block.line == 639)
    setup = (
        "from sollol import OllamaPool; pool = OllamaPool(['10.9.66.15:9', '10.9.66.154:9'])\n"
        "import io, logging; said = io.StringIO(); logging.basicConfig(stream=said); logger = logging.getLogger('me')"
    )
    check = "assert 'Cluster unavailable' in said.getvalue() and '10.9.66.154:9' in said.getvalue()"
    plan = [
        {"name": name, "line": 0, "code": text} for name, text in (("setup", setup), ("guide", code), ("check", check))
    ]
    told = run(client, tmp_path, plan)
    assert not told[-1]["error"], told[-1]["error"]
    assert [step["name"] for step in told] == ["setup", "guide", "check"]
