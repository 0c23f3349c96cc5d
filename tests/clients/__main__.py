"""Clients with an environment of their own, through the gateway and at a node: `python -m tests.clients`.

`make clients` installs them. Each is a script that asks one address and prints what it got as one JSON object, a value
for each thing that it tried; both addresses must give the same. What is not installed is a line that says so.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import gateway_over

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE_MODULES = ROOT / ".npm-clients"
HERE = Path(__file__).parent
LIMIT_S = 120
MODELS = (
    ModelSpec("llama3.2", size_bytes=2_000_000_000, tools=True),
    ModelSpec("endless", size_bytes=2_000_000_000, mean_words=math.inf),
    ModelSpec("nomic-embed-text", "embed", 274_000_000, context_length=2048),
)
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}


def clients() -> dict[str, list[str] | str]:
    """What runs each, or why it cannot run."""
    found: dict[str, list[str] | str] = {}
    for name in ("litellm", "llama_index"):
        script = [str(PYTHON), str(HERE / f"in_{name}.py")]
        found[name] = script if PYTHON.exists() else "not installed; `make clients`"
    node = shutil.which("node")
    script = [str(node), str(HERE / "in_node.cjs"), str(NODE_MODULES)]
    if node and (NODE_MODULES / "node_modules" / "ollama").exists():
        found["npm"] = script
    else:
        found["npm"] = "node or npm is not installed; `make clients` after it is"
    return found


def ask(command: list[str], url: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OLLAMA_HOST")}
    ran = subprocess.run([*command, url], env=env | QUIET, capture_output=True, text=True, timeout=LIMIT_S)
    if ran.returncode:
        raise RuntimeError(f"{command[1]} {url}: {ran.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return told


def main() -> int:
    differ = 0
    ran = 0
    specs = [NodeSpec(models=MODELS, seed=seed) for seed in (1, 2)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage:
        for name, command in clients().items():
            if isinstance(command, str):
                print(f"{name}: skipped: {command}")
                continue
            ran += 1
            direct, through = ask(command, nodes.urls[0]), ask(command, stage.url)
            for what in direct:
                same = direct[what] == through.get(what)
                differ += not same
                print(f"{name} {what}: {'the same' if same else 'DIFFERENT'}")
                if not same:
                    print(
                        f"  direct:  {json.dumps(direct[what])[:600]}\n  through: {json.dumps(through.get(what))[:600]}"
                    )
    print(f"{ran} clients ran, {differ} things differ")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
