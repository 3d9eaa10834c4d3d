"""Coverage-guided fuzzing of netagent's inputs, with atheris (libFuzzer for Python, github.com/google/atheris).

    .venv/bin/python tests/unit/fuzz/fuzz_protocol.py -runs=1000000 tests/unit/fuzz/corpus/protocol

The folder's name selects the target: protocol, policy or rtnetlink. New inputs that reach new code are written to the
first folder named; to keep the checked-in corpus unchanged, name a scratch folder of the same name first.
"""

from __future__ import annotations

import atexit
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[3]))

with atheris.instrument_imports(include=["cloud_network.netagent"]):
    from cloud_network.netagent import policy, protocol, rtnetlink  # noqa: F401

import msgpack

from tests.unit.fuzz.targets import CORPUS, SEEN, TARGETS

OPS: list[dict[str, Any]] = []  # of the corpus, as material for mutations


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change, add or move one operation of a request; sometimes bytes, as libFuzzer does."""
    random = Random(seed)
    try:
        message = msgpack.unpackb(data)
        ops = message["ops"]
        op = random.choice([op for op in ops if type(op) is dict])
        key = random.choice([key for key in op if key != "op"])
        message["ops"] = ops = list(ops)
    except (AttributeError, ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException):
        return bytes(atheris.Mutate(data, max_size))
    how = random.randrange(10)
    other = random.choice(OPS)
    if how < 1:
        return bytes(atheris.Mutate(data, max_size))
    if how < 5:
        op[key] = other.get(key, random.choice(OPS).get(key, op[key]))
    elif how in (5, 6) and isinstance(op[key], bytes):
        at = random.randrange(len(op[key]) * 8)
        op[key] = (int.from_bytes(op[key]) ^ 1 << at).to_bytes(len(op[key]))
    elif how <= 7:
        op[key] = random.choice((0, 1, 8, 24, 32, 64, 128, 254, 255, 31000, 31029, True, False, None))
    elif how == 8:
        ops.insert(random.randrange(len(ops) + 1), dict(other))
    else:
        ops.append(ops.pop(random.randrange(len(ops))))
    body: bytes = msgpack.packb(message)
    return body if len(body) <= max_size else data


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    name = Path(folders[0]).name if folders else "protocol"
    if name not in TARGETS:
        raise SystemExit(f"the corpus folder's name is none of {', '.join(TARGETS)}")
    for file in sorted((CORPUS / "policy").iterdir()):
        OPS.extend(msgpack.unpackb(file.read_bytes())["ops"])
    began = time.monotonic()

    def one(data: bytes) -> None:
        TARGETS[name](data)

    # libFuzzer's -runs= exits with _exit(2), so Python's exit handlers do not run.
    arguments = [argument.replace("-runs=", "-atheris_runs=") for argument in sys.argv[1:]]
    custom = {"custom_mutator": mutate} if name == "policy" else {}  # reduces the speed to a tenth
    atheris.Setup([sys.argv[0], "-max_len=4096", *arguments], one, **custom)
    atexit.register(lambda: print(f"{name}: {dict(SEEN)} in {time.monotonic() - began:.1f} s", flush=True))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
