"""Look whether the owner of a machine uses it: a full-screen program runs, or a call. Only with the owner's option.

Nothing names the program, and nothing is recorded. The looks need the owner's session, so the agent runs there. A look
returns True or False, and raises where it cannot see. A call is a program that records sound; a meter of the volume,
which only listens to a monitor, is none.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from sollol.agent.drivers import DriverProblem, Run, run_tool
from sollol.agent.report import CALL, FULL_SCREEN, OwnerUse

Look = Callable[[], bool]
Looks = Mapping[OwnerUse, Sequence[Look]]
RUN_S: Final = 0.8  # the longest time of a tool: together they must not keep a report from being sent in time
NO_LOOKS: Final[Looks] = {}
FAILURES: Final = (DriverProblem, OSError, ValueError, TypeError, KeyError, AttributeError)
WINDOWS_BUSY: Final = (2, 3, 4)  # QUNS_BUSY (full screen), QUNS_RUNNING_D3D_FULL_SCREEN, QUNS_PRESENTATION_MODE
CONSENT: Final = r"Software\Microsoft\Windows\CurrentVersion\CapabilityAccessManager\ConsentStore\microphone"
MAC_SCRIPT: Final = (
    'tell application "System Events" to get value of attribute "AXFullScreen" of window 1 of '
    "(first process whose frontmost is true)"
)


def _quick(command: Sequence[str]) -> str:
    return run_tool(command, RUN_S)


def owner_looks(system: str = sys.platform, run: Run = _quick) -> Looks:
    """Return the looks of a system, by what they look for."""
    if system == "win32":
        return {FULL_SCREEN: (windows_full_screen,), CALL: (windows_call,)}
    if system == "darwin":
        return {FULL_SCREEN: (partial(mac_full_screen, run),), CALL: (partial(mac_call, run),)}
    screens = (x11_full_screen, sway_full_screen, hyprland_full_screen)
    return {
        FULL_SCREEN: tuple(partial(look, run) for look in screens),
        CALL: (partial(pulse_call, run), partial(pipewire_call, run)),
    }


def read_owner(looks: Looks) -> tuple[tuple[OwnerUse, ...], tuple[str, ...]]:
    """Return what the owner does, and what no look could see, in words."""
    uses: list[OwnerUse] = []
    problems = []
    for use, each in looks.items():
        seen: list[bool] = []
        whys = []
        for look in each:
            try:
                seen.append(look())
            except FileNotFoundError as error:
                whys.append(f"there is no {error}")
            except FAILURES as error:
                whys.append(str(error) or type(error).__name__)
        if any(seen):
            uses.append(use)
        elif not seen:
            problems.append(f"whether a {use} runs cannot be seen: {'; '.join(whys)}"[:300])
    return tuple(uses), tuple(problems)


# --- Linux ---


def x11_full_screen(run: Run) -> bool:
    """Read the state of the active window from the X server."""
    found = re.search(r"window id # (0x[0-9a-f]+)", run(("xprop", "-root", "_NET_ACTIVE_WINDOW")))
    if found is None or int(found[1], 16) == 0:
        return False
    try:
        return "_NET_WM_STATE_FULLSCREEN" in run(("xprop", "-id", found[1], "_NET_WM_STATE"))
    except DriverProblem:  # the window was closed meanwhile
        return False


def sway_full_screen(run: Run) -> bool:
    """Read the windows that fill a screen from Sway."""

    def windows(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield tree
        for inner in (*tree.get("nodes", ()), *tree.get("floating_nodes", ())):
            yield from windows(inner)

    tree = json.loads(run(("swaymsg", "-t", "get_tree", "-r")))
    return any(row.get("fullscreen_mode") and row.get("visible") and row.get("pid") for row in windows(tree))


def hyprland_full_screen(run: Run) -> bool:
    """Read the state of the active window from Hyprland; 1 is only maximized."""
    state = json.loads(run(("hyprctl", "-j", "activewindow"))).get("fullscreen", 0)
    return int(state) >= 2


def pulse_call(run: Run) -> bool:
    """Read the programs that record from PulseAudio, or from PipeWire in its place."""
    rows = json.loads(run(("pactl", "--format=json", "list", "source-outputs")))
    sources = json.loads(run(("pactl", "--format=json", "list", "short", "sources"))) if rows else []
    monitors = {source["index"] for source in sources if source["name"].endswith(".monitor")}  # of loudspeakers
    return any(
        not row["corked"] and row["source"] not in monitors and row["properties"].get("stream.monitor") != "true"
        for row in rows
    )


def pipewire_call(run: Run) -> bool:
    """Read the streams that record from PipeWire."""
    nodes = [row.get("info") or {} for row in json.loads(run(("pw-dump",)))]
    return any(
        node.get("state") == "running"
        and (node.get("props") or {}).get("media.class") == "Stream/Input/Audio"
        and str(node["props"].get("stream.monitor")).lower() != "true"
        for node in nodes
    )


# --- macOS ---


def mac_full_screen(run: Run) -> bool:
    """Read the state of the first window; the owner must have permitted it under "Accessibility"."""
    return run(("osascript", "-e", MAC_SCRIPT)).strip() == "true"


def mac_call(run: Run) -> bool:
    """Look for recorded sound in what keeps the machine awake."""
    return re.search(r"Resources:.*\baudio-in\b", run(("pmset", "-g", "assertions"))) is not None


# --- Windows ---


def windows_full_screen(windll: Any = None) -> bool:
    """Read from Windows whether notifications would disturb."""
    state = ctypes.c_int(0)
    shell = (windll or getattr(ctypes, "windll")).shell32  # noqa: B009 - only on Windows
    code = shell.SHQueryUserNotificationState(ctypes.byref(state))
    if code != 0:
        raise DriverProblem(f"SHQueryUserNotificationState returned {code:#x}")
    return state.value in WINDOWS_BUSY


def windows_call(winreg: Any = None) -> bool:
    """Look in the registry for a program whose use of the microphone has not ended."""
    registry = winreg or importlib.import_module("winreg")

    def programs(path: str) -> Iterator[str]:
        with registry.OpenKey(registry.HKEY_CURRENT_USER, path) as key:
            names = [registry.EnumKey(key, place) for place in range(registry.QueryInfoKey(key)[0])]
        for name in names:
            yield from programs(rf"{path}\{name}") if name == "NonPackaged" else (rf"{path}\{name}",)

    def is_in_use(path: str) -> bool:
        with registry.OpenKey(registry.HKEY_CURRENT_USER, path) as key:
            try:
                return bool(registry.QueryValueEx(key, "LastUsedTimeStop")[0] == 0)
            except FileNotFoundError:  # it was never used
                return False

    return any(is_in_use(path) for path in programs(CONSENT))
