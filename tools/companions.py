"""Run programs that were written for SOLLOL 0.9, as the package index has them, over simulated nodes; print a table.

python tools/companions.py    (make companions)

Everything is put into the folder .companions: an environment of its own with this SOLLOL in place of theirs, and the
programs. Modules that a published wheel imports and does not contain are replaced, and the table names them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from sollol.compat.reading import read_program
from sollol.sim import Cluster, ModelSpec, NodeSpec, free_port, sim_cluster

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".companions"
PYTHON = FOLDER / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
WHEELS = ("flockparser", "synaptic-llamas")
REQUIRES = ("requests", "numpy", "ollama", "redis", "chromadb", "PyPDF2", "python-docx", "jsonpatch", "httpx", "rich")
LIMIT_S = 300
TEXT = "The quiet node answers a question because the sky is blue and an observer sees the light."
WORDS = TEXT.split()
MODELS = (
    ModelSpec("mxbai-embed-large", "embed", dim=64),
    ModelSpec("qwen3:8b", size_bytes=5_000_000_000),
    ModelSpec("llama3.2", size_bytes=2_000_000_000, mean_words=120, words=tuple(f"{word} " for word in WORDS)),
)
NODES = [
    NodeSpec(models=MODELS, embed_items_per_s=items, decode_tokens_per_s=tokens, vectors="hashed")
    for items, tokens in ((400.0, 1600.0), (200.0, 800.0), (100.0, 400.0))
]
# What the wheels of flockparser 1.0.9 and synaptic-llamas 0.1.2 import and do not contain.
REPLACED: Mapping[str, Mapping[str, str]] = {
    "flockparser": {"parallel_embedder": "embed_batch_parallel = None  # imported, and never called\n"},
    "synaptic_llamas": {
        "sollol_load_balancer": (
            "from sollol.integration import SOLLOLLoadBalancer as Base\n"
            "class SOLLOLLoadBalancer(Base):\n"
            "    def get_node(self, strategy=None, payload=None):\n"
            "        return self.route_request(payload or {}).node\n"
        ),
        "output_validators": (
            "class OutputValidator:\n"
            "    @staticmethod\n"
            "    def validate_output(text, **checks):\n"
            "        return {'passed': bool(text), 'score': 1.0, 'issues': []}\n"
        ),
    },
}
COLLABORATE = """
import json, sys
from distributed_orchestrator import DistributedOrchestrator
from node_registry import NodeRegistry
registry = NodeRegistry()
for url in sys.argv[1:]:
    registry.add_node(url)
orchestrator = DistributedOrchestrator(registry)
result = orchestrator.run("Why is the sky blue?", model="llama3.2", collaborative=True, refinement_rounds=1, timeout=60)
phases = [name for name, _ in result["metrics"]["phase_timings"]]
pool = orchestrator.hybrid_router.ollama_pool.get_stats()
print("RESULT " + json.dumps([result["result"]["final_output"], phases, pool["successful_requests"]]))
"""


class Outcome(NamedTuple):
    """The result of a program's main job: what was checked, in words, or what went wrong."""

    program: str
    job: str
    good: bool
    words: str
    seconds: float
    requests: list[int]


def main() -> int:
    """Prepare the folder, run the programs, print the table; return 1 if a job failed."""
    versions = prepare()
    outcomes = [flockparser(), synaptic_llamas()]
    head = ("program", "main job", "result", "seconds", "answers by node", "names of SOLLOL", "replaced in the wheel")
    rows = [_row(outcome, versions[outcome.program]) for outcome in outcomes]
    for cells in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    return int(not all(outcome.good for outcome in outcomes))


def _row(outcome: Outcome, version: str) -> tuple[str, ...]:
    name = outcome.program.replace("-", "_")
    fates = [use.fate for use in read_program(FOLDER / "programs" / name)[0]]
    return (
        f"{outcome.program} {version}",
        outcome.job,
        f"{'ok' if outcome.good else 'FAILED'}: {outcome.words}",
        f"{outcome.seconds:.1f}",
        ", ".join(map(str, outcome.requests)),
        ", ".join(f"{fates.count(fate)} {fate}" for fate in sorted(set(fates))),
        ", ".join(REPLACED.get(name, {})) or "nothing",
    )


