"""The complete service in the lab: start the three daemons, call the fetcher, inspect kernel, files and logs."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab import Lab, Spec

CONFIG = '[Netagent]\nAllowKinds = "veth"\n'
DAEMONS = ("netagent", "fetcher", "api")
MACS = "/latest/meta-data/network/interfaces/macs/"
PROTOCOL = "209"  # the protocol number of routes and rules in the output of ip
TIMES = ("valid_life_time", "preferred_life_time", "expires")

Kernel = dict[str, list[dict[str, Any]]]


@contextmanager
def running_lab(spec: Spec, config: str = "", *daemons: str) -> Iterator[Lab]:
    """Yield a lab whose daemons (all, or those named) have configured the network."""
    with Lab(spec) as lab:
        lab.write_config(CONFIG + config)
        for name in daemons or DAEMONS:
            lab.start(name)
        wait_until_healthy(lab)
        if "api" in (daemons or DAEMONS):  # it may be the last to start
            lab.wait_for(lambda: api_answers(lab), 30, "the api to answer")
        yield lab


def send_command(lab: Lab, command: str) -> dict[str, Any]:
    """Send a command over the control socket, as root. Raises OSError if no fetcher answers."""
    body = json.dumps({"command": command}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(str(lab.path("/run/cloud-network/control.sock")))
        client.sendall(struct.pack(">I", len(body)) + body)
        with client.makefile("rb") as stream:
            header = stream.read(4)
            if len(header) < 4:
                raise ConnectionResetError("the fetcher ended before it answered")
            (size,) = struct.unpack(">I", header)
            answer: dict[str, Any] = json.loads(stream.read(size))
    return answer


def cnctl(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cnctl as a user of the host."""
    return lab.run([str(Path(sys.executable).with_name("cnctl")), *arguments], user="daemon", check=False)


def refresh(lab: Lab) -> str:
    """Make the fetcher read the metadata and compare the kernel now; return the resulting state."""
    answer = send_command(lab, "refresh")
    assert answer["ok"], answer
    return str(answer["result"]["state"])


def status(lab: Lab) -> dict[str, Any]:
    """Return status.json; {} if it does not exist."""
    path = lab.path("/run/cloud-network/status.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def kernel_addresses(lab: Lab) -> set[str]:
    """Return the addresses that the kernel has on the links that the metadata names."""
    names = {nic.name for nic in lab.nics}
    return {entry["local"] for link in ip(lab, "address") if link["ifname"] in names for entry in link["addr_info"]}


def is_healthy(lab: Lab) -> bool:
    """Return True if the fetcher reports a healthy network, for the present state of the cloud."""
    links = status(lab).get("links", {}).values()
    reported = {entry["address"] for link in links for entry in link["addresses"]}
    return status(lab).get("state") == "ok" and reported == {
        *lab.addresses,
        *(six for nic in lab.nics for six in nic.ipv6),
    }


def api_answers(lab: Lab) -> bool:
    """Return True if the api answers."""
    asked = ["curl", "--silent", "--output", "/dev/null", "http://127.0.0.1:5209/api/v1/health"]
    return lab.run(asked, check=False).returncode == 0


def wait_until_healthy(lab: Lab) -> None:
    lab.wait_for(lambda: is_healthy(lab), 20, "a healthy network")


def read_all_facts(lab: Lab) -> None:
    """Wait until all facts are read: two refreshes send the same requests, and no further ones are pending."""
    before: list[str] = []
    while True:
        lab.metadata.reset()
        refresh(lab)
        now = lab.metadata.paths()
        if now == before:
            return
        before = now


def ip(lab: Lab, *what: str) -> list[dict[str, Any]]:
    """Return the JSON of `ip -j WHAT` in the instance."""
    return [entry for entry in json.loads(lab.run(["ip", "-j", *what]).stdout or "[]") if entry]


def kernel(lab: Lab) -> Kernel:
    """Return addresses, routes and rules, without lifetimes and link-local addresses, which change by themselves."""
    addresses = ip(lab, "-d", "address")
    for link in addresses:
        link["addr_info"] = [_timeless(entry) for entry in link["addr_info"] if entry.get("scope") != "link"]
    found = {"address": addresses}
    for version in ("-4", "-6"):
        routes = ip(lab, "-d", version, "route", "show", "table", "all")
        kept = [_timeless(route) for route in routes if not _is_made_by_kernel(route)]
        found[f"route{version}"] = sorted(kept, key=str)
        found[f"rule{version}"] = ip(lab, version, "rule")
    return found


def without_order(found: Kernel) -> tuple[object, object]:
    """Return the same with addresses and rules sorted: their order of addition does not matter."""
    links = {str(link["ifname"]): (link["flags"], sorted(map(str, link["addr_info"]))) for link in found["address"]}
    return links, {what: sorted(map(str, entries)) for what, entries in found.items() if what != "address"}


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in TIMES}


def _is_made_by_kernel(route: dict[str, Any]) -> bool:
    return str(route["dst"]).startswith(("fe80:", "ff00:")) or (route["dst"] == "anycast")


def own_objects(lab: Lab, what: str) -> list[dict[str, Any]]:
    """Return the routes or rules (`route-4`, `rule-6` …) with protocol 209."""
    return [entry for entry in kernel(lab)[what] if str(entry.get("protocol")) == PROTOCOL]


def audit(lab: Lab) -> list[dict[str, Any]]:
    """Return the lines of the audit log."""
    path = lab.path("/var/log/cloud-network/audit.log")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def errors(lab: Lab) -> list[str]:
    """Return the fetcher's warnings and errors."""
    return [line for line in lab.log("fetcher").splitlines() if "level=error" in line or "level=warning" in line]
