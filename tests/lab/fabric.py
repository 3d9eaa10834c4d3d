"""The cloud's network: a bridge per subnet, a port per interface, and the filter of a cloud (filter.py).

Hosts and the router have permanent neighbour entries for the instance's MACs, as in a cloud; only the instance uses ARP
and neighbour discovery. A delegated range is routed to its owner through a separate neighbour entry.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path

from .convention import Convention
from .filter import Filter, LostPackets
from .namespaces import Namespace
from .nic import Nic
from .spec import BEYOND_SUBNET, BEYOND_SUBNET6, neighbour_address, neighbour_address6

ROUTER6 = Path(__file__).with_name("router6.py")
TIMEOUT_S = 10.0


@dataclass
class Subnet:
    """A bridge, and the other hosts on it."""

    number: int
    cidr: str
    router: str
    neighbour: Namespace
    prefixes6: list[str] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"sn{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:fe:{self.number + 1:02x}"


class Fabric:
    """Changes the cloud. It stores subnets and ports; the lab stores the interfaces."""

    def __init__(self, cloud: Namespace, convention: Convention) -> None:
        self.cloud = cloud
        self.convention = convention
        self.filter = Filter(cloud)
        self._subnets: dict[str, Subnet] = {}
        self._router6: subprocess.Popen[str] | None = None
        self.cloud.batch(
            [
                "link set lo up",
                *(f"address add {address} dev lo" for address in convention.endpoints),
                *_bridge_commands("wan", "02:00:00:00:fe:00", BEYOND_SUBNET[1], BEYOND_SUBNET),
                *_bridge6_commands("wan", convention, BEYOND_SUBNET6),
            ]
        )

    @property
    def subnets(self) -> list[str]:
        return list(self._subnets)

    def add_beyond_hosts(self, hosts: Mapping[Namespace, tuple[str, str]]) -> None:
        """Connect the hosts beyond, each with an IPv4 and an IPv6 address."""
        self._plug_hosts("wan", list(hosts))
        for namespace, (four, six) in hosts.items():
            namespace.batch(
                [
                    f"address add {four}/{BEYOND_SUBNET.prefixlen} dev eth0",
                    f"address add {six}/{BEYOND_SUBNET6.prefixlen} dev eth0",
                    "link set eth0 up",
                    f"route add default via {BEYOND_SUBNET[1]}",
                    f"route add default via {self.convention.router6} dev eth0",
                ]
            )

    def add_subnets(self, wanted: Mapping[str, str], neighbours: Sequence[Namespace]) -> None:
        """Add subnets from {subnet: its router's address}, with a neighbour for each."""
        lines = []
        for (cidr, router), namespace in zip(wanted.items(), neighbours, strict=True):
            subnet = self._subnets[cidr] = Subnet(len(self._subnets), cidr, router, namespace)
            lines += _bridge_commands(subnet.bridge, subnet.mac, IPv4Address(router), IPv4Network(cidr))
        self.cloud.batch(lines)
        for cidr, namespace in zip(wanted, neighbours, strict=True):
            subnet = self._subnets[cidr]
            self._plug_hosts(subnet.bridge, [namespace])
            namespace.batch(
                [
                    f"address add {neighbour_address(cidr)}/{IPv4Network(cidr).prefixlen} dev eth0",
                    "link set eth0 up",
                    f"route add default via {subnet.router} dev eth0 onlink",
                ]
            )

    def plug(self, nics: Sequence[Nic], instance: Namespace | None) -> None:
        """Connect the instance with the cloud; the instance's end stays down, as a new interface does.

        Without an instance, create taps: the process that opens one holds the other end.
        """
        lines = []
        for nic in sorted(nics, key=lambda nic: nic.name):
            if instance:
                lines.append(
                    f"link add {nic.port} type veth peer name {nic.name} address {nic.mac} netns {instance.pid}"
                )
            else:
                lines.append(f"tuntap add {nic.port} mode tap")
            lines.append(f"link set {nic.port} master {self._subnets[nic.subnet].bridge} up")
        self.cloud.batch(lines)

    def unplug(self, nic: Nic) -> None:
        self.cloud.batch([f"link delete {nic.port}"])

    def register_interfaces(self, nics: Sequence[Nic]) -> None:
        """Register the interfaces as owners of their addresses, in the filter and on the hosts."""
        for nic in nics:
            self._ensure_ipv6(nic)
            if nic.anchor:
                subnet = IPv4Interface(nic.anchor).network
                router = f"{subnet[1]}/{subnet.prefixlen}"
                self.cloud.batch([f"address add {router} dev {self._subnets[nic.subnet].bridge}"])
        self.filter.interfaces("add", nics)
        self._change_neighbours("replace", [(nic, hop) for nic in nics for hop in _next_hops(nic)])
        self._change_owners("add", [(nic, what) for nic in nics for what in (*nic.all_addresses, *nic.prefixes)])

    def unregister_interface(self, nic: Nic) -> None:
        self._change_owners("delete", [(nic, what) for what in (*nic.all_addresses, *nic.prefixes)])
        self._change_neighbours("delete", [(nic, hop) for hop in _next_hops(nic)])
        self.filter.interfaces("delete", [nic])

    def register_address(self, nic: Nic, what: str) -> None:
        """Register an address, or a range in CIDR notation."""
        self._ensure_ipv6(nic)
        self._change_owners("add", [(nic, what)])

    def unregister_address(self, nic: Nic, what: str) -> None:
        self._change_owners("delete", [(nic, what)])

    def bridge(self, subnet: str) -> str:
        """Return the bridge of a subnet, where a server of the subnet can listen."""
        return self._subnets[subnet].bridge

    def allow_dhcp(self, nic: Nic) -> None:
        """Let DHCP's own addresses pass (RFC 2131, 4.1): 0.0.0.0 as the source, and broadcast answers."""
        self.filter.owners("add", [(nic, "0.0.0.0"), (nic, "255.255.255.255")])

    def advertise(self, subnet: str, lifetime: int = 1800) -> None:
        """Send a router advertisement now. Hosts that solicit get theirs without this."""
        here = self._subnets[subnet]
        if not here.prefixes6:
            return
        if self._router6 is None:
            argv = [sys.executable, "-I", "-S", str(ROUTER6)]
            self._router6 = self.cloud.popen(argv, stdin=subprocess.PIPE, stdout=None)
        config = {
            "bridge": here.bridge,
            "mac": here.mac,
            "source": self.convention.router6,
            "lifetime": lifetime,
            "prefixes": here.prefixes6,
            "on_link": self.convention.on_link6,
            "autonomous": self.convention.autonomous6,
        }
        assert self._router6.stdin is not None
        self._router6.stdin.write(json.dumps(config) + "\n")
        self._router6.stdin.flush()

    def has_ipv6(self, namespace: Namespace) -> bool:
        """Return True if this outside host has an IPv6 address."""
        return all(here.prefixes6 for here in self._subnets.values() if here.neighbour == namespace)

    def lost(self) -> list[LostPackets]:
        return self.filter.lost()

    def clear_lost(self) -> None:
        self.filter.clear_lost()

    def close(self) -> None:
        """Collect what remains of the processes; the holder ends them."""
        if self._router6 is not None:
            assert self._router6.stdin is not None
            self._router6.stdin.close()
            self._router6.wait(TIMEOUT_S)

    def _plug_hosts(self, bridge: str, namespaces: Sequence[Namespace]) -> None:
        self.cloud.batch(
            line
            for namespace in namespaces
            for line in (
                f"link add {namespace.name} type veth peer name eth0 netns {namespace.pid}",
                f"link set {namespace.name} master {bridge} up",
            )
        )
        for namespace in namespaces:
            namespace.batch(["link set lo up"])

    def _ensure_ipv6(self, nic: Nic) -> None:
        """Give the subnet this interface's /64: on the router, on the neighbour, and in advertisements."""
        here = self._subnets[nic.subnet]
        if not nic.network6 or nic.subnet6 in here.prefixes6:
            return
        self.cloud.batch(_bridge6_commands(here.bridge, self.convention, nic.network6, first=not here.prefixes6))
        lines = [f"address add {neighbour_address6(nic.subnet6)}/{nic.network6.prefixlen} dev eth0"]
        if not here.prefixes6:
            lines.append(f"route add default via {self.convention.router6} dev eth0")
        here.neighbour.batch(lines)
        here.prefixes6.append(nic.subnet6)
        self.advertise(nic.subnet)

    def _change_owners(self, action: str, pairs: Sequence[tuple[Nic, str]]) -> None:
        """`add` or `delete` an interface's ownership of addresses and ranges."""
        self.filter.owners(action, pairs)
        change = "replace" if action == "add" else "delete"
        self._change_neighbours(change, [(nic, what) for nic, what in pairs if "/" not in what])
        routes = [(nic, what, _next_hops(nic)[":" in what]) for nic, what in pairs if "/" in what]
        self._run_on_router_and_neighbours(
            [(nic, f"route {change} {what} via {hop} dev {{}} onlink") for nic, what, hop in routes]
        )

    def _change_neighbours(self, change: str, pairs: Sequence[tuple[Nic, str]]) -> None:
        """`replace` or `delete` neighbour entries."""
        self._run_on_router_and_neighbours(
            [(nic, f"neigh {change} {what} lladdr {nic.mac} dev {{}} nud permanent") for nic, what in pairs]
        )

    def _run_on_router_and_neighbours(self, lines: Sequence[tuple[Nic, str]]) -> None:
        """Run lines of `ip -batch` on the router and in the interface's subnet; `{}` is the device there."""
        self.cloud.batch(line.format(self._subnets[nic.subnet].bridge) for nic, line in lines)
        for here in self._subnets.values():
            if local := [line.format("eth0") for nic, line in lines if nic.subnet == here.cidr]:
                here.neighbour.batch(local)


def _next_hops(nic: Nic) -> tuple[str, str]:
    """Return the next hops that ranges of an interface are routed to, independent of its addresses."""
    return f"169.254.128.{nic.device + 1}", f"fe80::128:{nic.device + 1:x}"


def _bridge_commands(name: str, mac: str, router: IPv4Address, subnet: IPv4Network) -> list[str]:
    """Return the lines that create a bridge. Its MAC is fixed: by default it changes with the ports."""
    inside = router in subnet
    return [
        f"link add {name} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set {name} addrgenmode none",
        f"address add {router}/{subnet.prefixlen if inside else 32} dev {name}",
        f"link set {name} up",
        *([] if inside else [f"route add {subnet} dev {name}"]),
    ]


def _bridge6_commands(name: str, convention: Convention, subnet: IPv6Network, first: bool = True) -> list[str]:
    """Return the lines that add the router's link-local address, the gateway of the hosts, and one in the subnet."""
    addresses = [convention.router6, convention.link_local] if convention.link_local else [convention.router6]
    link_local = [f"address add {address}/64 dev {name} nodad" for address in addresses] if first else []
    return [*link_local, f"address add {subnet[convention.gateway6]}/{subnet.prefixlen} dev {name} nodad"]
