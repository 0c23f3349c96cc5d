"""Compare a real Ollama node, a simulated one, and the gateway before each of them, over a table of requests.

    python -m tests.real --ollama PATH --chat MODEL --embed MODEL [--models DIR] [--only TEXT]

`PATH` is a built `ollama`, which is started on a free port of 127.0.0.1 with the models in `DIR` (as OLLAMA_MODELS);
or `--node URL` is one that runs. Exits 1 if an answer differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from sollol.sim import ModelSpec, sim_cluster
from sollol.sim.serve import free_port
from tests.gateway.stage import gateway_over, talker
from tests.real.compare import Seen, ask
from tests.real.table import CASES, Case

START_S = 60.0


@contextlib.contextmanager
def node(ollama: Path, models: str | None) -> Iterator[str]:
    """A real node with a home of its own; its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        set_here = {"HOME": home, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NOPRUNE": "1"}
        set_here |= {"OLLAMA_MODELS": models} if models else {}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([str(ollama), "serve"], env={**os.environ, **set_here}, **quiet)  # type: ignore[call-overload]
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait(START_S)


def _wait_for(url: str) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            urlopen(f"{url}/api/version", timeout=5).close()
            return
        except (URLError, OSError):
            if time.monotonic() > end:
                raise SystemExit(f"{url} does not answer after {START_S:g} s") from None
            time.sleep(0.1)


def simulated(chat: str, embed: str) -> list[ModelSpec]:
    """Models by the names that the real node has."""
    return [ModelSpec(chat, size_bytes=1_000_000), ModelSpec(embed, "embed", size_bytes=1_000_000)]


def compare(url: str, chat: str, embed: str, only: str) -> list[str]:
    """Return one line for each answer that is not the real node's."""
    found = []
    models = tuple(simulated(chat, embed))
    spec = talker(1, 5000.0, models=models, loaded=(chat, embed))
    with sim_cluster([spec]) as sim, gateway_over([url]) as real_gateway, gateway_over(sim.urls) as sim_gateway:
        others = {
            "gateway before it": real_gateway.url,
            "simulated node": sim.urls[0],
            "gateway before that": sim_gateway.url,
        }
        for case in CASES:
            if only in case.name:
                want = ask(url, case, chat, embed)
                for name, other in others.items():
                    got = ask(other, case, chat, embed)
                    if got != want:
                        found.append(f"{case.name}\n    node: {_shown(want)}\n    {name}: {_shown(got)}")
    return found


def _shown(seen: Seen) -> str:
    return " · ".join(str(part)[:160] for part in seen if part)


def count(only: str) -> int:
    """Return how many cases are compared."""
    cases: list[Case] = [case for case in CASES if only in case.name]
    return len(cases)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.real", description=__doc__.split("\n")[0] if __doc__ else "")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--ollama", type=Path, help="a built ollama")
    where.add_argument("--node", help="the URL of a node that runs")
    parser.add_argument("--models", help="OLLAMA_MODELS of the node that is started")
    parser.add_argument("--chat", required=True, help="a model that chats, such as smollm:135m")
    parser.add_argument("--embed", required=True, help="a model of embeddings, such as all-minilm")
    parser.add_argument("--only", default="", help="the cases with this text in their name")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = given.node or stack.enter_context(node(given.ollama, given.models))
        found = compare(url, given.chat, given.embed, given.only)
    print("\n".join(found))
    print(f"{len(found)} answers of {3 * count(given.only)} differ from the node's")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
