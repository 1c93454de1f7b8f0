"""No module imports a test module: what tests share is in `tests.support` or in a file beside them.

A test module that others import cannot be moved, split or left out of a run on its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests", "benchmarks", "embedded")
# Still to be mended.
EXEMPT = "tests/core/"


def imported(path: Path) -> Iterator[str]:
    """What a file imports, by full names: of `from a import b` it is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def from_tests(path: Path) -> list[str]:
    """Test modules that a file imports, or imports from."""
    return sorted(
        name
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    )


def test_an_import_of_a_test_module_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from tests.support.records import new_job\n"
        "from tests.api import test_ledger\n"
        "from tests.api.test_seats import led\n"
        "import tests.api.test_limits\n"
    )
    assert from_tests(path) == [
        "tests.api.test_ledger",
        "tests.api.test_limits",
        "tests.api.test_seats.led",
    ]


def test_no_module_imports_a_test_module() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    found = {str(path.relative_to(ROOT)): from_tests(path) for path in files}
    assert {
        name: names for name, names in found.items() if names and not name.startswith(EXEMPT)
    } == {}
