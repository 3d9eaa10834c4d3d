"""Runs in the virtual machine on a virtio port: executes commands, many in parallel. One file, standard library.

Input: lines of JSON, {"id", "argv", "stdin"}. Output: lines of JSON, {"id", "status", "output"}, with standard output
and standard error of the command. The first line is {"id": 0}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def main(port: str) -> None:
    lock = threading.Lock()
    with open(port, "r+b", buffering=0) as stream:  # noqa: PTH123  # no seeking: a character device

        def send(**what: Any) -> None:
            with lock:
                left = json.dumps(what).encode() + b"\n"
                while left:
                    left = left[stream.write(left) or 0 :]

        def execute(number: int, argv: list[str], stdin: str) -> None:
            done = subprocess.run(
                argv,
                input=stdin.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
                cwd="/",
                check=False,
            )
            send(id=number, status=done.returncode, output=done.stdout.decode(errors="replace"))

        send(id=0)
        rest = b""
        while chunk := stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                threading.Thread(target=execute, args=(order["id"], order["argv"], order["stdin"]), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
