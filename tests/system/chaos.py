"""Random events on an instance, and the state that must hold after them.

A seed determines the sequence of events, but not the moment at which each happens within the daemons' work. A replay
therefore repeats the events and not the races. A failure prints its seed and its last events.
"""

from __future__ import annotations

import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

from tests.lab import HeldConnection, Interface, Lab, LabError, Nic, Spec
from tests.system.host_events import HostEvents
from tests.system.service import (
    CONFIG,
    DAEMONS,
    MACS,
    PROTOCOL,
    audit,
    ip,
    is_healthy,
    refresh,
    status,
    wait_until_healthy,
)

# A prohibit route for the metadata server needs it: see docs/coexistence.md.
UNFILTERED = {"net.ipv4.conf.default.rp_filter": "0"}
# So that a wrong answer, which the next one corrects, lasts for a second.
REFRESH_CONFIG = '[System]\nRefreshTimer = "1s"\n'
SUBNETS = tuple(f"10.0.{number}.0/24" for number in (2, 3, 21, 22))
MOST_LINKS, MOST_ADDRESSES = 6, 12
BASE = 9999
LOG_LINES = 150  # of the fetcher's log, after a violation
SETTLE_S = 60.0  # longer than the backoff of a conflict in this test
ADVERTISEMENT_S = 10.0  # between two router advertisements of the calm period; hosts lose them in various events

FOREIGN_OBJECTS = (
    "link add operator0 type bridge",
    "link set operator0 addrgenmode none",
    "address add 192.0.2.1/24 dev operator0",
    "link set operator0 up",
    "address add 192.0.2.55/32 dev eth0",
    "route add 203.0.113.64/26 via 10.0.1.1 dev eth0 proto static",
    "route add default via 192.0.2.9 dev operator0 table 77",
    "route add blackhole 198.18.0.0/15 table 77",
    "rule add pref 100 fwmark 0x51 lookup 77",
    "rule add pref 31000 from 192.0.2.55 lookup 77",
    "rule add pref 32000 to 192.0.2.128/25 lookup 77 protocol static",
)
"""Objects of an operator, a VPN and a container network, which must not change."""

# Faults that never prove a removal; and faults that two equal reads would prove, so they last for one read only.
PERSISTENT_FAULTS = ("timeout", "refuse", "reset", "html", "truncated", 401, 429, 500, 503)
SINGLE_FAULTS = ("short", "empty")


@contextmanager
def chaos(seed: int) -> Iterator[Chaos]:
    """Yield a healthy lab with three interfaces and all daemons."""
    with Lab(replace(Spec.cloud("aws", interfaces=3, addresses=5, ipv6=2), sysctl=UNFILTERED)) as lab:
        lab.write_config(REFRESH_CONFIG + CONFIG)
        lab.batch(FOREIGN_OBJECTS)
        for name in DAEMONS:
            lab.start(name)
        wait_until_healthy(lab)
        yield Chaos(lab, seed)


