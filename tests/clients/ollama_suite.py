"""The official `ollama` Python client's own tests, once at the server they start and once with our gateway between.

    python -m tests.clients.ollama_suite [FOLDER]

FOLDER: the unpacked source of the client, from PyPI or a checkout; without it the source of the installed version is
brought from PyPI. Nothing of it is kept here.

The suite tells a pytest-httpserver which request must arrive, down to the whole JSON body, and what to answer. So the
server becomes a node: `sollol serve` is started with it as its only one, the tests' clients get the gateway's address
(`through_gateway.py`), and what arrives must still be what the client wrote. Tests that talk to no server run as well,
so that both runs have the same list. Exit code 1 if a test passes directly but not through the gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def source_of_client(into: Path) -> Path:
    """The source package of the installed version, from PyPI."""
    wanted = f"ollama=={version('ollama')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--no-binary", "ollama", "--dest", str(into), wanted], check=True)
    with tarfile.open(next(into.glob("ollama-*.tar.gz"))) as archive:
        archive.extractall(into, filter="data")
    return next(path for path in into.glob("ollama-*") if path.is_dir())


def run_suite(folder: Path, through: bool) -> dict[str, dict[str, str]]:
    """Each test: how it ended, why if it did not pass, and whether it asked the server."""
    with tempfile.TemporaryDirectory() as home:
        told = Path(home) / "told.json"
        paths = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "src")])
        env = {**os.environ, "PYTHONPATH": paths, "SUITE_RESULTS": str(told), "SUITE_GATEWAY": str(int(through))}
        for name in ("OLLAMA_HOST", "OLLAMA_API_KEY", "SOLLOL_NODES", "SOLLOL_CONFIG", "SOLLOL_API_KEYS"):
            env.pop(name, None)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.clients.through_gateway",
            "-p",
            "no:cacheprovider",
        ]
        ran = subprocess.run([*command, "tests"], cwd=folder, env=env, capture_output=True, text=True)
        if not told.exists():
            raise SystemExit(f"pytest did not run:\n{ran.stdout}{ran.stderr}")
        found: dict[str, dict[str, str]] = json.loads(told.read_text())
    return found


def compare(direct: dict[str, dict[str, str]], through: dict[str, dict[str, str]]) -> dict[str, Any]:
    def passed(results: dict[str, dict[str, str]]) -> list[str]:
        return [test for test, result in results.items() if result["outcome"] == "passed"]

    lost = {test: through.get(test, {"why": "did not run"}) for test in passed(direct) if test not in passed(through)}
    return {
        "tests": len(direct),
        "asking a server": sum(bool(result["asked"]) for result in direct.values()),
        "passed directly": len(passed(direct)),
        "passed through the gateway": len(passed(through)),
        "not directly": {test: r["why"] for test, r in direct.items() if r["outcome"] not in ("passed", "skipped")},
        "only directly": {test: result["why"] for test, result in lost.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="unpacked source of the client; from PyPI if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = (given.folder or source_of_client(Path(home))).resolve()
        if not (folder / "tests" / "test_client.py").exists():
            parser.error(f"{folder} has no tests/test_client.py; expected the source of the ollama Python client")
        found = compare(run_suite(folder, through=False), run_suite(folder, through=True))
    print(json.dumps(found, indent=1))
    return int(bool(found["only directly"]) or not found["passed directly"])


if __name__ == "__main__":
    sys.exit(main())
