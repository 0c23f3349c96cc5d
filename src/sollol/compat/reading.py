"""Read programs and find the names of SOLLOL that they use. Nothing of them is run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from sollol.compat import names
from sollol.errors import BadInput
from sollol.files import read_bounded
from sollol.pool.former_keywords import ROUTING
from sollol.pool.requests import OLD_KEYWORDS

FILE_MOST: Final = 4 * 1024 * 1024
OURS: Final = "ours"  # a name of this version that 0.9.66 did not have
UNKNOWN: Final = "unknown"
VERBS: Final = frozenset(["chat", "generate", "embed", "embeddings", "embed_batch", "chat_async", "generate_async"])


class Use(NamedTuple):
    """One use of a name: the place, the name, its fate, and a sentence for the reader."""

    path: Path
    line: int
    name: str
    fate: str
    advice: str


def read_program(path: Path) -> tuple[list[Use], list[BadInput]]:
    """Return the uses of SOLLOL's names in a file or folder, and the files without an answer.

    Hidden folders, such as `.venv`, are left out.
    """
    uses: list[Use] = []
    errors: list[BadInput] = []
    for file in _files(path) if path.is_dir() else [path]:
        try:
            uses += _read_file(file)
        except BadInput as error:
            errors.append(error)
    return uses, errors


def _files(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*.py") if not file.is_dir())
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _read_file(path: Path) -> list[Use]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of the program's own text, such as "\\d"
            tree = ast.parse(read_bounded(path, FILE_MOST), str(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; expected a Python file or a folder") from None
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"{path} is no Python: {error}") from None
    except (RecursionError, MemoryError):
        raise BadInput(f"{path} cannot be read: an expression in it is nested too deeply for Python") from None
    return sorted({*_names(path, tree), *_keywords(path, tree)}, key=lambda use: (use.line, use.name))


def _names(path: Path, tree: ast.AST) -> Iterator[Use]:
    modules: dict[str, str] = {}  # local name -> module of SOLLOL, "" for the package
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "sollol":
                    module = alias.name.partition(".")[2]
                    modules[alias.asname or "sollol"] = module if alias.asname else ""
                    if module:
                        yield _module_use(path, node.lineno, module)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "sollol":
            module = (node.module or "").partition(".")[2]
            for alias in node.names:
                if alias.name == "*":
                    yield _module_use(path, node.lineno, module)
                else:
                    use = _use(path, node.lineno, module, alias.name)
                    yield use
                    inner = _below(module, alias.name)
                    if use.name == f"sollol.{inner}" and names.find(module, alias.name) is None and _is_module(inner):
                        modules[alias.asname or alias.name] = inner
        elif isinstance(node, ast.Call) and (imported := _imported(node)) is not None:
            yield _module_use(path, node.lineno, imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _chain_use(path, node, modules)


def _chain_use(path: Path, node: ast.Attribute, modules: Mapping[str, str]) -> Iterator[Use]:
    """Yield the first name behind the modules of a chain such as `sollol.pool.OllamaPool.chat`."""
    attributes: list[str] = []
    root: ast.expr = node
    while isinstance(root, ast.Attribute):
        attributes.append(root.attr)
        root = root.value
    if not isinstance(root, ast.Name) or root.id not in modules:
        return
    module = modules[root.id]
    for name in reversed(attributes):
        if names.find(module, name) is not None or not _is_module(_below(module, name)):
            yield _use(path, node.lineno, module, name)
            return
        module = _below(module, name)


def _imported(call: ast.Call) -> str | None:
    """Return the module of SOLLOL that `import_module("sollol.pool")` or `__import__` names, "" for the package."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = call.args[0] if called in ("import_module", "__import__") and call.args else None
    text = named.value if isinstance(named, ast.Constant) and isinstance(named.value, str) else ""
    return text.partition(".")[2] if text.partition(".")[0] == "sollol" else None


def _below(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _use(path: Path, line: int, module: str, name: str) -> Use:
    full = ".".join(filter(None, ("sollol", module, name)))
    row = names.find(module, name)
    if row is not None and row.fate != names.HERE:
        return Use(path, line, full, row.fate, f"{row.note}; use {row.ours}")
    if row is not None:
        return Use(path, line, full, names.HERE, f"works; today: {row.ours}")
    if not module and _is_module(name):
        return _module_use(path, line, name)
    if _exists(module, name):
        return Use(path, line, full, OURS, "works")
    return Use(path, line, full, UNKNOWN, "neither SOLLOL 0.9.66 nor this version has it")


def _module_use(path: Path, line: int, module: str) -> Use:
    full = f"sollol.{module}".rstrip(".")
    if _is_module(module) or not module:
        return Use(path, line, full, names.HERE, "can be imported")
    return Use(path, line, full, UNKNOWN, "neither SOLLOL 0.9.66 nor this version has it")


def _is_module(module: str) -> bool:
    if module in names.MODULES:
        return True
    try:
        import_module(f"sollol.{module}")
    except ImportError:
        return False
    return True


def _exists(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(f"sollol.{module}".rstrip(".")), name)
    except ImportError:
        return False


def _keywords(path: Path, tree: ast.AST) -> Iterator[Use]:
    """Yield former keywords of calls of a pool, as far as these can be seen."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for keyword in node.keywords:
            name = keyword.arg or ""
            if (
                called == "OllamaPool"
                and name in OLD_KEYWORDS
                and name not in ("discover_all_nodes", "exclude_localhost")
            ):
                yield Use(path, node.lineno, f"OllamaPool({name}=)", names.HERE, "is taken and has no effect")
            elif called in VERBS and name in ROUTING:
                yield Use(path, node.lineno, f"{called}({name}=)", names.HERE, "is taken; today: mode=")
