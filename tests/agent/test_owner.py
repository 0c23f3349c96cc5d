"""Whether the owner uses the machine, on three systems: fake tools, a fake registry, and where nothing can be seen."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sollol.agent import owner
from sollol.agent.drivers import DriverProblem
from sollol.agent.owner import CONSENT, owner_looks, read_owner
from sollol.agent.report import CALL, FULL_SCREEN

ACTIVE = "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x3c00007\n"
FULL = "_NET_WM_STATE(ATOM) = _NET_WM_STATE_FULLSCREEN, _NET_WM_STATE_FOCUSED\n"
QUIET = "_NET_WM_STATE(ATOM) = _NET_WM_STATE_MAXIMIZED_VERT, _NET_WM_STATE_MAXIMIZED_HORZ\n"
AUDIO_IN = """\
   pid 317(coreaudiod): [0x0000074200018b30] 00:01:12 PreventUserIdleSystemSleep named: "com.apple.audio.context"
\tCreated for PID: 8122.
\tResources: audio-in BuiltInMicrophoneDevice
"""


def tools(answers: Mapping[str, str]) -> Callable[[Sequence[str]], str]:
    """Programs that print this, by the beginning of the command; the others are not installed."""

    def run(command: Sequence[str]) -> str:
        words = " ".join(command)
        for begin, answer in answers.items():
            if words.startswith(begin):
                return answer
        raise FileNotFoundError(command[0])

    return run


def recording(**more: Any) -> str:
    return json.dumps([{"index": 7, "corked": False, "source": 1, "properties": {"media.name": "Meet"}, **more}])


def pipewire(**more: Any) -> str:
    stream = {"state": "running", "props": {"media.class": "Stream/Input/Audio"}, **more}
    return json.dumps([{"id": 0, "type": "PipeWire:Interface:Core", "info": None}, {"id": 40, "info": stream}])


def sway(mode: int) -> str:
    window = {"pid": 4, "visible": True, "fullscreen_mode": mode, "nodes": []}
    return json.dumps({"fullscreen_mode": 1, "nodes": [{"nodes": [], "floating_nodes": [window]}]})


X11 = {"xprop -root": ACTIVE, "xprop -id 0x3c00007 _NET_WM_STATE": QUIET}
OUTPUTS, SOURCES = "pactl --format=json list source-outputs", "pactl --format=json list short sources"
SILENT = {OUTPUTS: "[]"}
MICROPHONE = {SOURCES: '[{"index": 0, "name": "speaker.monitor"}, {"index": 1, "name": "microphone"}]'}


@pytest.mark.parametrize(
    ("system", "answers", "uses"),
    [
        ("linux", {**X11, **SILENT}, ()),
        ("linux", {**X11, **SILENT, "xprop -id": FULL, "xprop -id 0x3c00007 _NET_WM_STATE": FULL}, (FULL_SCREEN,)),
        ("linux", {**SILENT, "xprop -root": "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x0\n"}, ()),
        ("linux", {**SILENT, "swaymsg": sway(1)}, (FULL_SCREEN,)),
        ("linux", {**SILENT, "swaymsg": sway(0)}, ()),
        ("linux", {**SILENT, "hyprctl": '{"fullscreen": 2}'}, (FULL_SCREEN,)),
        ("linux", {**SILENT, "hyprctl": '{"fullscreen": 1}'}, ()),
        ("linux", {**X11, **MICROPHONE, OUTPUTS: recording()}, (CALL,)),
        ("linux", {**X11, **MICROPHONE, OUTPUTS: recording(corked=True)}, ()),
        ("linux", {**X11, **MICROPHONE, OUTPUTS: recording(properties={"stream.monitor": "true"})}, ()),
        ("linux", {**X11, **MICROPHONE, OUTPUTS: recording(source=0)}, ()),
        ("linux", {**X11, "pw-dump": pipewire()}, (CALL,)),
        ("linux", {**X11, "pw-dump": pipewire(state="idle")}, ()),
        (
            "linux",
            {**X11, "xprop -id 0x3c00007 _NET_WM_STATE": FULL, **MICROPHONE, OUTPUTS: recording()},
            (FULL_SCREEN, CALL),
        ),
        ("darwin", {"osascript": "true\n", "pmset": AUDIO_IN}, (FULL_SCREEN, CALL)),
        ("darwin", {"osascript": "false\n", "pmset": AUDIO_IN.replace("audio-in", "audio-out")}, ()),
    ],
)
def test_what_the_owner_does(system: str, answers: dict[str, str], uses: tuple[str, ...]) -> None:
    assert read_owner(owner_looks(system, tools(answers))) == (uses, ())


def test_what_no_tool_can_see_is_a_problem_and_no_use() -> None:
    uses, problems = read_owner(owner_looks("linux", tools({"pactl": "Source Output #7", "hyprctl": "[]"})))
    assert uses == ()
    assert [problem.split(" cannot be seen: ")[0] for problem in problems] == [
        "whether a full-screen program runs",
        "whether a call runs",
    ]
    assert "there is no xprop; there is no swaymsg; " in problems[0]
    assert "Expecting value" in problems[1]
    assert read_owner({}) == ((), ()), "it is not looked for where the owner does not want it"


class FakeShell:
    def __init__(self, state: int, code: int = 0) -> None:
        self.shell32 = self
        self._state, self._code = state, code

    def SHQueryUserNotificationState(self, pointer: Any) -> int:  # noqa: N802
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self._state
        return self._code


def test_a_window_that_is_closed_meanwhile_fills_no_screen() -> None:
    def run(command: Sequence[str]) -> str:
        if command[0] == "xprop" and "-id" in command:
            raise DriverProblem("xprop failed: BadWindow")
        return tools({**X11, **SILENT})(command)

    assert read_owner(owner_looks("linux", run)) == ((), ())


@pytest.mark.parametrize(("state", "busy"), [(1, False), (2, True), (3, True), (4, True), (5, False), (6, False)])
def test_windows_tells_of_full_screens(state: int, busy: bool) -> None:
    assert owner.windows_full_screen(FakeShell(state)) is busy


def test_windows_that_does_not_answer() -> None:
    with pytest.raises(DriverProblem, match="returned 0x"):
        owner.windows_full_screen(FakeShell(0, 0x7FFF0001))


def fake_registry(values: Mapping[str, int | None]) -> Any:
    """A registry with these programs below the microphone; None was never used."""
    paths = [rf"{CONSENT}\{name}" for name in values]

    class Key(str):
        def __enter__(self) -> Key:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def below(key: str) -> list[str]:
        inside = [path.removeprefix(rf"{key}" + "\\") for path in paths if path.startswith(rf"{key}" + "\\")]
        return sorted({path.split("\\")[0] for path in inside})

    def value(key: str, name: str) -> tuple[int, int]:
        found = values[key.removeprefix(CONSENT + "\\")]
        if name != "LastUsedTimeStop" or found is None:
            raise FileNotFoundError(name)
        return found, 11

    return SimpleNamespace(
        HKEY_CURRENT_USER=0,
        OpenKey=lambda root, path: Key(path),
        QueryInfoKey=lambda key: (len(below(key)), 0, 0),
        EnumKey=lambda key, place: below(key)[place],
        QueryValueEx=value,
    )


@pytest.mark.parametrize(
    ("values", "busy"),
    [
        ({}, False),
        ({"Teams_8wekyb": 133_000, r"NonPackaged\C:#zoom.exe": 133_001, "Never": None}, False),
        ({"Teams_8wekyb": 0}, True),
        ({"Teams_8wekyb": 133_000, r"NonPackaged\C:#zoom.exe": 0}, True),
    ],
)
def test_windows_tells_of_microphones(values: dict[str, int | None], busy: bool) -> None:
    assert owner.windows_call(fake_registry(values)) is busy


def test_windows_has_its_looks() -> None:
    assert owner_looks("win32") == {FULL_SCREEN: (owner.windows_full_screen,), CALL: (owner.windows_call,)}
