"""How much of netagent there is: whoever makes it larger decides so here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cloud_network.netagent

ROOM = Path(cloud_network.netagent.__file__).parent
ONLY_FOR_MYPY = {"shapes"}
STATEMENTS = 980
"""Statements: how many lines one takes is the formatter's affair. Docstrings and imports for mypy don't count."""

MODULES = {
    *("__future__", "_ctypes", "_datetime", "_json", "_operator", "_prctl", "_socket", "_struct", "collections"),
    *("ctypes", "ctypes._endian", "datetime", "errno", "itertools", "keyword", "math", "msgpack", "msgpack._cmsgpack"),
    *("msgpack.exceptions", "msgpack.ext", "operator", "prctl", "reprlib", "resource", "select", "struct", "types"),
    *("_collections", "_cython_3_3_0", "cython_runtime"),
}
"""What netagent loads beyond what a bare interpreter has, and beyond its own room."""
HASH = {"_sha256", "_sha2"}  # the one or the other, by the version of Python
LOOK = """
import os, sys  # os: of every interpreter that starts without -S
before = set(sys.modules)
import cloud_network.netagent.server
print(*(set(sys.modules) - before))
"""


def statements(path: Path) -> int:
    """As the compiler sees them."""

    def count(node: ast.AST) -> int:
        total = 0
        for child in ast.iter_child_nodes(node):
            for_mypy = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            name = ast.unparse(child) if isinstance(child, (ast.Assign, ast.ImportFrom)) else ""
            if not for_mypy and name not in ("TYPE_CHECKING = False", "from __future__ import annotations"):
                total += (isinstance(child, ast.stmt) and not text) + count(child)
        return total

    return count(ast.parse(path.read_text()))


def loaded() -> set[str]:
    # -S: without the environment's own start-up files, which differ from one to the next
    code = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n{LOOK}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_it_loads_what_is_listed_here_and_nothing_else() -> None:
    theirs = {name for name in loaded() if not name.startswith("cloud_network")}
    assert theirs - HASH - MODULES == set()
    assert MODULES - theirs <= set(sys.builtin_module_names), "what is no longer loaded is to be struck off"


def test_the_whole_process_can_be_read_in_an_afternoon() -> None:
    ours = {name.rpartition(".")[2] for name in loaded() if name.startswith("cloud_network.netagent.")}
    assert ours == {path.stem for path in ROOM.glob("*.py")} - ONLY_FOR_MYPY - {"__init__"}
    sizes = {name: statements(ROOM / f"{name}.py") for name in sorted(ours)}
    assert sum(sizes.values()) < STATEMENTS, sizes
