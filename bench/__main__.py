"""`python -m bench [--json FILE] [NAME ...]`: every row next to its reference, measured in the same run."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from bench import (
    batches,
    calls,
    decisions,
    discovery,
    distribution,
    failover,
    fairness,
    fleet,
    gateway,
    hedging,
    page,
    placement,
    routing,
    streams,
)
from bench.proxies import compiled
from bench.rows import failed, show

BENCHES: dict[str, Any] = {
    "calls": calls,
    "batches": batches,
    "discovery": discovery,
    "distribution": distribution,
    "fleet": fleet,
    "routing": routing,
    "failover": failover,
    "hedging": hedging,
    "fairness": fairness,
    "streams": streams,
    "decisions": decisions,
    "gateway": gateway,
    "page": page,
    "placement": placement,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(BENCHES))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; expected one of {', '.join(BENCHES)}")
    print("compiled" if compiled() else "plain Python", file=sys.stderr)
    rows: list[Any] = []
    for name in given.names or BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += BENCHES[name].run()
        except Exception as error:  # the rows of the others are kept
            traceback.print_exc()
            rows.append(failed(name, f"{type(error).__name__}: {error}"))
    show(rows)
    print(json.dumps(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
