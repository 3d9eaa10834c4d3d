"""How much of netagent there is: whoever makes it larger decides so here."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import cloud_network.netagent

ROOM = Path(cloud_network.netagent.__file__).parent
NOT_IN_THE_PROCESS = {"shapes", "start"}  # what mypy alone reads; what is gone when the server is there
LINES = 900
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

MODULES = {
    *("__future__", "_ctypes", "_datetime", "_json", "_operator", "_socket", "_struct", "collections"),
    *("ctypes", "ctypes._endian", "datetime", "errno", "itertools", "keyword", "math", "msgpack", "msgpack._cmsgpack"),
    *("msgpack.exceptions", "msgpack.ext", "operator", "pwd", "reprlib", "resource", "select", "struct", "types"),
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


def lines(path: Path) -> int:
    """Those that hold code: no blank ones, comments, docstrings, or imports that only mypy sees."""
    source = path.read_text()
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(source).readline) if each.type not in LAYOUT]
    held = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for_mypy = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.stmt) and (docstring or for_mypy):
            held -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return len(held)


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
    assert ours == {path.stem for path in ROOM.glob("*.py")} - NOT_IN_THE_PROCESS - {"__init__"}
    sizes = {name: lines(ROOM / f"{name}.py") for name in sorted(ours)}
    assert sum(sizes.values()) < LINES, sizes
