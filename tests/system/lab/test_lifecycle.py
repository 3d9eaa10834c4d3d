"""The instance's own files and users, and the cleanup of the lab."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import Lab, LabError, Spec
from tests.lab.processes import USERS

SMALL = Spec.aws(interfaces=2, addresses=1)
CHECKOUT = Path(__file__).parents[3]

HOLD_A_LAB = """
import signal, sys
from tests.lab import Lab, Spec
with Lab(Spec.aws(interfaces=2, addresses=1)) as lab:
    outlive = ["setpriv", "--reuid=cloud-network", "--regid=cloud-network", "--clear-groups", "setsid", "sleep", "1000"]
    lab.instance.popen(outlive)
    lab.reachability(timeout=0.1)
    lab.wait_for(lambda: "sleep" in lab.run(["ps", "-e"]).stdout)
    print(lab.instance.pid, flush=True)
    signal.pause()
"""


def host_state() -> dict[str, str]:
    """Return the host's state that a lab must not change."""
    commands = {"links": ["ip", "-br", "link"], "rules": ["ip", "rule"], "nft": ["nft", "list", "ruleset"]}
    state = {name: subprocess.run(argv, capture_output=True, text=True).stdout for name, argv in commands.items()}
    files = ("/etc/passwd", "/etc/group", "/etc/resolv.conf", "/proc/self/mounts", "/proc/sys/kernel/hostname")
    return state | {file: Path(file).read_text() for file in files if Path(file).exists()}


def processes_in_lab(instance: int) -> set[int]:
    """Return every process inside the same PID namespace, whatever its user or session."""
    inside = Path(f"/proc/{instance}/ns/pid").readlink()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").readlink() == inside:
                found.add(int(process.name))
        except OSError:
            continue
    return found


def all_gone(pids: set[int], timeout: float = 5) -> bool:
    end = time.monotonic() + timeout
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_nothing_is_left_after_the_end() -> None:
    before = host_state()
    with Lab(SMALL) as lab:
        assert host_state() == before
        lab.reachability(timeout=0.1)
        pids = processes_in_lab(lab.instance.pid)
        assert len(pids) > 6
    assert all_gone(pids, timeout=0)
    assert host_state() == before


def test_nothing_is_left_after_a_failure_inside() -> None:
    pids = set()

    def fail() -> None:
        with Lab(SMALL) as lab:
            pids.update(processes_in_lab(lab.instance.pid))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failure:
        fail()
    assert pids
    assert all_gone(pids, timeout=0)
    assert "no lost packets" in "".join(failure.value.__notes__)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_when_the_labs_process_is_killed(number: signal.Signals) -> None:
    before = host_state()
    argv = [sys.executable, "-c", HOLD_A_LAB]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pids = processes_in_lab(int(process.stdout.readline()))
        assert len(pids) > 6
        process.send_signal(number)
        try:
            process.wait(5)
        finally:
            process.kill()  # else the end of the block waits for ever
    assert all_gone(pids)
    assert host_state() == before


def test_the_instance_has_its_own_files() -> None:
    with Lab(SMALL) as lab:
        assert lab.run(["ls", "-A", "/var/log", "/etc/cloud-network"]).stdout.split() == [
            *("/etc/cloud-network:", "/var/log:"),
        ]
        assert lab.run(["ls", "/run"]).stdout.split() == ["lab"]
        assert lab.run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "eth1", "lo"]
        assert lab.run(["cat", "/sys/class/dmi/id/sys_vendor"], user="cloud-network").stdout == "Amazon EC2\n"
        assert lab.run(["cat", "/sys/class/dmi/id/product_uuid"], user="cloud-network", check=False).returncode == 1
        assert lab.run(["hostname"]).stdout == "ip-10-0-1-10\n"
        lab.write_config("[System]\n")
        assert lab.run(["cat", "/etc/cloud-network/cloud-network.toml"]).stdout == "[System]\n"
        assert lab.path("/etc/cloud-network/cloud-network.toml").read_text() == "[System]\n"


@pytest.mark.parametrize("user", USERS)
def test_the_daemons_users_exist_and_can_read_the_checkout(user: str) -> None:
    with Lab(SMALL) as lab:
        assert lab.run(["id", "-un"], user=user).stdout == f"{user}\n"
        assert lab.run(["id", "-u"], user=user).stdout == f"{USERS[user]}\n"
        assert lab.run([sys.executable, "-c", "import msgpack"], user=user).returncode == 0
        assert lab.run(["cat", str(Path(__file__))], user=user).stdout == Path(__file__).read_text()


def test_a_checkout_below_a_closed_directory_is_readable_inside(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    copy = closed / "src" / "checkout"
    shutil.copytree(CHECKOUT / "tests/lab", copy / "tests/lab")
    (closed / "secret").write_text("not for the daemons")
    closed.chmod(0o700)
    try_it = f"""
from tests.lab import Lab, Spec
with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
    print(lab.run(["ls", "{copy}/tests"], user="cloud-network").stdout)
    print(lab.run(["ls", "{closed}"], user="cloud-network").stdout)
"""
    done = subprocess.run([sys.executable, "-c", try_it], cwd=copy, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lab", "src"]
    assert (closed / "secret").exists()


def test_failed_program_is_an_error_with_its_output() -> None:
    with Lab(SMALL) as lab:
        with pytest.raises(LabError, match="ls: cannot access '/nowhere'"):
            lab.run(["ls", "/nowhere"])
        with pytest.raises(LabError, match=r"no namespace 'cellar'; there are instance, cloud"):
            lab.run(["true"], where="cellar")


def test_a_daemon_is_started_killed_and_its_log_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script in the daemon's place becomes the daemon's user and prints it."""
    script = tmp_path / "cloud-network-fetcher"
    script.write_text("#!/bin/sh\necho up as $(id -u)\nexec setpriv --reuid=cloud-network --clear-groups sleep 1000\n")
    script.chmod(0o755)
    monkeypatch.setattr("tests.lab.processes.SCRIPTS", tmp_path)
    with Lab(SMALL) as lab:
        lab.start("fetcher")
        lab.wait_for(lambda: "up as 0" in lab.log("fetcher"), message="the first start")
        lab.kill("fetcher")
        assert not lab.daemons.running("fetcher")
        lab.start("fetcher")
        with pytest.raises(LabError, match="running already"):
            lab.start("fetcher")
        lab.wait_for(lambda: lab.log("fetcher").count("up as 0") == 2, message="the second start")
        assert lab.stop("fetcher") == -signal.SIGTERM
        with pytest.raises(AssertionError, match=r"(?s)waited 0.1 s for a false condition.*fetcher \(ended.*up as 0"):
            lab.wait_for(lambda: False, timeout=0.1, message="a false condition")
