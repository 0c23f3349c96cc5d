"""Draw docs/pictures/models.svg: the states of a model on a node, its placement, and its way to other nodes.

python -m tools.models_picture     writes the picture

The placement is a run of the simulation of `python -m bench placement`: what is in memory, minute by minute.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from bench.placement import GB, ROOMS, SIZES, Result, demand, least_connections, planned, world

from sollol.policies.placement_check import PaperNode, arrivals

FILE: Final = Path(__file__).parents[1] / "docs" / "pictures" / "models.svg"
WIDTH, MARGIN = 960, 20
SEED, PARTS, PART_S, STEP_S = 1, 2, 2_400.0, 60.0
LANE, GAP, LABEL = 30, 6, 46
COLORS: Final = (
    "#9ecae1", "#c6dbef", "#2f7fb8", "#6baed6", "#2a8a5f", "#74c476", "#c2661b", "#fdae6b", "#7a6bc4", "#b0489a",
    "#a37a00", "#c04f4f",
)  # fmt: skip
STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #1c2226 } .small { font-size: 11px; fill: #56616a }
h, .head { font-weight: 600; font-size: 15px } .box { fill: #eef2f4; stroke: #8a959d } .good { fill: #dff2e6 }
.warn { fill: #fdf0d5 } .bad { fill: #fbe3e1 } .way { fill: none; stroke: #56616a; marker-end: url(#tip) }
.thin { stroke: #c3cbd0 } .shift { stroke: #56616a; stroke-dasharray: 3 3 }"""


class Box(NamedTuple):
    """A state: its place, its words, and the source by which it is known."""

    x: int
    y: int
    name: str
    source: str
    look: str = ""
    width: int = 124


STATES: Final = {
    box.name: box
    for box in (
        Box(20, 90, "on disk", "/api/tags", width=90),
        Box(220, 90, "loading", "our loads", width=100),
        Box(430, 34, "gpu", "/api/ps", "good"),
        Box(430, 82, "part", "/api/ps", "warn"),
        Box(430, 130, "cpu", "/api/ps", "warn"),
        Box(430, 178, "loaded", "/api/ps"),
        Box(660, 34, "slow", "timings", "warn"),
        Box(660, 115, "stopping", "/api/ps", width=100),
        Box(820, 115, "stuck", "/api/ps, our loads", "bad", 120),
        Box(220, 196, "kept away", "our loads", "bad", width=100),
    )
}
WAYS: Final = (  # a path, and the place and words of its label
    ("M110 110 H218", 163, 104, "a request, a plan"),
    ("M320 100 L428 56", 360, 68, "it fits"),
    ("M320 106 L428 102", 384, 99, "in part"),
    ("M320 114 L428 148", 388, 126, "no GPU"),
    ("M320 120 L428 194", 388, 202, "not reported"),
    ("M554 54 H658", 606, 48, "4 times slower"),
    ("M554 104 L658 130", 622, 106, "unused, unloaded"),
    ("M760 135 H818", 789, 129, "1 min"),
    ("M270 130 V194", 318, 184, "4 times as late"),
    ("M220 216 H66 V132", 142, 210, "after 1 min to 1 h"),
    ("M722 34 V18 H270 V88", 560, 13, "repair by the controller: unload it when idle, load it again"),
    ("M710 155 V250 H40 V132", 480, 245, "out of memory"),
)


def text(x: float, y: float, words: str, look: str = "", anchor: str = "start") -> str:
    """Return a text of the picture."""
    named = f' class="{look}"' if look else ""
    return f'<text x="{x:g}" y="{y:g}"{named} text-anchor="{anchor}">{escape(words)}</text>'


