"""Memory of GPUs: of nodes as they report their models, of this machine as `nvidia-smi` does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

from sollol.compat.gpu_controller import SOLLOLGPUController
from sollol.core.endpoint import parse_endpoint

QUERY: Final = ("index", "name", "memory.total", "memory.used", "memory.free")
SMI_S: Final = 5.0
TOOLS: Final = {"nvidia": "nvidia-smi", "amd": "rocm-smi", "intel": "intel_gpu_top"}


class VRAMMonitor:
    """Read the memory of models on nodes, and of the GPUs of this machine."""

    def __init__(self) -> None:
        self._controller = SOLLOLGPUController()

    @cached_property
    def gpu_type(self) -> str:
        """The maker of this machine's GPU by the tool that is installed: "nvidia", "amd", "intel" or "none"."""
        return next((kind for kind, tool in TOOLS.items() if shutil.which(tool)), "none")

    def get_local_vram_info(self) -> dict[str, Any] | None:
        """Return the GPUs of this machine with their memory in MB, None if `nvidia-smi` shows none."""
        if self.gpu_type != "nvidia":
            return None
        command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=True).stdout
            gpus = [_gpu(line.split(",")) for line in shown.splitlines() if line.strip()]
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
        if not gpus:
            return None
        sums = {f"{each}_vram_mb": sum(gpu[f"{each}_mb"] for gpu in gpus) for each in ("total", "used", "free")}
        return {"vendor": "NVIDIA", "gpus": gpus, **sums}

    def get_ollama_vram_usage(self, node_url: Any) -> dict[str, Any] | None:
        """Return the loaded models of a node with their memory in MB, None without an answer in 2 s."""
        status = self._controller.get_model_status(node_url)
        if "error" in status:
            return None
        models = status["models"]
        vram_mb = sum(model["vram_mb"] for model in models)
        return {
            "total_vram_mb": vram_mb,
            "total_ram_mb": sum(model["size_mb"] for model in models) - vram_mb,
            "has_gpu_models": vram_mb > 0,
            "models": models,
        }

    def get_comprehensive_report(self, node_url: Any = "http://localhost:11434") -> dict[str, Any]:
        """Return the models of a node, and the GPUs of this machine."""
        return {
            "node_url": str(node_url),
            "gpu_type": self.gpu_type,
            "local_vram": self.get_local_vram_info(),
            "ollama_usage": self.get_ollama_vram_usage(node_url),
        }

    def print_report(self, report: dict[str, Any]) -> None:
        """Print such a report."""
        usage = report["ollama_usage"]
        print(
            f"{report['node_url']}: {'does not answer' if usage is None else ''}".rstrip(": ")
            + ":" * (usage is not None)
        )
        for model in (usage or {"models": []})["models"]:
            print(f"  {model['name']:<32} {model['location']:<8} {model['vram_mb']:>8.0f} MB on the GPU")
        if usage is not None and not usage["models"]:
            print("  no model is loaded")
        for gpu in (report["local_vram"] or {"gpus": []})["gpus"]:
            print(f"  this machine: {gpu['name']}, {gpu['used_mb']} of {gpu['total_mb']} MB in use")


def monitor_distributed_nodes(node_urls: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return for each node `status` ("online", "error"), memory in MB, and its loaded models; or `error`.

    A text is its own key; another description of a node, such as a dict, has its URL as the key.
    """
    controller, monitor = SOLLOLGPUController(), VRAMMonitor()
    found: dict[str, dict[str, Any]] = {}
    for url in node_urls:
        key = url if isinstance(url, str) else parse_endpoint(url).url
        usage = monitor.get_ollama_vram_usage(url)
        if usage is None:
            why = controller.get_model_status(url).get("error", "it does not answer")
            found[key] = {"status": "error", "error": why}
            continue
        found[key] = {
            "status": "online",
            "vram_mb": usage["total_vram_mb"],
            "ram_mb": usage["total_ram_mb"],
            "gpu_accelerated": usage["has_gpu_models"],
            "models": usage["models"],
        }
    return found


def _gpu(row: list[str]) -> dict[str, Any]:
    index, name, total, used, free = (field.strip() for field in row)
    return {
        "index": int(index), "name": name, "total_mb": int(total), "used_mb": int(used), "free_mb": int(free),
        "vendor": "nvidia",
    }  # fmt: skip
