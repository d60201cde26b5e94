"""``ARCHITECTURE.md``: every module is found in its table, and nothing else is named there."""

from __future__ import annotations

import re
from pathlib import Path

import batch_llm

PACKAGE = Path(batch_llm.__file__).parent
PAGE = Path(__file__).parents[2] / "ARCHITECTURE.md"
MODULES = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}


def named(page):
    """Return the modules that a page names.

    A name without a folder is in the package, or where the name before it in its line was.
    """
    found = set()
    for line in page.splitlines():
        folder = ""
        for name in re.findall(r"`(?:src/batch_llm/)?([\w/]+\.py)`", line):
            if name.startswith(("benchmarks/", "tests/")):
                continue
            is_beside = "/" not in name and f"{folder}{name}" in MODULES
            found.add(f"{folder}{name}" if is_beside else name)
            if "/" in name:
                folder = f"{name.rpartition('/')[0]}/"
    return found


def test_every_module_is_found_in_the_table():
    table = PAGE.read_text("utf-8").split("## I want to …")[1].split("\n## ")[0]
    own = {name for name in MODULES if not name.endswith("__init__.py")}

    assert own - named(table) == set()


def test_the_page_names_no_module_that_is_not_there():
    assert named(PAGE.read_text("utf-8")) - MODULES == set()


def test_the_page_names_no_other_file_that_is_not_there():
    others = re.findall(r"`((?:docs|benchmarks|tests)/[\w/.-]+)`", PAGE.read_text("utf-8"))

    assert [name for name in others if not (PAGE.parent / name).exists()] == []


def test_a_module_that_is_left_out_or_gone_is_noticed():
    page = "| a | `stores/sqlite.py`, `memory.py` |\n| b | `memory.py`; `stores/gone.py` |"

    assert named(page) == {"stores/sqlite.py", "stores/memory.py", "memory.py", "stores/gone.py"}
