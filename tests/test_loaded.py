"""What the fetcher and the api have in memory at rest: whoever makes it more decides so here.

netagent has a list of its own (tests/netagent/test_size.py). Names of top-level modules; those that begin with an
underscore belong to others. bench/memory.py has what they cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_network.fetcher.publish import Publisher
from cloud_network.fetcher.state import StateDirectory

BOTH = {
    *("array", "ast", "atexit", "bisect", "collections", "contextlib", "copy", "copyreg", "dataclasses", "datetime"),
    *(
        "dis",
        "enum",
        "errno",
        "fnmatch",
        "functools",
        "gc",
        "glob",
        "grp",
        "importlib",
        "inspect",
        "ipaddress",
        "itertools",
    ),
    *("json", "keyword", "linecache", "logging", "math", "ntpath", "opcode", "operator", "pathlib", "prctl", "pwd"),
    *("random", "re", "reprlib", "select", "selectors", "signal", "socket", "string", "struct", "textwrap"),
    *("threading", "token", "tokenize", "traceback", "types", "typing", "urllib", "warnings", "weakref"),
}
"""glob and grp: from Python 3.13 on pathlib loads them."""
FETCHER = BOTH | {"msgpack", "cython_runtime"}
API = BOTH | {
    *("argparse", "base64", "binascii", "bz2", "calendar", "concurrent", "csv", "email", "fcntl", "gettext"),
    *("gunicorn", "hashlib", "heapq", "html", "http", "locale", "lzma", "pickle", "platform", "queue", "quopri"),
    *("shlex", "shutil", "socketserver", "ssl", "tempfile", "zipfile", "zlib"),
}
"""All but gunicorn is gunicorn's. Flask waits for a request that needs it."""
CODE = """
import json, os, sys
before = set(sys.modules)
{start}
now = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(name for name in now if name[0] != "_" and name != "cloud_network")))
"""
START = {
    "fetcher": """
import cloud_network.fetcher.loop
from cloud_network.fetcher.metadata import detect
for cloud in detect.CLOUDS:
    detect._module(cloud)
""",
    "api": """
import gunicorn.glogging
from cloud_network.api import app, serve
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.state import StateDirectory
answer = app.create_app(StateDirectory("/nowhere"), [Config().listen])
""",
    "api, asked": """
import gunicorn.glogging
from cloud_network.api import app, serve
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.state import StateDirectory
state = StateDirectory(sys.argv[1])
answer = app.create_app(state, [Config().listen])
said = []
request = {"PATH_INFO": "/api/cloud/system", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "HTTP_HOST": "localhost"}
assert b"".join(answer(request, lambda status, headers: said.append(status))).strip() == b"{}"
assert said == ["200 OK"]
""",
}


@pytest.mark.parametrize(("daemon", "listed"), [("fetcher", FETCHER), ("api", API), ("api, asked", API)])
def test_a_daemon_at_rest_has_what_is_listed_here_and_nothing_else(
    daemon: str, listed: set[str], tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)
    state.prepare()
    state.write_system({})
    Publisher(state, "aws").publish()
    # -S: without the environment's own start-up files, which differ from one to the next
    code = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n" + CODE.format(start=START[daemon])
    done = subprocess.run([sys.executable, "-S", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) - listed == set()
