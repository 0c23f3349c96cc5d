"""`python -m sollol.compat FILE...`: which names of SOLLOL a program uses, and what happens to each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sollol.compat.names import GONE, HERE, LATER
from sollol.compat.reading import OURS, UNKNOWN, read_program
from sollol.printable import printable

WORDS = {HERE: "works", OURS: "works", LATER: "later", GONE: "gone", UNKNOWN: "unknown"}


def main() -> int:
    """Print a line for each use; return the exit code.

    It is 1 if a name is gone or unknown, 2 for a file that cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sollol.compat",
        description="Read Python files (nothing is run) and show the names of SOLLOL that they use: works, later "
        "(can be imported, and raises NotSupported where the absent part is used), gone, unknown.",
        epilog="exit codes: 0 nothing is gone or unknown; 1 something is; 2 a file cannot be read",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a Python file, or a folder of them")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    given = parser.parse_args()
    read = [read_program(path) for path in given.files]
    uses = [use for found, _ in read for use in found]
    errors = [error for _, found in read for error in found]
    for error in errors:
        print(printable(str(error)), file=sys.stderr)
    if given.json:
        print(json.dumps([{**use._asdict(), "path": str(use.path), "fate": WORDS[use.fate]} for use in uses], indent=2))
    else:
        for use in uses:
            print(printable(f"{use.path}:{use.line}: {WORDS[use.fate]:<7} {use.name}: {use.advice}"))
        counts = {word: sum(WORDS[use.fate] == word for use in uses) for word in dict.fromkeys(WORDS.values())}
        print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 2 if errors else int(any(use.fate in (GONE, UNKNOWN) for use in uses))


if __name__ == "__main__":
    sys.exit(main())
