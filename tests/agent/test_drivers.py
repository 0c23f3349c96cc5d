"""Fake drivers in place of GPUs: what each maker's way reports, and what happens where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sollol.agent.drivers import (
    AmdDriver,
    AppleDriver,
    DriverProblem,
    IntelDriver,
    NvidiaDriver,
    read_gpus,
    run_tool,
)
from sollol.agent.report import GpuReport


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"NVML error {value}")


class FakeNvml:
    """NVML with two GPUs, one of which lacks a power sensor."""

    NVMLError = NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED = 12, 9

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.ended = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.start:
            raise NVMLError(self.start)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.ended += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, place: int) -> int:  # noqa: N802
        return place

    def nvmlDeviceGetName(self, handle: int) -> Any:  # noqa: N802
        return b"RTX 4090" if handle else "RTX 3060"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=24_000_000_000, used=6_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if handle:
            raise NVMLError(3)
        return 120_500


def test_nvidia() -> None:
    nvml = FakeNvml()
    assert NvidiaDriver(nvml).read() == [
        GpuReport("RTX 3060", "nvidia", 24_000_000_000, 6_000_000_000, 0.5, 61.0, 120.5),
        GpuReport("RTX 4090", "nvidia", 24_000_000_000, 6_000_000_000, 0.5, 61.0, None),
    ]
    assert nvml.ended == 1
    assert NvidiaDriver(FakeNvml(9)).read() == NvidiaDriver(FakeNvml(12)).read() == []
    gpus, problems = read_gpus([NvidiaDriver(FakeNvml(999)), NvidiaDriver(nvml)])
    assert len(gpus) == 2
    assert problems == ("NVML does not start: NVML error 999",)


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_amd(tmp_path: Path) -> None:
    device = tmp_path / "card1" / "device"
    put(
        device, vendor="0x1002", device="0x744c", mem_info_vram_total=24_000, mem_info_vram_used=900, gpu_busy_percent=7
    )
    put(device / "hwmon" / "hwmon4", temp1_input=45_000, power1_average=33_000_000)
    put(tmp_path / "card0" / "device", vendor="0x1002", mem_info_vram_used=1)  # graphics without memory of its own
    put(tmp_path / "card2" / "device", vendor="0x10de", mem_info_vram_total=1)
    put(tmp_path / "card1-DP-1" / "device", vendor="0x1002", mem_info_vram_total=1)
    assert AmdDriver(tmp_path).read()[0] == GpuReport("AMD 0x744c", "amd", 24_000, 900, 0.07, 45.0, 33.0)
    put(device, product_name="RX 7900 XTX", gpu_busy_percent="x")
    (device / "hwmon" / "hwmon4" / "temp1_input").unlink()
    assert AmdDriver(tmp_path).read()[0] == GpuReport("RX 7900 XTX", "amd", 24_000, 900, None, None, 33.0)
    assert AmdDriver(tmp_path / "none").read() == []


IOREG = """+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x1>
    {
      "model" = "Apple M2 Max"
      "PerformanceStatistics" = {"In use system memory"=2048,"Device Utilization %"=31,"Renderer Utilization %"=30}
    }
"""


def test_apple() -> None:
    def run(command: Sequence[str]) -> str:
        return "68719476736\n" if command[0] == "sysctl" else IOREG

    assert AppleDriver(run).read() == [GpuReport("Apple M2 Max", "apple", 68_719_476_736, 2048, 0.31)]

    def broken(command: Sequence[str]) -> str:
        return "?" if command[0] == "sysctl" else IOREG

    with pytest.raises(DriverProblem, match="size of the memory"):
        AppleDriver(broken).read()


def test_intel() -> None:
    answers = {
        ("discovery", "-j"): {"device_list": [{"device_id": 0, "device_name": "Arc A770"}]},
        ("discovery", "-d", "0", "-j"): {"memory_physical_size_byte": "16225243136"},
        ("stats", "-d", "0", "-j"): {
            "device_level": [
                {"metrics_type": "XPUM_STATS_MEMORY_USED", "value": 1024},
                {"metrics_type": "XPUM_STATS_GPU_UTILIZATION", "value": 12},
                {"metrics_type": "XPUM_STATS_POWER", "value": 35.5},
            ]
        },
    }

    def run(command: Sequence[str]) -> str:
        return json.dumps(answers[tuple(command[1:])])

    assert IntelDriver(run).read() == [GpuReport("Arc A770", "intel", 16_225_243_136, 1024**3, 0.12, None, 35.5)]
    for odd in ("", "[]", '{"device_list": [{}]}', '{"device_list": 5}'):
        printed: Callable[[Sequence[str]], str] = partial(_same, odd)
        with pytest.raises(DriverProblem, match="something else than expected"):
            IntelDriver(printed).read()


def _same(text: str, command: Sequence[str]) -> str:
    return text


def test_a_tool_that_is_absent_or_fails(tmp_path: Path) -> None:
    def absent(command: Sequence[str]) -> str:
        raise FileNotFoundError(command[0])

    assert AppleDriver(absent).read() == IntelDriver(absent).read() == []
    with pytest.raises(FileNotFoundError):
        run_tool(("no-such-tool-of-sollol",))
    with pytest.raises(DriverProblem, match="false failed"):
        run_tool(("false",))
    assert run_tool(("echo", "x")) == "x\n"
