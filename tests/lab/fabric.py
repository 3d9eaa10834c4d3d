"""The cloud's network: a bridge per subnet, a port per interface, and the filter that makes it a cloud.

Real clouds do not learn: they know which address belongs to which interface, drop what claims another source, and
deliver to the owner only. So here: a `bridge` table keeps the pairs (port, MAC) and (port, address); what comes from a
port with another source, ARP included, is dropped and counted; what goes to a port that doesn't own the destination
is dropped as well; hosts know the instance's MACs by permanent neighbour entries. Whoever receives a reply from an
address therefore knows that it left the instance by the interface that owns the address.

AWS calls it the source/destination check (EC2 user guide, "Elastic network interfaces"); other clouds have the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .rooms import Room
from .spec import BEYOND_SUBNET, METADATA_ADDRESS, Nic, gateway

RULES = """
table bridge cloud {
  set mac_of { type ifname . ether_addr; }
  set v4_of { type ifname . ipv4_addr; }
  set v6_of { type ifname . ipv6_addr; }
  set lost { type ifname . ipv4_addr . ipv4_addr; size 65535; flags dynamic; counter; }
  set lost6 { type ifname . ipv6_addr . ipv6_addr; size 65535; flags dynamic; counter; }
  set misdelivered { type ifname . ipv4_addr; size 65535; flags dynamic; counter; }

  chain owned {
    iifname . ip saddr @v4_of accept
    iifname . arp saddr ip @v4_of accept
    iifname . ip6 saddr @v6_of accept
    ip6 saddr { ::, fe80::/10 } accept
  }
  chain from_instance {
    type filter hook prerouting priority -300; policy accept;
    iifname != "vm*" accept
    iifname . ether saddr @mac_of jump owned
    ether type ip update @lost { iifname . ip saddr . ip daddr } drop
    ether type arp update @lost { iifname . arp saddr ip . arp daddr ip } drop
    ether type ip6 update @lost6 { iifname . ip6 saddr . ip6 daddr } drop
    drop
  }
  chain to_instance {
    type filter hook postrouting priority 300; policy accept;
    oifname != "vm*" accept
    oifname . ip daddr @v4_of accept
    oifname . arp daddr ip @v4_of accept
    ether type ip update @misdelivered { oifname . ip daddr } drop
    ether type arp drop
  }
}
"""
"""A request for somebody else's address isn't delivered: a cloud answers ARP itself."""


@dataclass(frozen=True)
class Lost:
    """Packets that came from an interface with a source which isn't its own (an ARP request counts too)."""

    mac: str
    source: str
    destination: str
    packets: int


