"""Find the files of this program."""

from __future__ import annotations

import os
from pathlib import Path


def config_home() -> Path:
    """Return $XDG_CONFIG_HOME/sollol, by default ~/.config/sollol."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sollol"


def state_home() -> Path:
    """Return $XDG_STATE_HOME/sollol, by default ~/.local/state/sollol."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sollol"


def find_file(given: str | None = None) -> str | None:
    """Return the configuration file: the given one, SOLLOL_CONFIG, ./sollol.toml, or the user's own."""
    named = given or os.environ.get("SOLLOL_CONFIG", "").strip()
    if named:
        return named
    for path in (Path("sollol.toml"), config_home() / "sollol.toml"):
        if path.is_file():
            return str(path)
    return None
