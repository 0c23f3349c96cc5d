"""`python -m sollol.sim`: the command `sollol sim`, or with `--child JOB` the process of `spawn`."""

from __future__ import annotations

import json
import sys


def _child(text: str) -> None:
    from sollol.sim.faults import parse_events
    from sollol.sim.models import NodeSpec
    from sollol.sim.process import ServeJob, serve_nodes

    job = json.loads(text)
    spec = NodeSpec.from_json(job["spec"])
    serve_nodes(ServeJob([spec], spec.host, job["port"], parse_events(job["schedule"]), True, job["parent"]))


def main() -> None:
    """Run the command in `sys.argv`."""
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2])
        return
    from sollol.cli import main as run

    sys.argv[1:1] = ["sim"]
    run()


if __name__ == "__main__":
    main()
