"""The state files: written completely or not at all, and readable by every user."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast, get_type_hints

import jsonschema
import pytest
from cloud_network.fetcher import status as shapes
from cloud_network.fetcher.state import AlreadyRunning, Claim, Doubt, RunLock, StateDirectory, StateError, boot_id

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/status.schema.json").read_text())

STATUS: shapes.Status = {
    "version": 3,
    "run": "0123456789abcdef",
    "boot_id": "0" * 32,
    "renew_by": 1234.5,
    "generation": 7,
    "provider": "aws",
    "state": "ok",
    "fetched_at": "2026-01-02T03:04:05Z",
    "fetched_uptime": 1229.5,
    "attempted_at": "2026-01-02T03:04:05.123456Z",
    "compared_at": "2026-01-02T03:04:06Z",
    "written_at": "2026-01-02T03:04:06Z",
    "refresh_timer": 300.0,
    "last_error": {"at": "2026-01-02T03:04:05Z", "kind": "metadata", "message": "timed out"},
    "metadata_requests": 17,
    "metadata_seconds": 0.042,
    "counters": {
        "metadata_requests": 170,
        "metadata_errors": {"timeout": 2, "too large": 1},
        "netagent_requests": {"confirmed": 9, "rolled back": 1},
        "drift_repaired": 5,
    },
    "netagent": {
        "listening": True,
        "verdict": "confirmed",
        "request": "r1",
        "at": "2026-01-02T03:04:06Z",
        "reason": None,
        "ops": 12,
    },
    "links": {
        "3": {
            "name": "eth1",
            "mac": "0e:c5:3f:c5:33:a5",
            "ifindex": 3,
            "device_number": None,
            "state": "drift",
            "mtu": 9001,
            "table": 10002,
            "gateways": ["10.0.1.1"],
            "subnets": ["10.0.1.0/24"],
            "addresses": [
                {
                    "address": "10.0.1.5",
                    "prefix_length": 24,
                    "kernel_prefix_length": 24,
                    "public": ["54.1.2.3"],
                    "present": True,
                    "owned": True,
                    "excluded": False,
                    "table": 10002,
                }
            ],
            "ranges": [],
            "desired": 31,
            "actual": 30,
            "drift": ["ip address add 10.0.1.5/24 dev eth1"],
        }
    },
    "unknown_macs": [],
    "departed_macs": [],
    "notices": [],
    "conflicts": [],
}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path / "run" / "cloud-network")
    directory.prepare()
    return directory


def test_written_documents_are_read_back(state: StateDirectory) -> None:
    document = {"ami-id": "ami-1", "placement": {"region": "us-west-2"}, "evil": "\x1b[2J\ud800 é"}
    state.write_system(document)
    for ifindex in (10, 4, 100, 9, 3, 77, 8):
        state.write_link(ifindex, document)
    state.write_status(STATUS)
    state.write_identity("aws", "pkcs7", b"MII\x00\xff\n")
    assert state.read_system() == document
    assert list(state.read_links().items()) == [(ifindex, document) for ifindex in (3, 4, 8, 9, 10, 77, 100)]
    assert state.read_status() == STATUS
    assert state.read_identity("aws", "pkcs7") == b"MII\x00\xff\n"
    assert Path(state.system_path).read_bytes().isascii()
    assert b"\x1b" not in Path(state.system_path).read_bytes()


def test_a_shorter_document_leaves_nothing_of_the_longer_one(state: StateDirectory) -> None:
    state.write_system({"a": "x" * 5000})
    state.write_system({})
    assert Path(state.system_path).read_bytes() == b"{}\n"


def test_missing_files_read_as_none(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "never made")
    assert state.read_system() is None
    assert state.read_status() is None
    assert state.read_links() == {}
    assert state.read_identity("aws", "document") is None


def test_a_link_is_removed_once_or_twice(state: StateDirectory) -> None:
    state.write_link(3, {})
    state.remove_link(3)
    state.remove_link(3)
    assert state.link_indexes() == []


def test_files_are_world_readable_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        state = StateDirectory(tmp_path / "run")
        state.prepare()
        state.write_link(3, {})
        state.write_identity("aws", "document", b"")
    finally:
        os.umask(before)
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        assert path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644), path


def test_prepare_removes_a_killed_writers_files(state: StateDirectory) -> None:
    state.write_system({"kept": "yes"})
    left = [Path(state.path, name) for name in (".system.77.tmp", "links/.3.77.tmp", "provider/.x.1.tmp")]
    for path in left:
        path.write_text("{half")
    assert state.link_indexes() == []
    state.prepare()
    assert not any(path.exists() for path in left)
    assert state.read_system() == {"kept": "yes"}


def test_a_failed_write_leaves_the_old_file_and_no_other(state: StateDirectory) -> None:
    state.write_system({"old": "yes"})
    Path(state.link_path(3)).mkdir()
    with pytest.raises(OSError, match=r"links/3"):
        state.write_link(3, {})
    with pytest.raises(ValueError, match="JSON compliant"):
        state.write_system({"bad": float("nan")})
    assert state.read_system() == {"old": "yes"}
    assert not list(Path(state.path).rglob("*.tmp"))


def test_partial_write_is_never_visible(state: StateDirectory) -> None:
    state.write_system({"old": "yes"})
    program = (
        "import os, sys\n"
        "from cloud_network.fetcher import state\n"
        "import pathlib\n"
        "pathlib.Path.rename = lambda *_: os._exit(9)\n"
        "state.StateDirectory(sys.argv[1]).write_system({'new': 'x' * 100000})\n"
    )
    assert subprocess.run([sys.executable, "-c", program, state.path], check=False).returncode == 9
    assert state.read_system() == {"old": "yes"}
    state.prepare()
    assert [path.name for path in Path(state.path).iterdir() if path.is_file()] == ["system"]


@pytest.mark.parametrize("name", ["", ".", "..", "../system", "a/b", ".hidden", "a b", "é", "a\0"])
def test_a_name_is_never_a_path(state: StateDirectory, name: str) -> None:
    for provider, part in ((name, "document"), ("aws", name)):
        with pytest.raises(ValueError, match="is not a file name"):
            state.write_identity(provider, part, b"")
        with pytest.raises(StateError, match="is not a file name"):
            state.read_identity(provider, part)


@pytest.mark.parametrize("ifindex", [0, -1])
def test_an_ifindex_is_positive(state: StateDirectory, ifindex: int) -> None:
    with pytest.raises(ValueError, match="not above 0"):
        state.write_link(ifindex, {})


@pytest.mark.parametrize("content", [b"{half", b"[]", b"\xff", b""])
def test_invalid_document_is_named(state: StateDirectory, content: bytes) -> None:
    Path(state.status_path).write_bytes(content)
    with pytest.raises(StateError, match=r"status\.json: not .*cnctl refresh"):
        state.read_status()


def test_a_file_that_cannot_be_read_is_named(state: StateDirectory) -> None:
    Path(state.system_path).mkdir()
    with pytest.raises(StateError, match=r"system: cannot be read: not a regular file"):
        state.read_system()


def test_strange_names_among_the_links_are_not_links(state: StateDirectory) -> None:
    for name in ("lost+found", "3.bak", "٣"):
        Path(state.links_path, name).write_text("{}")
    assert state.link_indexes() == []
    assert state.read_links() == {}


# Writer and date of the state


@pytest.fixture
def run_lock(state: StateDirectory) -> Iterator[RunLock]:
    lock = RunLock(state)
    yield lock
    lock.close()


def claimed(state: StateDirectory, run: str, **changes: object) -> Doubt | None:
    written = {**STATUS, "run": run, "boot_id": boot_id(), "renew_by": shapes.uptime() + 5, **changes}
    state.write_status(cast(shapes.Status, written))
    return state.read_claim().doubt


def test_no_fetcher_means_not_running(state: StateDirectory) -> None:
    assert state.read_claim() == Claim(None, Doubt.NOT_RUNNING)
    assert claimed(state, "0123456789abcdef") is Doubt.NOT_RUNNING


def test_status_of_the_running_fetcher_is_not_doubted(state: StateDirectory, run_lock: RunLock) -> None:
    assert claimed(state, run_lock.run) is None


def test_earlier_run_boot_and_missed_renewal_are_doubted(state: StateDirectory, run_lock: RunLock) -> None:
    assert state.read_claim().doubt is Doubt.EARLIER_RUN
    assert claimed(state, "0123456789abcdef") is Doubt.EARLIER_RUN
    assert claimed(state, run_lock.run, boot_id="f" * 32) is Doubt.EARLIER_BOOT
    assert claimed(state, run_lock.run, renew_by=shapes.uptime() - 6) is Doubt.NOT_RENEWED
    assert claimed(state, run_lock.run, renew_by=shapes.uptime() - 3) is None
    assert claimed(state, run_lock.run, compared_at=None) is Doubt.EARLIER_RUN, "its links are those of an earlier run"
    assert claimed(state, run_lock.run, compared_at=None, fetched_at=None) is None


@pytest.mark.parametrize("days", [-1, 0, 1])
def test_no_step_of_the_wall_clock_changes_the_judgement(
    state: StateDirectory, run_lock: RunLock, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """A hung fetcher is not taken for a running one, and fresh metadata is not taken for old."""
    stepped = time.time() + days * 86400
    monkeypatch.setattr(time, "time", lambda: stepped)
    fresh = {**STATUS, "run": run_lock.run, "boot_id": boot_id(), "fetched_at": shapes.rfc3339()}
    fresh |= {"renew_by": shapes.uptime() + 5, "fetched_uptime": shapes.uptime() - 12}
    state.write_status(cast(shapes.Status, fresh))
    assert (state.read_claim().doubt, state.read_claim().is_stale()) == (None, False)
    state.write_status(cast(shapes.Status, {**fresh, "fetched_uptime": shapes.uptime() - 5000}))
    assert (state.read_claim().doubt, state.read_claim().is_stale()) == (None, True)
    state.write_status(cast(shapes.Status, {**fresh, "renew_by": shapes.uptime() - 6}))
    assert state.read_claim().doubt is Doubt.NOT_RENEWED


def test_killed_fetcher_is_noticed_at_once(state: StateDirectory) -> None:
    program = (
        "import sys, time\n"
        "from cloud_network.fetcher.state import RunLock, StateDirectory\n"
        "lock = RunLock(StateDirectory(sys.argv[1]))\n"
        "print(lock.run, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, state.path], stdout=subprocess.PIPE, text=True) as fetcher:
        assert fetcher.stdout is not None
        run = fetcher.stdout.readline().strip()
        assert claimed(state, run) is None
        with pytest.raises(AlreadyRunning):
            RunLock(state)
        fetcher.kill()
    assert state.read_claim().doubt is Doubt.NOT_RUNNING


def test_readers_lock_neither_imitates_nor_stops_the_fetcher(state: StateDirectory) -> None:
    RunLock(state).close()
    with Path(state.lock_path).open("rb") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state.running_id() is None
        lock = RunLock(state)
        assert state.running_id() == lock.run
        lock.close()


# A compromised fetcher


def test_fifo_does_not_block_the_reader(state: StateDirectory) -> None:
    os.mkfifo(state.status_path)
    with pytest.raises(StateError, match=r"status\.json: cannot be read: not a regular file"):
        state.read_status()


@pytest.mark.parametrize("path", ["status.json", "links", "provider/aws"])
def test_symbolic_links_are_not_followed(state: StateDirectory, path: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("3", "document"):
        (elsewhere / name).write_text("{}")
    place = Path(state.path, path)
    if place.is_dir():
        place.rmdir()
    place.symlink_to(elsewhere / "3" if path == "status.json" else elsewhere)
    readers: dict[str, Callable[[], object]] = {
        "status.json": state.read_status,
        "links": state.link_indexes,
        "provider/aws": lambda: state.read_identity("aws", "document"),
    }
    with pytest.raises(StateError, match="cannot be read"):
        readers[path]()


def test_links_are_bounded_in_total(state: StateDirectory) -> None:
    for ifindex in range(2, 7):
        state.write_link(ifindex, {"mac": "a" * (1 << 20)})
    assert len(state.read_link(2) or {}) == 1
    with pytest.raises(StateError, match="links: larger than 4194304 bytes in total"):
        state.read_links()


def test_endless_and_nested_files_are_refused(state: StateDirectory) -> None:
    with Path(state.status_path).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StateError, match="larger than"):
        state.read_status()
    Path(state.system_path).write_text('{"a": -1e999}')
    with pytest.raises(StateError, match="-1e999 is too large"):
        state.read_system()
    Path(state.system_path).write_text('{"a":' * 100_000)
    with pytest.raises(StateError, match="not JSON"):
        state.read_system()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 1}, "version is 1 and not 3: .*Install one release"),
        ({"links": []}, "links: is not an object"),
        ({"links": {"3": {}}}, "links: has no name"),
        ({"fetched_at": "soon"}, "fetched_at is not an RFC 3339 time"),
        ({"fetched_at": "2026-01-02\n03:04:05Z"}, "fetched_at is not an RFC 3339 time"),
        ({"generation": True}, "generation: is not of type int"),
        ({"generation": 10**400}, "generation: is not below 9e"),
        ({"refresh_timer": -1e300}, "refresh_timer: is not below 9e"),
        ({"state": "fine"}, "state: is not one of ok, degraded"),
        ({"last_error": {"at": None}}, "last_error: at: is not of type str"),
    ],
)
def test_status_of_another_shape_is_refused(state: StateDirectory, change: dict[str, object], reason: str) -> None:
    state.write_status(cast(shapes.Status, {**STATUS, **change}))
    with pytest.raises(StateError, match=reason):
        state.read_status()


# --- the schema ---

VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_schema_and_example_are_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(STATUS)


def test_schema_and_types_have_the_same_keys() -> None:
    pairs = [
        (SCHEMA, shapes.Status),
        (SCHEMA["$defs"]["link"], shapes.LinkStatus),
        (SCHEMA["$defs"]["address"], shapes.AddressStatus),
        (SCHEMA["$defs"]["netagent"], shapes.NetagentStatus),
        (SCHEMA["$defs"]["error"], shapes.LastError),
        (SCHEMA["$defs"]["conflict"], shapes.ConflictStatus),
    ]
    for schema, shape in pairs:
        hints = get_type_hints(shape)
        assert list(schema["properties"]) == list(hints)
        assert schema["required"] == [key for key in hints if key in shape.__required_keys__]  # type: ignore[attr-defined]
        for key, hint in hints.items():
            if values := getattr(hint, "__args__", None):
                described = schema["properties"][key].get("enum")
                assert described is None or list(values) == described, key


def test_every_field_is_described() -> None:
    def fields(schema: dict[str, object]) -> None:
        for key, value in schema.get("properties", {}).items():  # type: ignore[attr-defined]
            assert len(value.get("description", "")) > 10, key
            fields(value)

    for schema in (SCHEMA, *SCHEMA["$defs"].values()):
        assert schema["description"]
        fields(schema)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1}, {"state": "fine"}, {"fetched_at": "yesterday"}, {"written_at": None}, {"surplus": 1},
        {"refresh_timer": 0}, {"links": {"eth0": {}}}, {"netagent": {"verdict": "ok"}}, {"generation": -1},
    ],
)  # fmt: skip
def test_schema_refuses_invalid_documents(change: dict[str, object]) -> None:
    assert list(VALIDATOR.iter_errors({**STATUS, **change}))


CONFLICT = {"object": "ip x", "times": 1, "since": shapes.rfc3339(), "next_at": None, "by": None}


@pytest.mark.parametrize("name", ["last_error.at", "netagent.at", "conflicts.since", "conflicts.next_at"])
def test_time_inside_a_member_must_be_a_time(state: StateDirectory, name: str) -> None:
    wrongs: dict[str, dict[str, object]] = {
        "last_error.at": {"last_error": {"at": "x", "kind": "kernel", "message": ""}},
        "netagent.at": {"netagent": {**cast(dict[str, object], STATUS["netagent"]), "at": "x"}},
        "conflicts.since": {"conflicts": [{**CONFLICT, "since": "x"}]},
        "conflicts.next_at": {"conflicts": [{**CONFLICT, "next_at": "x"}]},
    }
    state.write_status(cast(shapes.Status, {**STATUS, **wrongs[name]}))
    with pytest.raises(StateError, match=f"{name} is not an RFC 3339 time"):
        state.read_status()