def states(top: int) -> list[str]:
    """Draw the states of a model on a node."""
    made = [
        f'<g transform="translate(0 {top})">',
        text(MARGIN, 0, "1  States of a model on a node, and their sources", "head"),
    ]
    for box in STATES.values():
        middle = box.x + box.width / 2
        made.append(f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="40" rx="6" class="box {box.look}"/>')
        made += [
            text(middle, box.y + 17, box.name, "", "middle"),
            text(middle, box.y + 32, box.source, "small", "middle"),
        ]
    for path, x, y, words in WAYS:
        made += [f'<path d="{path}" class="way"/>', text(x, y, words, "small", "middle")]
    return [*made, "</g>"]


class Memory:
    """The models in memory at the end of each minute, as areas by model."""

    def __init__(self) -> None:
        self.areas: dict[int, list[tuple[float, float, float]]] = defaultdict(list)  # model: column, top, height
        self._next_s = 0.0

    def look(self, at_s: float, nodes: Sequence[PaperNode]) -> None:
        """Take in the memory of all nodes, once a minute."""
        while at_s >= self._next_s:
            column = self._next_s / STEP_S
            for lane, node in enumerate(nodes):
                top = lane * (LANE + GAP) + float(LANE)
                for model in sorted(node.sizes, key=lambda name: int(name[1:])):
                    height = node.sizes[model] / node.room.room * LANE
                    top -= height
                    self.areas[int(model[1:])].append((column, top, height))
            self._next_s += STEP_S

    def draw(self, left: float, step: float) -> list[str]:
        """Return a path for each model; equal areas side by side are one."""
        made = []
        for model, areas in sorted(self.areas.items()):
            runs: list[tuple[float, float, float, int]] = []
            for column, top, height in sorted(areas, key=lambda area: (area[1], area[2], area[0])):
                last = runs[-1] if runs else None
                if last is not None and last[1:3] == (top, height) and last[0] + last[3] == column:
                    runs[-1] = (*last[:3], last[3] + 1)
                else:
                    runs.append((column, top, height, 1))
            path = "".join(f"M{left + c * step:g} {t:.1f}h{n * step:g}v{h:.1f}h-{n * step:g}z" for c, t, h, n in runs)
            made.append(f'<path d="{path}" fill="{COLORS[model]}"/>')
        return made


def placement(top: int) -> list[str]:
    """Draw the memory of the simulated nodes, with least connections and with the plan."""
    rng = random.Random(SEED)
    known = [demand(rng) for _ in range(PARTS)]
    parts = [
        [(at_s + PART_S * number, need) for at_s, need in arrivals(needs, PART_S, rng)]
        for number, needs in enumerate(known)
    ]
    nodes = world()
    made = [
        f'<g transform="translate(0 {top})">',
        text(MARGIN, 6, "2  Placement, simulated: what is in memory", "head"),
        text(MARGIN, 26, f"{len(SIZES)} models on {len(ROOMS)} nodes; the demand turns over in the middle", "small"),
    ]
    runs: tuple[tuple[str, Callable[[Memory], Result]], ...] = (
        ("least connections", lambda memory: least_connections(nodes, parts, memory.look)),
        ("planned by demand", lambda memory: planned(nodes, parts, None, memory.look)),
    )
    width = (WIDTH - 2 * MARGIN - 2 * LABEL) / 2
    height = len(ROOMS) * (LANE + GAP) - GAP
    step = width / (PARTS * PART_S / STEP_S)
    for number, (name, run) in enumerate(runs):
        memory, left = Memory(), MARGIN + LABEL + number * (width + LABEL)
        result = run(memory)
        loads = result.loads_per_h * 3_600 / PART_S
        made.append(text(left, 48, f"{name}: {result.mean_s:.1f} s a request, {loads:.0f} loads an hour"))
        made.append('<g transform="translate(0 58)">')
        for lane, (room, _) in enumerate(ROOMS):
            y = lane * (LANE + GAP)
            made.append(f'<rect x="{left:g}" y="{y}" width="{width:g}" height="{LANE}" class="box"/>')
            if number == 0:
                made.append(text(left - 6, y + 20, f"{room} GB", "small", "end"))
        made += memory.draw(left, step)
        made.append(f'<path d="M{left + width / 2:g} -4V{height + 4}" class="shift"/></g>')
    for model, size in enumerate(SIZES):
        x = MARGIN + LABEL + model * 70
        made.append(f'<rect x="{x}" y="{height + 72}" width="12" height="12" fill="{COLORS[model]}"/>')
        made.append(text(x + 17, height + 83, f"{size * GB // 10**9} GB", "small"))
    return [*made, "</g>"]


def distribution(top: int) -> list[str]:
    """Draw the way of a model from one node to the others."""
    made = [f'<g transform="translate(0 {top})">', text(MARGIN, 6, "3  One download, then from node to node", "head")]
    boxes = [
        Box(20, 80, "public registry", "no node has it: once", width=150),
        Box(20, 146, "node A", "it has the model", "good", 150),
        Box(400, 80, "registry of SOLLOL", "blobs within max_gb", width=160),
        *(
            Box(790, 24 + 48 * number, f"node {name}", "checks the digest", width=150)
            for number, name in enumerate("BCDE")
        ),
    ]
    for box in boxes:
        middle = box.x + box.width / 2
        made.append(f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="40" rx="6" class="box {box.look}"/>')
        made += [
            text(middle, box.y + 17, box.name, "", "middle"),
            text(middle, box.y + 32, box.source, "small", "middle"),
        ]
    made += [
        '<path d="M170 100 H398" class="way"/>', text(284, 94, "fetched while others read it", "small", "middle"),
        '<path d="M170 160 L398 112" class="way"/>', text(300, 150, "pushed in parts", "small", "middle"),
    ]  # fmt: skip
    for number in range(4):
        y = 44 + 48 * number
        made.append(f'<path d="M560 100 L788 {y}" class="way"/>')
    made.append(text(630, 40, "pulled in parts; a cut one goes on where it was", "small", "middle"))
    made.append('<path d="M170 178 C420 260 640 240 788 194" class="way"/>')
    made.append(
        text(
            470,
            252,
            "with an agent beside A: the parts come from its disk, and from each node that has them by then",
            "small",
            "middle",
        )
    )
    return [*made, "</g>"]


def picture() -> str:
    """Return the picture."""
    title = "Models over all nodes: states, placement and distribution"
    words = (
        "States of a model on a node with their sources; the memory of six simulated nodes over time, with least "
        "connections and with planned placement; the way of a model from one node to four others."
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 910" role="img" aria-labelledby="t d">',
            f'<title id="t">{title}</title><desc id="d">{words}</desc><style>{STYLE}</style>',
            f'<defs>{tip}<path d="M0 0L8 4L0 8z" fill="#56616a"/></marker></defs>',
            f'<rect width="{WIDTH}" height="910" fill="#fff"/>',
            *states(30),
            *placement(316),
            *distribution(650),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    FILE.write_text(picture())