class Chaos:
    """Causes events in a lab, and checks the state afterwards."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab, self.seed, self.events = lab, seed, 0
        self._chance = random.Random(seed)
        self._last = deque[str](maxlen=25)
        self._halved: str | None = None  # MAC of the interface that one read lacks an address of
        self._advertised_at = 0.0
        primary, second = lab.nics[0], lab.nics[1]
        self._kept = {primary.addresses[0], second.addresses[2]}
        self._safe_links = {primary.mac, second.mac}
        self._held: list[HeldConnection] = [
            lab.hold_connection(primary.addresses[0]),
            lab.hold_connection(second.addresses[2], ("neighbour", 0)),
        ]
        self._foreign = self._foreign_objects()
        self._firsts = {nic.mac: nic.addresses[0] for nic in lab.nics}
        self._audited, self._stayed = len(audit(lab)), set(lab.addresses)
        self.unlisted = set[str]()
        self._host = HostEvents(lab, self._chance, REFRESH_CONFIG + CONFIG, self._safe_links, self._expect_removal)
        self._actions: dict[Callable[[], str | None], int] = {
            self._add_address: 4,
            self._remove_address: 4,
            self._remove_first: 1,
            self._attach: 2,
            self._detach: 2,
            self._delete_kernel_address: 3,
            self._delete_kernel_rule: 3,
            self._flush_kernel_routes: 3,
            self._link_down: 1,
            self._mtu: 1,
            self._kill: 3,
            self._fault: 4,
            self._fault_once: 2,
            self._wrong_mac: 1,
            self._partial: 1,
            self._half_updated: 3,
            self._clear: 2,
            self._refresh: 2,
            **self._host.events,
        }

    def round(self, events: int, linger: float = 0.0) -> None:
        """Cause events, then check the state in a calm period. An AssertionError names the seed and the last events.

        With `linger`, the daemons first run for `linger` seconds with the faults that the events caused.
        """
        try:
            for _ in range(events):
                self.event()
            if linger:
                self._all_run()
                time.sleep(linger)
            self._check_calm()
        except (AssertionError, LabError) as error:
            with suppress(Exception):
                error.add_note("\n".join(self.differences()))
                state = status(self.lab)
                drift = [line for link in state["links"].values() for line in link["drift"]]
                keys = ("state", "last_error", "netagent", "conflicts", "unknown_macs")
                error.add_note("\n".join([*drift, *(f"{key}: {state[key]}" for key in keys)]))
                log = [line for line in self.lab.log("fetcher").splitlines() if "requests refresh" not in line]
                error.add_note("\n".join(log[-LOG_LINES:]))
            error.add_note(f"seed {self.seed}, after {self.events} events; the last:\n  " + "\n  ".join(self._last))
            raise

    def unmanaged(self) -> set[str]:
        """Return the MACs of the interfaces that the metadata does not list or that the configuration excludes."""
        return self.unlisted | self._host.excluded

    def last_events(self) -> list[str]:
        """Return the last events, with their times (UTC)."""
        return list(self._last)

    def event(self) -> None:
        action = self._chance.choices(list(self._actions), list(self._actions.values()))[0]
        if description := action():
            self.events += 1
            self._last.append(f"{datetime.now(UTC):%H:%M:%S.%f} {description}")
        time.sleep(self._chance.choice((0.0, 0.0, 0.02, 0.1, 0.4)))

    # — checks

    def _check_calm(self) -> None:
        """End all faults, wait until the network is healthy, and check everything."""
        lab = self.lab
        self._clear()
        self._host.undo()
        self._halved = None
        lab.wait_for(lambda: self._is_calm() and not self.differences(), SETTLE_S, "a healthy network")
        foreign = self._foreign_objects()
        assert foreign == self._foreign, f"objects of other programs were\n{self._foreign}\nand are now\n{foreign}"
        self._check_removals()
        assert all(held.alive() for held in self._held), "a connection broke"
        for name in ("fetcher", "netagent"):
            _, traceback, text = lab.log(name).partition("Traceback")
            assert not traceback, f"{name}: {traceback}{text[:3000]}"

    def _is_calm(self) -> bool:
        if time.monotonic() >= self._advertised_at + ADVERTISEMENT_S:
            self._advertised_at = time.monotonic()
            for subnet in self.lab.fabric.subnets:
                self.lab.fabric.advertise(subnet)
        with suppress(OSError):  # the fetcher is starting or ending: no socket, or one without a listener
            return self._all_run() and refresh(self.lab) == "ok" and is_healthy(self.lab)
        return False

    def differences(self) -> list[str]:
        """Return the differences between the kernel and the cloud, computed without the fetcher."""
        links = {link["address"]: link for link in ip(self.lab, "address")}
        found = []
        for nic in self.lab.nics:
            link = links[nic.mac]
            has = {each["local"] for each in link["addr_info"] if each["family"] == "inet"} - {"192.0.2.55"}
            has6 = {each["local"] for each in link["addr_info"] if each["family"] == "inet6"}
            found += [f"{nic.name}: address {each}" for each in has ^ set(nic.addresses)]
            found += [f"{nic.name}: address {each}" for each in set(nic.ipv6) - has6]
            found += [] if "UP" in link["flags"] else [f"{nic.name} is down"]
        tables = {nic.mac: str(BASE + int(links[nic.mac]["ifindex"])) for nic in self.lab.nics}
        wanted, actual = self._routes_wanted(tables), self._routes()
        found += [f"lacks {each}" for each in wanted - actual] + [f"has {each}" for each in actual - wanted]
        return found + self._wrong_rules(tables)

    def _routes_wanted(self, tables: dict[str, str]) -> set[tuple[object, ...]]:
        wanted = set[tuple[object, ...]]()
        for nic in self.lab.nics:
            wanted.add((tables[nic.mac], nic.subnet, None))
            siblings = {other.subnet for other in self.lab.nics} - {nic.subnet}
            wanted |= {(tables[nic.mac], each, nic.gateway) for each in (*siblings, "default")}
        return wanted

    def _routes(self) -> set[tuple[object, ...]]:
        routes = ip(self.lab, "-d", "-4", "route", "show", "table", "all", "proto", PROTOCOL)
        return {(str(route["table"]), route["dst"], route.get("gateway")) for route in routes}

    def _rules(self) -> list[dict[str, Any]]:
        return [rule for rule in ip(self.lab, "-4", "rule") if rule.get("protocol") == PROTOCOL]

    def _wrong_rules(self, tables: dict[str, str]) -> list[str]:
        """Return errors in the rules: in both steps each address has exactly one rule, that of its link, and no rule is
        unused.
        """
        rules = self._rules()
        named = {step: [rule for rule in rules if rule["priority"] == step] for step in (31000, 31020)}
        found = (
            [] if [rule["src"] for rule in rules if rule["priority"] == 31010] == ["all"] else ["not one rule for main"]
        )
        for step, those in named.items():
            left = {f"{rule['src']}/{rule.get('srclen', 32)}": rule["table"] for rule in those}
            idle = set(left)
            for nic in self.lab.nics:
                for address in map(ip_address, nic.addresses):
                    at = [network for network in left if address in ip_network(network)]
                    idle -= set(at)
                    if [left[network] for network in at] != [tables[nic.mac]]:
                        found.append(f"{step}: {address} of {nic.name} has {at}")
            found += [f"{step}: unused rule: {network}" for network in idle]
            found += [f"{step}: duplicate rule"] if len(left) < len(those) else []
        return found

    def _foreign_objects(self) -> str:
        """Return the objects of other programs as text."""
        shown = [
            self.lab.run(["ip", *what.split()]).stdout
            for what in (
                "-4 -o address show dev operator0",
                "-o link show dev operator0",
                "-o address show to 192.0.2.55 dev eth0",
                "-d route show table 77",
                "-d route show table main proto static",
                "-d rule show pref 100",
                "-d rule show pref 32000",
            )
        ]
        rules = self.lab.run(["ip", "-d", "rule"]).stdout.splitlines(keepends=True)
        return "".join([*shown, *(rule for rule in rules if "192.0.2.55" in rule)])

    def _check_removals(self) -> None:
        """Check that no address was removed that the cloud had all the time, whatever the metadata server answered."""
        lines = audit(self.lab)
        stayed = self._stayed & set(self.lab.addresses)
        for line in lines[self._audited :]:
            ops = line.get("ops") or []
            added = {op["address"] for op in ops if op["op"] == "address_add"}  # with another prefix length
            removed = {op["address"] for op in ops if op["op"] == "address_remove"} & stayed - added
            assert not removed, f"request {line['id']} removed {removed}, which the cloud always had"
        self._audited, self._stayed = len(lines), set(self.lab.addresses)

    def _all_run(self) -> bool:
        for name in DAEMONS:
            if not self.lab.daemons.running(name):
                self.lab.start(name)
                time.sleep(0.5)
        return all(self.lab.daemons.running(name) for name in DAEMONS)

    # — events; each returns its description, or None if it was not possible

    def _nic(self, *, safe: bool = True) -> Nic | None:
        return self._choose([nic for nic in self.lab.nics if safe or nic.mac not in self._safe_links])

    def _choose(self, among: list[Nic]) -> Nic | None:
        return self._chance.choice(among) if among else None

    def _free(self, subnet: str) -> str:
        taken = set(self.lab.addresses)
        hosts = [subnet.replace(".0/24", f".{last}") for last in range(10, 200)]
        return self._chance.choice([host for host in hosts if host not in taken])

    def _add_address(self) -> str | None:
        possible = [nic for nic in self.lab.nics if len(nic.addresses) < MOST_ADDRESSES and nic.mac != self._halved]
        nic = self._choose(possible)
        if nic is None:
            return None
        address = self._free(nic.subnet)
        self.lab.add_address(nic.mac, address)
        return f"cloud: {address} added to {nic.name}"

    def _remove_address(self) -> str | None:
        nic = self._choose([nic for nic in self.lab.nics if len(nic.addresses) > 3])
        if nic is None:
            return None
        return self._remove_one(nic, self._chance.choice([each for each in nic.addresses if each not in self._kept]))

    def _remove_first(self) -> str | None:
        """Remove the address with the subnet's length, and with it main's connected route."""
        nic = self._choose(
            [nic for nic in self.lab.nics if len(nic.addresses) > 1 and nic.addresses[0] not in self._kept]
        )
        return None if nic is None else self._remove_one(nic, nic.addresses[0])

    def _remove_one(self, nic: Nic, address: str) -> str:
        self.lab.remove_address(nic.mac, address)
        self._stayed.discard(address)
        return f"cloud: {address} removed from {nic.name}"

    def _attach(self) -> str | None:
        if len(self.lab.nics) >= MOST_LINKS:
            return None
        subnet = self._chance.choice(SUBNETS)
        addresses = {self._free(subnet) for _ in range(self._chance.randint(1, 5))}
        first = self._chance.choice(("metadata", "interface"))
        pause = self._chance.choice((0.0, 0.1, 1.0))
        nic = self.lab.attach_interface(
            Interface(subnet, tuple(sorted(addresses)), ipv6=self._chance.randint(0, 2)),
            first_update=first,  # type: ignore[arg-type]
            between_updates=lambda: time.sleep(pause),
        )
        self._firsts[nic.mac] = nic.addresses[0]
        if self.unlisted:  # the faulty list of interfaces does not have this one either
            self.unlisted.add(nic.mac)
        return f"cloud: {nic.name} in {subnet} attached, {first} first, {pause} s before the other"

    def _detach(self) -> str | None:
        nic = self._nic(safe=False)
        if nic is None or len(self.lab.nics) <= 2:
            return None
        first = self._chance.choice(("metadata", "interface"))
        self.lab.detach_interface(nic.mac, first_update=first)  # type: ignore[arg-type]
        self._stayed -= set(nic.addresses)
        return f"cloud: {nic.name} detached, {first} first"

    def _delete_kernel_address(self) -> str | None:
        nic = self._nic()
        lost = [each for each in nic.addresses if each not in self._kept] if nic else []
        if nic is None or not lost:
            return None
        address = self._chance.choice(lost)
        self._ip(f"address flush dev {nic.name} to {address}/32")
        return f"ip: {address} removed"

    def _delete_kernel_rule(self) -> str | None:
        rules = self._rules()
        if not rules:
            return None
        lost = self._chance.choice(rules)
        source = "all" if lost["src"] == "all" else f"{lost['src']}/{lost.get('srclen', 32)}"
        self._ip(f"rule del pref {lost['priority']} from {source} lookup {lost['table']}")
        return f"ip: rule {lost['priority']} from {source} removed"

    def _flush_kernel_routes(self) -> str | None:
        nic = self._nic()
        if nic is None:
            return None
        what = self._chance.choice(("default", nic.subnet, "") if self._has_its_first(nic) else ("default",))
        self._ip(f"route flush {what} table all proto {PROTOCOL} dev {nic.name}")
        return f"ip: routes to {what or 'everywhere'} by {nic.name} removed"

    def _has_its_first(self, nic: Nic) -> bool:
        """Return True if the address with the subnet's length is there.

        Without it, netagent may refuse to restore the subnet's route: see
        test_shared_subnet_route_survives_its_first_address.
        """
        return self._firsts.setdefault(nic.mac, nic.addresses[0]) in nic.addresses

    def _link_down(self) -> str | None:
        nic = self._nic(safe=False)
        if nic is None or not self._has_its_first(nic) or nic.mac in self.unlisted:
            return None
        self._ip(f"link set {nic.name} down")
        return f"ip: {nic.name} set down"

    def _mtu(self) -> str | None:
        nic = self._nic(safe=False)
        if nic is None:
            return None
        self._ip(f"link set {nic.name} mtu {self._chance.choice((1400, 1500))}")
        return f"ip: MTU of {nic.name} changed"

    def _ip(self, what: str) -> None:
        """Run `ip`; the object may not exist any more."""
        self.lab.run(["ip", *what.split()], check=False)

    def _kill(self) -> str:
        name = self._chance.choice(DAEMONS)
        number = self._chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        again = self._chance.random() < 0.7
        if self.lab.daemons.running(name):
            self.lab.kill(name, number)
        if again and not self.lab.daemons.running(name):
            self.lab.start(name)
        return f"{name} ended by {number.name}" + (" and started again" if again else "")

    def _path(self) -> str:
        nic = self._chance.choice(self.lab.nics)
        return self._chance.choice(("*", "*", "/latest/api/token", MACS, f"{MACS}{nic.mac}/", f"{MACS}{nic.mac}/*"))

    def _fault(self) -> str:
        kind, path = self._chance.choice(PERSISTENT_FAULTS), self._path()
        if isinstance(kind, int):
            self.lab.metadata.fail("status", path, status=kind, retry_after=1 if kind in (429, 503) else None)
        else:
            self.lab.metadata.fail(kind, path)
        return f"metadata: {kind} for {path}"

    def _fault_once(self) -> str:
        kind, path = self._chance.choice(SINGLE_FAULTS), self._path()
        self.lab.metadata.fail(kind, path, times=1)
        return f"metadata: {kind} for {path}, once"

    def _wrong_mac(self) -> str | None:
        macs = [nic.mac for nic in self.lab.nics]
        wrong = self._chance.randrange(len(macs))
        if not self._is_up(self.lab.nics[wrong]):
            return None
        macs[wrong] = macs[wrong][:-2] + "ff"
        self.unlisted.add(self.lab.nics[wrong].mac)
        self.lab.metadata.content(MACS, "".join(f"{mac}/\n" for mac in macs))
        return f"metadata: a wrong MAC for device {wrong}"

    def _partial(self) -> str | None:
        """Leave an interface out of the metadata, for less time than its removal needs."""
        nic = self._nic(safe=False)
        if nic is None or not self._is_up(nic):
            return None
        self.unlisted.add(nic.mac)
        self.lab.metadata.content(MACS, "".join(f"{each.mac}/\n" for each in self.lab.nics if each != nic))
        return f"metadata: {nic.name} is missing"

    def _is_up(self, nic: Nic) -> bool:
        """Return False for a link that is down: if the metadata omit its interface, two reads prove its absence."""
        return any(link["address"] == nic.mac and "UP" in link["flags"] for link in ip(self.lab, "link"))

    def _half_updated(self) -> str | None:
        """Leave an address out of one read of one key. Only once: two equal reads would be a change of the cloud."""
        nic = self._nic()
        known = [each for each in nic.addresses if each in self._stayed] if nic else []
        if nic is None or self._halved or len(nic.addresses) < 2 or not known:
            return None
        self._halved, missing = nic.mac, self._chance.choice(known)
        listed = [each for each in nic.addresses if each != missing]
        self.lab.metadata.content(f"{MACS}{nic.mac}/local-ipv4s", "\n".join(listed), times=1)
        return f"metadata: {missing} of {nic.name} is missing, once"

    def _clear(self) -> str:
        self.lab.metadata.clear()
        self.unlisted.clear()
        return "metadata: recovered"

    def _expect_removal(self, nic: Nic) -> None:
        """Expect the removal of this interface's addresses."""
        self._stayed -= set(nic.addresses)

    def _refresh(self) -> str:
        if self.lab.daemons.running("fetcher"):
            self.lab.kill("fetcher", signal.SIGHUP)
        return "fetcher: reload requested"
