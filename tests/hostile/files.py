"""Damage to index files, and pages of HTML of hostile pieces: what is read is right or told, and nothing is slow."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sollol.errors import SollolError
from sollol.index import format as index_format
from sollol.index.documents import Passage
from sollol.index.html_text import visible_text
from tests.cli.test_hostile_files import UNITS
from tests.index.test_index import PASSAGES, SUFFIXES, build, damaged

LONGEST_S = 20.0  # for a page of at most PAGE characters, on a slow machine
PAGE = 1_000_000


def content_of(path: Path) -> list[Any]:
    blocks = list(index_format.blocks(path))
    vectors = b"".join(block.vectors.tobytes() for block in blocks)
    return [index_format.about(path), [passage for block in blocks for passage in block.passages], vectors]


def run(seconds: float, seed: int) -> bool:
    """Damage and read for so long; print the counts, and return whether all held."""
    rng, counts = random.Random(seed), Counter[str]()
    slowest_s = 0.0
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[Path, tuple[bytes, list[Any]]] = {}
        for suffix in SUFFIXES:
            path = Path(folder, f"x{suffix}")
            build(path, PASSAGES + [Passage(f"text {i}", "d.txt", "", 0, i) for i in range(50)])
            whole[path] = path.read_bytes(), content_of(path)
        while time.monotonic() < until:
            for path, (data, good) in whole.items():
                path.write_bytes(damaged(data, rng))
                try:
                    counts[f"{path.suffix} {'unharmed' if content_of(path) == good else 'read wrongly'}"] += 1
                except SollolError:
                    counts[f"{path.suffix} told"] += 1
            page = "".join(rng.choice(UNITS) * rng.choice((1, 3, 20_000)) for _ in range(20))[:PAGE]
            began = time.monotonic()
            visible_text(page)
            slowest_s = max(slowest_s, time.monotonic() - began)
            counts["pages"] += 1
    for name, count in sorted(counts.items()):
        print(f"{name:<24} {count}")
    print(f"{'slowest page':<24} {slowest_s:.2f} s")
    return slowest_s < LONGEST_S and not any("wrongly" in name for name in counts)
