"""The gateway's own routes answer as their OpenAPI says, whatever they are asked: schemathesis tries."""

from __future__ import annotations

import subprocess
import sys

from sollol.sim.serve import sim_cluster
from tests.gateway.stage import gateway_over


def test_the_published_schema_holds() -> None:
    with sim_cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{stage.url}/sollol/openapi.json"]
        command += ["--max-examples", "25", "--generation-deterministic", "--no-color", "--phases", "examples,fuzzing"]
        command += ["--exclude-checks", "unsupported_method,positive_data_acceptance"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
