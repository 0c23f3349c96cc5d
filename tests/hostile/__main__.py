"""Run the soak, measure strangers, or damage files, and print what was seen; 1 where something did not hold.

`python -m tests.hostile --seconds 3600 --seed 1`, `python -m tests.hostile strangers --seconds 10 [KIND ...]`,
`python -m tests.hostile files --seconds 60`.
"""

from __future__ import annotations

import argparse
import sys

from tests.hostile import files, strangers
from tests.hostile.soak import soak


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    asked.add_argument("what", nargs="?", choices=("soak", "strangers", "files"), default="soak")
    asked.add_argument("kinds", nargs="*", help="of strangers; all by default")
    asked.add_argument("--seconds", type=float, default=60.0)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--clients", type=int, default=6)
    given = asked.parse_intermixed_args()
    if given.what == "strangers":
        return 0 if strangers.run(given.seconds, given.kinds) else 1
    if given.what == "files":
        return 0 if files.run(given.seconds, given.seed) else 1
    found = soak(given.seconds, given.seed, given.clients)
    for name, value in found._asdict().items():
        print(f"{name:<12} {value}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
