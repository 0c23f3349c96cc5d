"""The documentation is kept: its Python runs as written, it names everything there is, and its links lead somewhere.

Examples run against simulated nodes on loopback. A fence around the sockets of this process refuses every other
address, so an example may search networks or name nodes that do not exist, and nothing leaves this machine. A block
that cannot run here is preceded by `<!-- no-run: reason -->`.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import inspect
import ipaddress
import re
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sollol
from sollol import config, errors, sim
from sollol.pool.call_types import ChatKeywords, EmbedKeywords, GenerateKeywords
from sollol.sim import faults

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, *sorted(DOCS.glob("*/*.md"))]
OLLAMA_PORT = 11434  # a real node may be there

FENCE = re.compile(r"^(?P<mark><!-- no-run.*?-->\n+)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(*names: str) -> str:
    return "\n".join((DOCS / name).read_text() for name in names)


def module_at(path: Path) -> Any:
    """Return a script outside the packages as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool_of(name: str) -> Any:
    """Return a script of tools/ as a module."""
    return module_at(ROOT / "tools" / f"{name}.py")


# --- examples ---


def blocks(path: Path) -> list[tuple[int, str]]:
    """(lines before it, code) of each Python block that is to run."""
    text = path.read_text()
    found = []
    for match in FENCE.finditer(text):
        if match["mark"]:
            assert re.match(r"<!-- no-run: \w.*-->", match["mark"]), f"{name_of(path)}: no-run needs a reason"
        elif match["language"] == "python":
            found.append((text.count("\n", 0, match.start("code")), match["code"]))
    return found


def is_outside(sock: socket.socket, address: Any) -> bool:
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ipaddress.ip_address(address[0]).is_loopback or address[1] == OLLAMA_PORT


class FencedSocket(socket.socket):
    """Connects to loopback only; anything else is refused."""

    def connect(self, address: Any, /) -> None:
        if is_outside(self, address):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "outside the fence")
        super().connect(address)

    def connect_ex(self, address: Any, /) -> int:
        if is_outside(self, address):
            return errno.ECONNREFUSED
        return super().connect_ex(address)


