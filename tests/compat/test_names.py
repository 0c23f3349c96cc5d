"""The list of 0.9.66's names: each works, is there for later, or raises what says what to use; the page is the list."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import sollol
from sollol.compat import names
from sollol.compat.names import GONE, HERE, LATER, ROOT, ROWS
from sollol.errors import FormerAttribute, FormerName, NotSupported, SollolError
from tests.test_docs import DOCS, tool_of

LISTED = 330
OWN_MODULES = {("gateway", "app"), ("cli", "app"), ("cli", "up")}  # other things of these names
EACH = [(row, name) for row in ROWS for name in row.names]


def test_the_list_is_whole() -> None:
    """0.9.66 has 74 modules besides the package itself, with 330 public names (counted in its wheel)."""
    assert len(EACH) == len({(row.module, name) for row, name in EACH}) == LISTED
    assert len(names.MODULES) == 74
    assert {row.fate for row in ROWS} == {HERE, LATER, GONE}
    assert all(row.ours and row.note for row in ROWS)


def test_programs_that_ask_for_0_9_60_or_later_keep_this_version() -> None:
    assert tuple(int(part) for part in sollol.__version__.split(".")[:2]) >= (0, 10)


@pytest.mark.parametrize(("row", "name"), EACH, ids=lambda one: one if isinstance(one, str) else one.module)
def test_a_name_can_be_imported_or_says_what_to_use(row: names.FormerRow, name: str) -> None:
    code = f"from sollol.{row.module} import {name} as found"
    space: dict[str, object] = {}
    if (row.module, name) in OWN_MODULES:
        exec(code, space)
        assert isinstance(space["found"], ModuleType)
        return
    if row.fate == GONE:
        with pytest.raises(FormerName) as raised:
            exec(code, space)
        assert row.ours in str(raised.value)
        assert row.note in str(raised.value)
        assert isinstance(raised.value, ImportError)
        assert isinstance(raised.value, NotSupported)
        return
    exec(code, space)
    found = space["found"]
    assert found is getattr(import_module(row.home), name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert inspect.getdoc(found)


@pytest.mark.parametrize("name", sorted(ROOT))
def test_a_name_of_the_package_itself(name: str) -> None:
    row = names.find("", name)
    assert row is not None
    if row.fate == GONE:
        with pytest.raises(FormerAttribute, match="docs/migration"):
            getattr(sollol, name)
        assert not hasattr(sollol, name)
    else:
        assert getattr(sollol, name) is getattr(import_module(f"sollol.{row.module}"), name)


def test_modules_are_one_object_by_both_names() -> None:
    for module in sorted(names.MODULES):
        found = import_module(f"sollol.{module}")
        assert isinstance(found, ModuleType)
        assert sys.modules[f"sollol.{module}"] is getattr(sollol, module, found)
        home = f"sollol.compat.{module}"
        if found.__name__ == home:
            assert sys.modules[home] is found


def test_a_room_of_this_version_with_the_name_of_a_module_looks_names_up() -> None:
    """A new file or room of such a name needs `__getattr__`, as `sollol.registry` has."""
    source = Path(sollol.__file__).parent
    for module in names.MODULES:
        if (source / f"{module}.py").exists() or (source / module).is_dir():
            rows = [row for row in ROWS if row.module == module]
            found = import_module(f"sollol.{module}")
            plain = all(hasattr(found, name) for row in rows for name in row.names if row.fate != GONE)
            assert hasattr(found, "__getattr__") or (plain and all(row.fate != GONE for row in rows)), module


@pytest.mark.parametrize("name", ["nothing", "node", "compat_names"])
def test_what_0_9_did_not_have_stays_unknown(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module(f"sollol.{name}")
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from sollol import {name}")
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from sollol.prioritization import {name}")
    with pytest.raises(AttributeError):
        getattr(sollol.config, name)
    with pytest.raises(ModuleNotFoundError):
        import_module(f"sollol.prioritization.{name}")


def test_importing_the_package_loads_nothing_of_this() -> None:
    code = (
        "import sys, sollol\n"
        "assert not [name for name in sys.modules if name.startswith('sollol.compat')]\n"
        "from sollol import OllamaPool, AsyncOllamaPool, BatchError\n"
        "OllamaPool(['127.0.0.1:1']).nodes\n"
        "assert not [name for name in sys.modules if name.startswith('sollol.compat')]\n"
        "from sollol.prioritization import PRIORITY_HIGH\n"
        "assert 'sollol.compat.prioritization' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_absent_names_do_not_disturb_questions() -> None:
    assert not hasattr(sollol, "__wrapped__")
    assert not hasattr(sollol, "_private")
    assert getattr(sollol.config, "nothing", 5) == 5
    assert issubclass(FormerName, SollolError)


def test_the_page_is_the_list() -> None:
    page = tool_of("migration").page().rstrip() + "\n"
    assert (DOCS / "migration.md").read_text() == page, "run `python tools/migration.py`"
    for row, name in EACH:
        assert f"`{name}`" in page
        assert row.note in page
    assert Path(DOCS / "migration.md").is_file()
