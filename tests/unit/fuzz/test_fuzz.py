"""The fuzz targets in the normal suite: the corpus, some seconds of Hypothesis, and a short run of atheris."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.system.netagent.state_operations import VALUES, attacks, nearly, operations
from tests.unit.fuzz.targets import CORPUS, HERE, NAMES, SEEN, TARGETS, fuzz_policy, fuzz_protocol, fuzz_rtnetlink

SOME = settings(derandomize=True, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
Ops = list[dict[str, object]]
RUNS = {"protocol": 20_000, "policy": 1_000, "rtnetlink": 20_000}  # about a second each
INDEX = {name: index for index, name in NAMES.items()}
HOSTILE = st.sampled_from([op for ops in attacks(INDEX) for op in ops])
OPS = st.one_of(operations(INDEX), HOSTILE)
LEAVES = st.one_of(VALUES, st.sampled_from(("request", "apply", "op", "ops", "link", "address_add")))
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner))


@pytest.mark.parametrize("name", TARGETS)
def test_corpus_is_parsed_and_partly_valid(name: str) -> None:
    SEEN.clear()
    files = sorted((CORPUS / name).iterdir())
    for file in files:
        TARGETS[name](file.read_bytes())
    good = {"protocol": ("apply", "hello", "malformed"), "policy": ("accepted", "refused"), "rtnetlink": ("parsed",)}
    assert all(SEEN[each] for each in good[name]), SEEN


@SOME
@given(st.one_of(st.binary(max_size=300), TREES.map(msgpack.packb)))
@example(b"\x91" * 5000)
def test_invalid_message_is_malformed(body: bytes) -> None:
    fuzz_protocol(body)


@SOME
@given(ops=st.lists(OPS, min_size=1, max_size=4), how=st.integers(0, 1000), value=VALUES, spoil=st.booleans())
def test_accepted_requests_do_no_harm(ops: Ops, how: int, value: object, spoil: bool) -> None:
    at = how % len(ops)
    if spoil:
        ops = [*ops[:at], nearly(ops[at], how // 8, value), *ops[at + 1 :]]
    fuzz_policy(msgpack.packb({"request": "apply", "id": "1", "ops": ops, "confirm_within": 0}))


@SOME
@given(st.sampled_from(sorted((CORPUS / "rtnetlink").iterdir())), st.integers(0, 2**16), st.binary(max_size=6))
def test_damaged_dump_is_parsed_or_refused(file: Path, at: int, value: bytes) -> None:
    data = file.read_bytes()
    at = 1 + at % len(data)
    fuzz_rtnetlink(data[:at] + value + data[at + len(value) :])
    fuzz_rtnetlink(data[:at])


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_guided_by_coverage_finds_nothing(name: str, tmp_path: Path) -> None:
    found = tmp_path / name
    found.mkdir()
    argv = [sys.executable, str(HERE / "fuzz_protocol.py"), f"-runs={RUNS[name]}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([*argv, str(found), str(CORPUS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS[name]}" in done.stderr