def addresses_only(host: Any, *args: Any, **kwargs: Any) -> Any:
    """`getaddrinfo` without a name server."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is a name outside the fence") from None
    return getaddrinfo(host, *args, **kwargs)


getaddrinfo = socket.getaddrinfo


@pytest.fixture(scope="module")
def nodes() -> Iterator[sim.Cluster]:
    with sim.sim_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def fenced(nodes: sim.Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*config.VARIABLES, "SOLLOL_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SOLLOL_NODES", " ".join(nodes))
    monkeypatch.setitem(sys.modules, "uvloop", None)  # its sockets are not Python's
    monkeypatch.setattr(socket, "socket", FencedSocket)
    monkeypatch.setattr(socket, "getaddrinfo", addresses_only)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("fenced")
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=name_of)
def test_examples_run_as_written(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        for lines, code in blocks(path):
            exec(compile("\n" * lines + code, str(path), "exec", dont_inherit=True), namespace)
    finally:
        for value in namespace.values():
            if isinstance(value, sollol.OllamaPool):
                value.close()


@pytest.mark.usefixtures("fenced")
def test_the_fence_holds() -> None:
    with socket.socket() as outside:
        assert outside.connect_ex(("192.0.2.1", 11434)) == errno.ECONNREFUSED
    with pytest.raises(OSError, match="outside the fence"):
        socket.getaddrinfo("ollama.example", 80)


# --- completeness ---


def names_in(text: str) -> set[str]:
    """Every word that stands in code, inline or in a block."""
    code = [match["code"] for match in FENCE.finditer(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return set(re.findall(r"\w+", "\n".join(code)))


def missing(names: Any, *pages: str) -> list[str]:
    return sorted(set(names) - names_in(text_of(*pages)))


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


def test_every_setting_is_documented() -> None:
    assert not missing([*config.VARIABLES, "SOLLOL_CONFIG"], "configuration.md")


def test_every_error_is_documented() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == "sollol.errors"
    }
    assert "QueueFull" in kinds
    assert not missing(kinds, "pools.md")


def test_every_command_is_documented() -> None:
    import typer

    from sollol.cli.app import app

    commands = getattr(typer.main.get_command(app), "commands", {})
    assert "discover" in commands
    page = text_of("cli.md")
    for name in commands:
        assert f"`sollol {name}`" in page, f"docs/cli.md does not list `sollol {name}`"
        assert re.search(rf"^## {name}$", page, re.M), f"docs/cli.md has no section {name}"


def test_the_reference_of_commands_is_current() -> None:
    tool = tool_of("cli_reference")
    assert tool.PAGE.read_text() == tool.reference(), "run: python tools/cli_reference.py"


def test_the_picture_of_the_rooms_is_current() -> None:
    tool = tool_of("house")
    text = tool.PAGE.read_text()
    assert tool.page(text) == text, "run: python tools/house.py"
    for room in tool.rooms():
        assert not room or f"| `{room}` |" in text


def test_the_picture_of_models_is_current_and_has_all_states() -> None:
    tool = tool_of("models_picture")
    assert tool.FILE.read_text() == tool.picture(), "run: python -m tools.models_picture"
    page = text_of("models.md")
    assert f"(pictures/{tool.FILE.name})" in page
    table = page.split("| state | source | meaning |")[1].split("## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    named = {name for states, _ in rows for name in re.findall("`([^`]+)`", states)}
    assert named | {"on disk"} == set(tool.STATES)
    for states, source in rows:
        for name in re.findall("`([^`]+)`", states):
            assert source.strip(" `") in tool.STATES[name].source, name


def test_the_ways_through_the_house_exist() -> None:
    """`room/file.py` and the functions behind it, in the tables of docs/architecture.md."""
    source = ROOT / "src" / "sollol"
    rows = [line for line in text_of("architecture.md").splitlines() if re.match(r"\| \d", line)]
    assert len(rows) > 15
    for row in rows:
        path = None
        for word in re.findall(r"`([^`]+)`", row.split("|")[3]):
            if word.endswith(".py"):
                path = source / word
                assert path.exists(), word
            else:
                assert path is not None
                assert re.search(rf"def {word}\b", path.read_text()), f"{path.name} has no {word}"


def test_every_public_name_is_documented() -> None:
    assert not missing(sollol.__all__, *(path.name for path in DOCS.glob("*.md")))


def test_everything_a_pool_has_is_documented() -> None:
    pages = ("pools.md", "batches.md")
    assert not missing(public(sollol.OllamaPool) | public(sollol.AsyncOllamaPool), *pages)
    verbs = [getattr(kind, name) for kind in (sollol.OllamaPool, sollol.AsyncOllamaPool) for name in public(kind)]
    arguments = {name for verb in verbs if callable(verb) for name in inspect.signature(verb).parameters}
    arguments |= {*ChatKeywords.__annotations__, *GenerateKeywords.__annotations__, *EmbedKeywords.__annotations__}
    assert not missing(arguments - {"self", "args", "call", "kwargs", "same", "ollama", "host", "port"}, *pages)


def test_every_statistic_is_documented(nodes: sim.Cluster) -> None:
    from sollol.observe.batch_report import BatchReport, NodeShare

    with sollol.OllamaPool(list(nodes)) as pool:
        pool.generate("llama3.2", "Hello")
        stats = pool.get_stats()
    row = next(iter(stats["node_performance"].values()))
    assert not missing([*stats, *row], "pools.md")
    assert not missing([*BatchReport._fields, *NodeShare._fields], "batches.md")


def test_everything_simulated_is_documented() -> None:
    specs = [field.name for kind in (sim.NodeSpec, sim.ModelSpec) for field in dataclasses.fields(kind)]
    assert not missing([*sim.__all__, *specs, *faults.ACTIONS], "simulation.md")


def test_the_constants_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \| ([\d.,]+)( ms| s)? \|", text_of("scheduling.md"), re.M)
    assert len(rows) > 30
    for module, name, number, unit in rows:
        told = float(number.replace(",", "")) * {"": 1, " ms": 1_000, " s": 1_000_000}[unit]
        real = getattr(import_module(f"sollol.{module}"), name) * (1_000_000 if name.endswith("_S") else 1)
        assert told == pytest.approx(real), f"docs/scheduling.md: {module}.{name} is {real:,}"


# --- links ---


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", path.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), f"{name_of(path)} links to {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(path)} links to {target}, which has no such heading"


def test_every_page_is_in_the_index() -> None:
    index = text_of("index.md")
    for path in DOCS.glob("*.md"):
        assert path.name == "index.md" or f"({path.name})" in index