class Fabric:
    """Changes the cloud. It remembers subnets and ports; which interfaces exist is the lab's knowledge."""

    def __init__(self, cloud: Room) -> None:
        self.cloud = cloud
        self.subnets: list[str] = []
        self._owner: dict[str, str] = {}
        self.cloud.batch(
            [
                "link set lo up",
                f"address add {METADATA_ADDRESS}/32 dev lo",
                *_bridge("wan", "02:00:00:00:fe:00", f"{BEYOND_SUBNET[1]}/{BEYOND_SUBNET.prefixlen}"),
            ]
        )
        self._nft(RULES)

    def add_subnets(self, subnets: Iterable[str]) -> None:
        lines = []
        for subnet in subnets:
            number = len(self.subnets)
            self.subnets.append(subnet)
            length = subnet.partition("/")[2]
            lines += _bridge(f"sn{number}", f"02:00:00:00:fe:{number + 1:02x}", f"{gateway(subnet)}/{length}")
        self.cloud.batch(lines)

    def add_hosts(self, bridge: str, hosts: Sequence[tuple[Room, str]], via: str) -> None:
        """Plug hosts into a bridge; each has one address and a default route."""
        self.cloud.batch(
            line
            for room, _ in hosts
            for line in (
                f"link add {room.name} type veth peer name eth0 netns {room.pid}",
                f"link set {room.name} master {bridge} up",
            )
        )
        for room, address in hosts:
            room.batch(
                [
                    "link set lo up",
                    f"address add {address} dev eth0",
                    "link set eth0 up",
                    f"route add default via {via}",
                ]
            )

    def bridge(self, subnet: str) -> str:
        return f"sn{self.subnets.index(subnet)}"

    def plug(self, nics: Sequence[Nic], instance: Room) -> None:
        """Cables from the cloud into the instance; the instance's end stays down, as a new interface is."""
        lines = []
        for nic in sorted(nics, key=lambda nic: nic.name):
            peer = f"peer name {nic.name} address {nic.mac} netns {instance.pid}"
            lines += [
                f"link add {nic.port} type veth {peer}",
                f"link set {nic.port} master {self.bridge(nic.subnet)} up",
            ]
            self._owner[nic.port] = nic.mac
        self.cloud.batch(lines)

    def unplug(self, nic: Nic) -> None:
        self.cloud.batch([f"link delete {nic.port}"])

    def admit(self, nics: Sequence[Nic], neighbours: Sequence[Room]) -> None:
        """These interfaces own these addresses: the filter lets them pass, the hosts know the way."""
        self._own("add", nics, neighbours, [(nic, address) for nic in nics for address in nic.addresses])
        self._nft("\n".join(f"add element bridge cloud mac_of {{ {nic.port} . {nic.mac} }}" for nic in nics))

    def dismiss(self, nic: Nic, neighbours: Sequence[Room]) -> None:
        self._own("delete", [nic], neighbours, [(nic, address) for address in nic.addresses])
        self._nft(f"delete element bridge cloud mac_of {{ {nic.port} . {nic.mac} }}")

    def admit_address(self, nic: Nic, address: str, neighbours: Sequence[Room]) -> None:
        self._own("add", [], neighbours, [(nic, address)])

    def dismiss_address(self, nic: Nic, address: str, neighbours: Sequence[Room]) -> None:
        self._own("delete", [], neighbours, [(nic, address)])

    def lost(self) -> list[Lost]:
        found = json.loads(self.cloud.run(["nft", "-j", "list", "set", "bridge", "cloud", "lost"]).stdout)
        entries = (entry["elem"] for part in found["nftables"] for entry in part.get("set", {}).get("elem", []))
        lost = []
        for entry in entries:
            port, source, destination = entry["val"]["concat"]
            lost.append(Lost(self._owner[port], source, destination, entry["counter"]["packets"]))
        return lost

    def forget_lost(self) -> None:
        self._nft("flush set bridge cloud lost")

    def _own(
        self, verb: str, nics: Sequence[Nic], neighbours: Sequence[Room], pairs: Sequence[tuple[Nic, str]]
    ) -> None:
        rules = [f"{verb} element bridge cloud v4_of {{ {nic.port} . {address} }}" for nic, address in pairs]
        rules += [
            f"{verb} element bridge cloud v6_of {{ {nic.port} . {address} }}" for nic in nics for address in nic.ipv6
        ]
        self._nft("\n".join(rules))
        known = "replace" if verb == "add" else "delete"
        self.cloud.batch(
            f"neigh {known} {address} lladdr {nic.mac} dev {self.bridge(nic.subnet)} nud permanent"
            for nic, address in pairs
        )
        for number, room in enumerate(neighbours):
            here = [(nic, address) for nic, address in pairs if nic.subnet == self.subnets[number]]
            if here:
                room.batch(f"neigh {known} {address} lladdr {nic.mac} dev eth0 nud permanent" for nic, address in here)

    def _nft(self, rules: str) -> None:
        self.cloud.run(["nft", "-f", "-"], stdin=rules)


def _bridge(name: str, mac: str, address: str) -> list[str]:
    """A fixed MAC: a bridge otherwise takes that of its ports, and changes it when one goes."""
    return [
        f"link add {name} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"address add {address} dev {name}",
        f"link set {name} up",
    ]
