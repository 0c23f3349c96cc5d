"""Write docs/migration.md: every public name of SOLLOL 0.9.66 and what happens to it, from `sollol.compat.names`.

python tools/migration.py
"""

from __future__ import annotations

from pathlib import Path

from sollol.compat.names import GONE, HERE, LATER, ROOT, ROWS, FormerRow, find

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
WORDS = {HERE: "works", LATER: "later", GONE: "gone"}
HEAD = """# Coming from SOLLOL 0.9

The package `sollol` on PyPI (0.9.66) is an older project of this name. Programs that were written for it run here without a
change: `pip` keeps this version for a program that requires `sollol>=0.9.60`, and every public name of 0.9.66 either works, or
names its successor.

```
python -m sollol.compat your_program/    # reads it, runs nothing, and shows each name with its fate
```

- **works**: the name does here what it did, on the pools, policies and events of this version.
- **later**: it can be imported, lists what is really there, and sends ordinary models to the pool. Where the absent part
  itself is used, it raises `NotSupported`, with that reason.
- **gone**: importing it raises `FormerName` (a `NotSupported`, and an `ImportError`), with the reason and what to use.

FlockParser, SynapticLlamas, Hydra, NERVA and the launcher of LlamaForge run with this version as they were published.
`make companions`, in a checkout, fetches what the package index has of them (flockparser, synaptic-llamas) and runs
their main jobs over simulated nodes; `tests/compat/test_companions.py` uses the names as the others do.

Type checkers do not find the former modules; `sollol.compat.NAME` is the same module with its types.

## What is different

| in 0.9 | here |
|---|---|
| `OllamaPool()` searched the network | only `OllamaPool(discover_all_nodes=True)` and `auto_configure()` do; `SOLLOL_NODES` names nodes |
| a batch could lose items without a word | every item is answered or has its error; `on_error="raise"` is the default |
| keywords of Ray, Dask, caches and reporters | taken, without effect, with one warning; nothing of them is installed |
| `temperature=` and other options beside `options=` were ignored | they become options, with one warning |
| `routing_mode=`, `prefer_cpu=`, `min_success_rate=` | become `mode=`, with one warning |
| `pool.nodes` and `pool.stats` were plain lists and dicts | changes of `pool.nodes` change the pool; writes into `pool.stats["node_performance"]` can be read back, others raise `BadInput` |
| task types were `generation`, `embedding`, `classification`, `summarization`, `extraction` | they are `chat`, `code`, `embed`, `classify`, `summarise`, `extract`; the older words are taken as arguments |
| `SOLLOL_OBSERVER_SAMPLING=false` kept all events | it keeps none; `true`, or no setting, keeps all |
| answers were cached | they are not; `get_cache_stats()` reports that |
| errors were `RuntimeError` | `NoNodeAvailable` still is one; see [pools.md](pools.md#when-something-goes-wrong) |
| the gateway listened on all addresses, without keys | it listens on this machine only, or requires [keys](keys.md) |
| port 8000 or 11434 | `sollol serve` takes 11435 unless `--port` names another; `SOLLOL().start()` takes 11434 |

## Every name

Written by `python tools/migration.py` from `src/sollol/compat/names.py`, which imports and tests read, too.

"""


def page() -> str:
    """Return the page as Markdown."""
    modules = list(dict.fromkeys(row.module for row in ROWS))
    return HEAD + _root() + "".join(_section(module) for module in modules)


def _root() -> str:
    by_module: dict[str, list[str]] = {}
    for name, place in ROOT.items():
        by_module.setdefault(place.partition(".")[0], []).append(name)
    lines = []
    for module, names in by_module.items():
        fates = {WORDS[row.fate] for name in names if (row := find("", name)) is not None}
        lines.append(f"| {_code(names)} | {', '.join(sorted(fates))} | as in [`sollol.{module}`](#sollol{module}) |\n")
    return "### sollol\n\n| name | | |\n|---|---|---|\n" + "".join(lines) + "\n"


def _section(module: str) -> str:
    rows = [row for row in ROWS if row.module == module]
    table = "| name | | use | why |\n|---|---|---|---|\n" + "".join(map(_line, rows))
    return f"### sollol.{module}\n\n{table}\n"


def _line(row: FormerRow) -> str:
    return f"| {_code(row.names)} | {WORDS[row.fate]} | {row.ours} | {row.note} |\n"


def _code(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page().rstrip() + "\n")
