"""The demo: an instance with four interfaces becomes reachable, and stays so while the cloud changes.

`make demo`, or `python -m tests.lab.demo`. Every printed number is measured. Exit status 1 and the reason if a
measurement differs from the claim, 130 after ^C. The lab is removed in every case.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType

from .lab import Lab
from .namespaces import ENVIRONMENT, LabError
from .nic import Interface, Nic
from .privilege import become_root
from .processes import SCRIPTS, USERS
from .spec import Spec

CONFIG = """\
[System]
RefreshTimer = "2s"

[Netagent]
AllowKinds = "veth"
"""
INTERFACES, ADDRESSES = 4, 15
TIMEOUT_S = 8.0
"""Time limit in seconds for operations that take about two."""
UNPRIVILEGED = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--no-new-privs"]
"""An unprivileged user: cnctl needs no privilege to show the state."""
GREEN, RED, BOLD, DIM = "32", "31", "1", "2"
WIDTH = 78
NET_ADMIN = 1 << 12
"""CAP_NET_ADMIN of linux/capability.h."""


class DemoFailure(Exception):
    """A measurement differs from what the demo claims."""


def check_claim(truth: object, failure: str) -> None:
    if not truth:
        raise DemoFailure(failure)


# --- what the reader sees ---


def paint(text: str, colour: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def say(text: str = "", colour: str = "") -> None:
    for line in text.split("\n"):
        indented = f"  {line}" if line else ""
        print(paint(indented, colour) if colour and line else indented, flush=True)


def step(number: int, title: str) -> None:
    print("\n" + paint(f"{number}. {title}", BOLD), flush=True)


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a line with the current operation on a terminal, and remove it afterwards."""
    if not sys.stdout.isatty():
        yield
        return
    print(paint(f"  {text} …", DIM), end="", flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", flush=True)


def share(answered: int, of: int, width: int = 0) -> str:
    return paint(f"{answered} of {of}".rjust(width), GREEN if answered == of else RED)


def table(lab: Lab, reached: dict[tuple[str, str], bool], outbound: dict[str, bool]) -> None:
    """Print the reachability: a row for each host, a column for each interface."""
    column = min(12, (WIDTH - 26) // len(lab.nics))
    say("answered".ljust(26) + "".join(f"{nic.name:>{column}}" for nic in lab.nics), BOLD)
    say(" " * 26 + "".join(f"{nic.subnet.partition('/')[0]:>{column}}" for nic in lab.nics), DIM)

    def row(label: str, answered: Callable[[str], bool]) -> None:
        counts = [(sum(map(answered, nic.addresses)), len(nic.addresses)) for nic in lab.nics]
        say(f"{label:26}" + "".join(share(*count, width=column) for count in counts))

    for namespace in lab.beyond:
        row("a host beyond", lambda address, name=namespace.name: reached[name, address])  # type: ignore[misc]
    for number, (namespace, subnet) in enumerate(zip(lab.neighbours, lab.fabric.subnets, strict=True)):
        check_claim(namespace.name == f"neighbour{number}", "the lab has its neighbours in another order")
        label = f"a neighbour in {subnet.partition('/')[0]}"
        row(label, lambda address, name=namespace.name: reached[name, address])  # type: ignore[misc]
    row("outwards, from each", lambda address: outbound[address])


def measure(lab: Lab) -> tuple[dict[tuple[str, str], bool], dict[str, bool]]:
    """Connect from every host to every address, and from every address to a host beyond."""
    pairs = len(lab.sources) * len(lab.addresses)
    with progress(f"making {pairs} connections in and {len(lab.addresses)} out"):
        return lab.reachability(), lab.outbound()


def show_reachability(lab: Lab) -> None:
    """Measure, print, and require that every pair answers."""
    reached, outbound = measure(lab)
    table(lab, reached, outbound)
    say()
    say(
        f"{share(sum(reached.values()), len(reached))} pairs answer, each through the interface that owns the address;"
        f"\n{share(sum(outbound.values()), len(outbound))} addresses reach the outside."
    )
    silent = [f"{host} → {address}" for (host, address), answered in reached.items() if not answered]
    mute = [address for address, answered in outbound.items() if not answered]
    check_claim(not silent, f"no answer: {', '.join(silent[:5])} ({len(silent)} in all)")
    check_claim(not mute, f"no connection to the outside from {', '.join(mute[:5])} ({len(mute)} in all)")


# --- the steps ---


def show_unconfigured(lab: Lab) -> None:
    """Show that only the address from DHCP answers."""
    reached, outbound = measure(lab)
    table(lab, reached, outbound)
    first = lab.nics[0].addresses[0]
    say()
    say(
        f"{sum(reached.values())} of {len(reached)} pairs answer: only {first}, which DHCP configured.\n"
        "The cloud would deliver to the others; the instance has not configured them."
    )
    configured = {address for (_, address), answered in reached.items() if answered}
    check_claim(configured == {first}, f"answered before anything was started: {sorted(configured)}")
    check_claim(sum(reached.values()) == len(lab.sources), f"{first} does not answer every host")


def start(lab: Lab) -> None:
    """Start the daemons, and print their users and capabilities."""
    for name in ("netagent", "fetcher", "api"):
        lab.start(name)
    began = time.monotonic()
    with progress("waiting until every address answers"):
        wait_until(lab, lambda: all(lab.reachability(timeout=0.4).values()), "every address answers", TIMEOUT_S)
    took = time.monotonic() - began
    for name, user in zip(("netagent", "fetcher", "api"), USERS, strict=True):
        uid, capabilities = identity(lab.daemons.pid(name))
        wanted = NET_ADMIN if name == "netagent" else 0
        check_claim(uid == USERS[user], f"{name} runs as uid {uid}, not as {user}")
        check_claim(capabilities == wanted, f"{name} has the capabilities {capabilities:#x}, not {wanted:#x}")
        say(f"{name:10}{user:26}{'CAP_NET_ADMIN and nothing else' if wanted else 'no capability'}")
    say()
    say(f"All {len(lab.addresses)} addresses answer every host {took:.1f} s later.")


def identity(pid: int) -> tuple[int, int]:
    """Return the uid inside the instance, and the effective, permitted and ambient capabilities of a process."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    (uid,) = set(status["Uid"].split())
    return int(uid), int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapAmb"], 16)


def wait_until(lab: Lab, predicate: Callable[[], object], what: str, timeout: float) -> None:
    try:
        lab.wait_for(predicate, timeout, what)
    except AssertionError:
        raise DemoFailure(f"not within {timeout:g} s: {what}") from None  # the lab adds the logs


def seconds_until_answering(lab: Lab, addresses: Sequence[str]) -> float:
    """Return the seconds until every host gets answers from these addresses."""
    began = time.monotonic()
    with progress(f"waiting for {', '.join(addresses)}"):
        wait_until(
            lab,
            lambda: all(lab.reachability(addresses, timeout=0.2).values()),
            f"{', '.join(addresses)} answer",
            TIMEOUT_S,
        )
    return time.monotonic() - began


def change(lab: Lab) -> None:
    """Change the cloud as an operator would in its console, while a client is connected."""
    say("RefreshTimer is 2s here; times are from the change to the answers.", DIM)
    nic = lab.nics[1]
    kept = lab.hold_connection(nic.addresses[0])
    address = str(nic.network[200])
    lab.add_address(nic.mac, address)
    say(f"{address} added to {nic.name}: answers after {seconds_until_answering(lab, [address]):.1f} s")
    subnet = f"10.0.{INTERFACES + 1}.0/24"
    new: Nic = lab.attach_interface(Interface(subnet, addresses=3))
    seconds = seconds_until_answering(lab, new.addresses)
    say(f"{new.name} plugged in, {new.subnet}, 3 addresses: all answer after {seconds:.1f} s")
    check_claim(kept.alive(), f"the connection to {nic.addresses[0]} was lost")
    say(f"A connection to {nic.addresses[0]}, opened before the changes, is still open.")
    say()
    show_reachability(lab)


def status(lab: Lab) -> None:
    """Run the real cnctl on a separate terminal."""
    program = str(SCRIPTS / "cnctl")
    shown = terminal(lab, [program, "status", "network"])
    blocks = shown.strip("\n").split("\n\n")
    check_claim(len(blocks) == len(lab.nics), f"cnctl shows {len(blocks)} interfaces of {len(lab.nics)}:\n{shown}")
    missing = [address for address in lab.addresses if f" {address}/24" not in shown]
    check_claim(not missing, f"cnctl does not show {', '.join(missing[:5])}")
    say(f"$ cnctl status network        (as uid 1000; 2 of the {len(blocks)} interfaces)", DIM)
    last = next(block for block in blocks if lab.nics[-1].mac in block)
    say("\n".join(line.rstrip() for line in f"{blocks[0]}\n\n{last}".split("\n")))


def terminal(lab: Lab, argv: Sequence[str]) -> str:
    """Return the output of a program on a terminal of WIDTH columns."""
    parent_end, child_end = pty.openpty()
    environment = {**ENVIRONMENT, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    with subprocess.Popen(
        lab.instance.enter(*UNPRIVILEGED, *argv),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=child_end,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        os.close(child_end)
        shown = b""
        with (
            contextlib.suppress(OSError),
            os.fdopen(parent_end, "rb", buffering=0) as stream,
        ):  # EIO: the program has exited
            while chunk := stream.read(4096):
                shown += chunk
        errors = process.stderr.read().decode() if process.stderr else ""
    check_claim(process.returncode == 0, f"{' '.join(argv)} ended with {process.returncode}:\n{shown.decode()}{errors}")
    return shown.decode().replace("\r\n", "\n")


def rules(lab: Lab) -> None:
    """Show the rules: two for each subnet, and the one between them."""
    lines = lab.run(["ip", "rule"]).stdout.splitlines()

    def kind(line: str) -> str:
        return re.sub(r"from [0-9./]+ iif lo lookup \d+", "from SUBNET iif lo lookup TABLE", line)

    say(f"$ ip rule        ({len(lines)} lines)", DIM)
    for _, alike in groupby(lines, kind):
        first, *rest = alike
        say(first.expandtabs())
        if rest:
            say(f"        … and {len(rest)} more, one for each interface", DIM)
    counts = Counter(re.findall(r"from ([0-9./]+) iif lo lookup 1", "\n".join(lines)))
    wrong = [nic.subnet for nic in lab.nics if counts[nic.subnet] != 2]
    check_claim(not wrong, f"not two rules: {', '.join(wrong[:5])}")
    check_claim(len(counts) == len(lab.nics), "there are rules for unknown subnets")


def audit(lab: Lab) -> None:
    """Show the requests in the audit log, and verify its hash chain."""
    lines = lab.path("/var/log/cloud-network/audit.log").read_text().splitlines()
    previous = "0" * 64
    for line in lines:
        body, _, rest = line.rpartition(',"hash":"')
        digest = hashlib.sha256(body.encode()).hexdigest()
        check_claim(
            rest == f'{digest}"}}' and json.loads(line)["prev"] == previous, f"the audit chain is broken: {line}"
        )
        previous = digest
    entries = [json.loads(line) for line in lines]
    check_claim(
        {entry["peer"]["uid"] for entry in entries} == {USERS["cloud-network"]}, "a request is not from the fetcher"
    )
    say(f"audit.log        ({len(lines)} lines, all requests from the fetcher; the chain is valid)", DIM)
    for entry in entries:
        operations = Counter(operation["op"] for operation in entry.get("ops", ()))
        which = ", ".join(f"{count} {operation.replace('_', ' ')}" for operation, count in operations.items())
        which = re.sub(r"(\d+) (\w+) (add|replace)", r"+\1 \2", re.sub(r"(\d+) (\w+) remove", r"-\1 \2", which))
        tail = f" #{entry['hash'][:6]}"
        width = WIDTH - len(tail)
        text = f"{entry['seq']} {entry['time'][11:19]} {entry['verdict']:10}{which}"
        say((text if len(text) <= width else text[: width - 1] + "…").ljust(width) + tail)
    verdicts = Counter(entry["verdict"] for entry in entries)
    check_claim(verdicts["applied"] >= 3, f"the audit log has {verdicts['applied']} changes; expected at least 3")
    check_claim(not verdicts["refused"], "the audit log has refusals")


def demonstrate() -> None:
    began = time.monotonic()
    print(paint("cloud-network: an instance with four interfaces, from unreachable to reachable", BOLD))
    step(1, f"A cloud in network namespaces: {INTERFACES} interfaces × {ADDRESSES} addresses, AWS metadata")
    with Lab(Spec.aws(INTERFACES, ADDRESSES)) as lab:
        lab.write_config(CONFIG)
        show_unconfigured(lab)
        step(2, "Start the three processes")
        start(lab)
        step(3, "Measure again")
        show_reachability(lab)
        step(4, "Change the cloud while it runs")
        change(lab)
        step(5, "Look at the instance")
        status(lab)
        say()
        rules(lab)
        say()
        audit(lab)
        inside = [namespace.pid for namespace in (lab.instance, lab.cloud, *lab.beyond, *lab.neighbours)]
    left = [pid for pid in inside if Path(f"/proc/{pid}").exists()]
    check_claim(not left, f"the lab is closed, and these of its processes are left: {left}")
    print()
    print(paint(f"All checks passed. The lab was removed; it took {time.monotonic() - began:.1f} s.", GREEN))


def interrupt(number: int, _: FrameType | None) -> None:
    """End the demo at the first signal, and ignore further ones during the cleanup."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> int:
    become_root([sys.executable, "-m", "tests.lab.demo", *sys.argv[1:]])
    if sys.argv[1:]:
        print("usage: python -m tests.lab.demo", file=sys.stderr)
        return 2
    missing = [tool for tool in ("ip", "nft", "nsenter") if not shutil.which(tool, path=ENVIRONMENT["PATH"])]
    if missing:
        print(f"demo: {', '.join(missing)} missing: apt-get install iproute2 nftables", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        demonstrate()
    except (DemoFailure, LabError) as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        print(f"\n{paint('This failed', RED)}: {error}\n{notes}".rstrip(), flush=True)
        return 1
    except SystemExit as end:
        print("\nInterrupted; the lab was removed.", flush=True)
        return int(end.code or 0)
    except BrokenPipeError:  # make demo | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
