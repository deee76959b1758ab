"""docs/architecture.md against the code: the rooms, and what each imports."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ANYWHERE = {"interrupt", "torchvision_shim", "__version__"}


def imported():
    """The rooms whose modules each room imports."""
    rooms = defaultdict(set)
    for path in (ROOT / "dbnrun").rglob("*.py"):
        room, *inside = path.relative_to(ROOT / "dbnrun").parts
        if not inside:
            continue  # a module beside the rooms
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dbnrun"):
                names = [f"{node.module}.{alias.name}".split(".")[1] for alias in node.names]
                rooms[room] |= set(names) - {room} - ANYWHERE
    return rooms


def allowed():
    """The same as the page's table has it: 'all of the above but' names every room before."""
    rooms = {}
    for name, permitted in re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", PAGE, flags=re.M):
        named = set(re.findall(r"`(\w+)`", permitted))
        rooms[name] = set(rooms) - named if permitted.startswith("all of the above but") else named
    return rooms


@pytest.mark.parametrize("room", sorted(allowed()))
def test_a_room_imports_what_the_page_allows_and_nothing_else(room):
    assert imported()[room] <= allowed()[room]


def test_the_page_names_every_room():
    folders = {path.parent.name for path in (ROOT / "dbnrun").glob("*/__init__.py")}
    assert set(allowed()) == folders


def test_every_file_and_name_on_the_page_exists():
    for path in re.findall(r"`((?:[a-z_]+/)+\w+\.py)`", PAGE):
        assert (ROOT / "dbnrun" / path).exists() or (ROOT / path).exists(), path
    for module, name in re.findall(r"`((?:[a-z_]+/)+\w+)\.(\w+)(?:\.\w+)?`", PAGE):
        if name not in ("py", "yaml"):
            assert re.search(rf"^(def|class) {name}\b", (ROOT / "dbnrun" / f"{module}.py").read_text(), flags=re.M), (
                name
            )
