"""Run the soak and print what was seen; the exit status is 1 where something did not hold."""

from __future__ import annotations

import argparse
import sys

from tests.hostile.soak import soak


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    asked.add_argument("--seconds", type=float, default=60.0)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--clients", type=int, default=6)
    given = asked.parse_args()
    found = soak(given.seconds, given.seed, given.clients)
    for name, value in found._asdict().items():
        print(f"{name:<12} {value}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
