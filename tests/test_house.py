"""The house: a room imports only rooms before it, inside the package all imports are relative, functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOMS = Path(__file__).parents[1] / "bundle" / "scripts"
# The map of the house as contributors read it.
MAP = (ROOMS.parents[1] / "CONTRIBUTING.md").read_text().split("| room | subject |")[1].split("\n\n")[0]
ROWS = [line.split("|")[1] for line in MAP.splitlines() if line]
ORDER = ["__version__", *(name for row in ROWS for name in re.findall(r"`(\w+)(?:/|\.py)`", row))]
FILES = sorted(ROOMS.rglob("*.py"))


def imported(path):
    """Rooms that a file imports, and absolute imports of the package itself."""
    parts = path.relative_to(ROOMS).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            yield from (
                [base[0]] if base else [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            )
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"absolute {name}" for name in names if name.split(".")[0] in ("scripts", "avsm"))


def test_the_map_names_every_room():
    rooms = {path.relative_to(ROOMS).with_suffix("").parts[0] for path in FILES}
    assert sorted(ORDER) == sorted((rooms | {"__version__"}) - {"__init__"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOMS)))
def test_a_room_imports_only_rooms_before_it(path):
    room = path.relative_to(ROOMS).with_suffix("").parts[0]
    if room == "__init__":
        return
    for other in imported(path):
        assert other == room or ORDER.index(other) < ORDER.index(room), f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOMS)))
def test_no_function_is_longer_than_eighty_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
            assert length <= 80, f"{node.name}: {length} lines"