def prepare() -> dict[str, str]:
    """Make the environment, fetch the programs, and return their versions."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / "venv"], check=True)
    pip: list[str | Path] = [PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-e", ROOT, *REQUIRES], check=True)
    wheels, programs = FOLDER / "wheels", FOLDER / "programs"
    subprocess.run([*pip, "download", "--no-deps", "--only-binary", ":all:", "-d", wheels, *WHEELS], check=True)
    versions = {}
    shutil.rmtree(programs, ignore_errors=True)
    for name in WHEELS:
        module = name.replace("-", "_")
        wheel = max(wheels.glob(f"{module}-*.whl"), key=lambda path: path.stat().st_mtime)
        versions[name] = wheel.name.split("-")[1]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(programs / module)
        for missing, text in REPLACED.get(module, {}).items():
            path = programs / module / f"{missing}.py"
            if not path.exists():
                path.write_text(text)
    return versions


def flockparser() -> Outcome:
    """Give FlockParser a PDF, and ask it a question."""
    home = FOLDER / "programs" / "flockparser"
    pages = [" ".join(f"{word} {number}" for number in range(40) for word in WORDS[:8]) for _ in range(4)]
    (home / "document.pdf").write_bytes(pdf(pages))
    commands = "open_pdf document.pdf\nchat\nWhat does the node answer?\nexit\nlb_stats\nexit\n"

    def check(output: str) -> tuple[bool, str]:
        chunks = [json.loads(path.read_text()) for path in (home / "knowledge_base").glob("*_chunk_*.json")]
        embedded = sum(len(chunk["embedding"]) == MODELS[0].dim for chunk in chunks)
        answer = output.partition("AI: ")[2].partition("\n")[0].strip()
        words = f"{len(chunks)} chunks, {embedded} embedded, an answer of {len(answer.split())} words"
        return bool(chunks) and embedded == len(chunks) and bool(answer), words

    more = {"FLOCKPARSER_API": "false", "FLOCKPARSER_DASHBOARD": "false"}
    return run(
        "flockparser", "a PDF in, its chunks embedded, a question answered", ["flockparsecli.py"], check, commands, more
    )


def synaptic_llamas() -> Outcome:
    """Let the agents of SynapticLlamas work on a question together."""
    (FOLDER / "programs" / "synaptic_llamas" / "collaborate.py").write_text(COLLABORATE)

    def check(output: str) -> tuple[bool, str]:
        line = next((line for line in output.splitlines() if line.startswith("RESULT ")), "RESULT null")
        found = json.loads(line.removeprefix("RESULT "))
        if found is None:
            return False, "no result"
        text, phases, calls = found
        words = f"{len(phases)} phases, a text of {len(text.split())} words, {calls} calls of the pool"
        return bool(text) and len(phases) == 4 and calls >= 3, words

    return run("synaptic-llamas", "the collaborative run of its agents", ["collaborate.py"], check, "", {}, urls=True)


def run(
    program: str,
    job: str,
    command: list[str],
    check: Callable[[str], tuple[bool, str]],
    commands: str,
    more: Mapping[str, str],
    urls: bool = False,
) -> Outcome:
    """Run a program over three simulated nodes and check what it has done."""
    home = FOLDER / "programs" / program.replace("-", "_")
    with sim_cluster(NODES) as cluster:
        environment = {
            **os.environ,
            **more,
            "HOME": str(home),
            "SOLLOL_NODES": ",".join(cluster.urls),
            "SOLLOL_DISCOVERY_SUBNETS": "127.0.0.1/32",
            "SOLLOL_DISCOVERY_PORTS": str(free_port()),
        }
        began = time.monotonic()
        try:
            done = subprocess.run(
                [PYTHON, *command, *(cluster.urls if urls else [])],
                cwd=home,
                env=environment,
                input=commands,
                text=True,
                capture_output=True,
                timeout=LIMIT_S,
            )
            output = done.stdout + done.stderr
            good, words = check(output) if done.returncode == 0 else (False, f"it ended with {done.returncode}")
        except subprocess.TimeoutExpired:
            output, good, words = "", False, f"it did not end in {LIMIT_S} s"
        seconds = time.monotonic() - began
        (home / "output.txt").write_text(output)
        return Outcome(program, job, good, words, seconds, answered(cluster))


def answered(cluster: Cluster) -> list[int]:
    """Return the inference requests that each node has answered."""
    inference = ("POST /api/chat", "POST /api/generate", "POST /api/embed", "POST /api/embeddings")
    return [sum(node.counters.requests.get(route, 0) for route in inference) for node in cluster.nodes]


def pdf(pages: list[str]) -> bytes:
    """Return a PDF with these texts, one a page."""
    objects = [b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    tree = 2 * len(pages) + 2
    for text in pages:
        lines = " ".join(f"({text[start : start + 90]}) Tj T*" for start in range(0, len(text), 90))
        body = f"BT /F1 8 Tf 40 800 Td 9 TL {lines} ET"
        objects.append(f"<< /Length {len(body)} >>\nstream\n{body}\nendstream".encode())
        contents = len(objects)
        objects.append(
            f"<< /Type /Page /Parent {tree} 0 R /MediaBox [0 0 612 842] /Contents {contents} 0 R "
            "/Resources << /Font << /F1 1 0 R >> >> >>".encode()
        )
    kids = " ".join(f"{number} 0 R" for number in range(3, tree, 2))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(f"<< /Type /Catalog /Pages {tree} 0 R >>".encode())
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    tail = b"trailer << /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(objects), len(out))
    return out + head + table + tail


if __name__ == "__main__":
    sys.exit(main())
