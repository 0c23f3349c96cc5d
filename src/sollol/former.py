"""Find modules and names of SOLLOL 0.9 when a program imports one.

`sollol.compat.names` has the list, and is loaded only then. A module `sollol.NAME` of the list is `sollol.compat.NAME`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "sollol"
HOMES = "sollol.compat"


def find_former(module: str, name: str) -> Any:
    """Return an object by its name in SOLLOL 0.9. `module`: the former module without "sollol."; "": the package.

    Raises:
        AttributeError: 0.9 had no such name.
        FormerName: The name is gone, and an `import` looks it up.
        FormerAttribute: The name is gone, and an attribute is looked up.
    """
    if name == "logger" and module:
        import logging  # takes 4 ms

        return logging.getLogger(f"{PACKAGE}.{module}")
    unlisted = name.startswith("_") or _is_submodule(f"{PACKAGE}.{module}".rstrip("."), name)
    names = None if unlisted else import_module(f"{HOMES}.names")
    row = None if names is None else names.find(module, name)
    if names is None or row is None:
        raise AttributeError(f"module {f'{PACKAGE}.{module}'.rstrip('.')!r} has no attribute {name!r}")
    if row.fate == names.GONE:
        from sollol.errors import FormerAttribute, FormerName

        raise (FormerName if _is_import() else FormerAttribute)(names.advice(row, name))
    return getattr(import_module(row.home), name)


def _is_import() -> bool:
    """Check that an `import` statement looks a name up: it would hide the words of an AttributeError."""
    from opcode import opname

    frame = sys._getframe(2)
    if frame.f_code.co_name == "__getattr__" and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    return code.co_name == "_handle_fromlist" or opname[code.co_code[frame.f_lasti]] == "IMPORT_FROM"


def _is_submodule(package: str, name: str) -> bool:
    """Check for a module of the package that is not imported yet: the import system looks for an attribute first."""
    path = getattr(sys.modules.get(package), "__path__", None)
    return path is not None and PathFinder.find_spec(f"{package}.{name}", path) is not None


class FormerFinder:
    """Find `sollol.NAME` for the modules of SOLLOL 0.9 that are no modules of their own here."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a former module, None for any other."""
        package, _, module = name.partition(".")
        if package != PACKAGE or not module or "." in module:
            return None
        if module not in import_module(f"{HOMES}.names").MODULES:
            return None
        home = find_spec(f"{HOMES}.{module}")
        loader: Any = FormerLoader(module, home)  # `importlib.abc.Loader` takes 7 ms to import
        return ModuleSpec(name, loader, origin=None if home is None else home.origin)


class FormerLoader:
    """Load a former module: its home, or an empty one whose names are looked up in the list."""

    def __init__(self, module: str, home: ModuleSpec | None) -> None:
        self._module = module
        self._home = home

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return None: an empty module is fine."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the home in the place of the empty module."""
        look_up = partial(find_former, self._module)
        if self._home is None:
            vars(module)["__getattr__"] = look_up
            return
        home = sys.modules[module.__name__] = import_module(self._home.name)
        vars(home).setdefault("__getattr__", look_up)

    def get_code(self, name: str) -> CodeType | None:
        """Return the code of the home, for `python -m`."""
        loader: Any = self._home and self._home.loader
        return loader.get_code(self._home.name) if self._home and loader else compile("", name, "exec")


def install() -> None:
    """Search for former modules after all others. It may be called more than once."""
    if FormerFinder not in sys.meta_path:
        sys.meta_path.append(FormerFinder)
