"""Compile the modules that run for every request (scheduler, dispatcher, relay) with mypyc.

It is done on request: `SOLLOL_COMPILE=1 pip install .`, or in place with `python hatch_build.py` (`make compile`).
Otherwise everything runs as plain Python. docs/decisions/compiled.md has the reasons.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
SOURCE = ROOT / "src"
LEFT_OUT = {"__init__.py", "hints.py", "ranges.py", "task_words.py"}  # for the compiler, a built-in tuple, words
ROOMS = ("core", "policies", "workload")
# Files of other rooms through which a request passes, without msgspec structures, which mypyc cannot build.
ON_THE_WAY = (
    "agent/app.py",
    "dashboard/site.py",
    "gateway/app.py",
    "gateway/context.py",
    "gateway/metrics_server.py",
    "gateway/inference/call_options.py",
    "gateway/inference/routing_headers.py",
    "gateway/formats/stream_parser.py",
    "http_server/heads.py",
    "gateway/inference/single.py",
    "http_server/intake.py",
    "http_server/known_request.py",
    "gateway/inference/passthrough.py",
    "http_server/pieces.py",
    "http_server/places.py",
    "gateway/inference/relay.py",
    "http_server/request.py",
    "gateway/routes/table.py",
    "gateway/formats/api_formats.py",
    "http_server/server.py",
    "http_server/connection.py",
    "registry/server.py",
    "transport/client_connection.py",
    "transport/deadline.py",
    "transport/head_cache.py",
    "transport/outbox.py",
    "transport/reply.py",
    "transport/request_heads.py",
    "transport/call.py",
    "backends/ollama.py",
    "backends/refusals.py",
    "transport/http.py",
    "backends/go_json.py",
    "backends/model_check.py",
    "gateway/formats/bodies.py",
    "observe/attempt_log.py",
    "observe/journal.py",
    "observe/metrics.py",
    "observe/monitor.py",
    "observe/record_builder.py",
    "observe/recorder.py",
    "observe/recording.py",
    "observe/series.py",
    "observe/store.py",
    "observe/subscription.py",
    "observe/totals.py",
    "engine/dispatcher.py",
    "engine/engine.py",
    "observe/history.py",
    "engine/jobs.py",
)

# `make lint` checks types strictly; here packages of extras may be missing, and what uses them is looked at, too.
MYPY = ("--config-file=", "--ignore-missing-imports")
# Functions that only this library calls are called directly, and may be put into their callers.
FLAGS = [] if sys.platform == "win32" else ["-fvisibility=hidden", "-fno-plt"]


def modules() -> list[str]:
    """Return the modules to compile, as paths below src."""
    found = (path for room in ROOMS for path in sorted((SOURCE / "sollol" / room).rglob("*.py")))
    chosen = [str(path.relative_to(SOURCE)) for path in found if path.name not in LEFT_OUT]
    return chosen + [f"sollol/{path}" for path in ON_THE_WAY]


def compile_into(target: Path) -> list[Path]:
    """Build the extension modules below `target`; return their paths. Needs a C compiler, mypy and setuptools."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    before = Path.cwd()
    os.chdir(SOURCE)
    try:
        with tempfile.TemporaryDirectory() as work:
            extensions = mypycify([*MYPY, *modules()], opt_level="2", target_dir=work, group_name="sollol")
            for extension in extensions:
                extension.extra_compile_args += FLAGS
            command = build_ext(Distribution({"ext_modules": extensions}))
            command.build_lib, command.build_temp = str(target), work
            command.ensure_finalized()
            command.run()
            return [target / Path(path).relative_to(target) for path in command.get_outputs()]
    finally:
        os.chdir(before)


def clean() -> None:
    for path in [*SOURCE.glob("*.so"), *(SOURCE / "sollol").rglob("*.so")]:
        path.unlink()


def main() -> None:
    clean()
    with tempfile.TemporaryDirectory() as work:
        built = Path(work) / "lib"
        for path in compile_into(built):
            target = SOURCE / path.relative_to(built)
            shutil.copy(path, target)
            print(target.relative_to(ROOT))


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `make compile` runs in an environment without hatchling
    pass
else:

    class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
        PLUGIN_NAME = "custom"

        def dependencies(self) -> list[str]:
            """Return the packages of an isolated build besides hatchling: the compiler, and the types of imports."""
            if os.environ.get("SOLLOL_COMPILE") != "1":
                return []
            return ["mypy>=1.13", "setuptools>=70", *self.metadata.core.dependencies]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if os.environ.get("SOLLOL_COMPILE") != "1" or version == "editable":
                return
            built = Path(tempfile.mkdtemp())
            build_data["force_include"].update(
                {str(path): str(path.relative_to(built)) for path in compile_into(built)}
            )
            build_data.update(pure_python=False, infer_tag=True)


if __name__ == "__main__":
    sys.exit(main())
