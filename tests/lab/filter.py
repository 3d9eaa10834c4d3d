"""The filter of a cloud's network, as nftables rules of the bridges.

Real clouds do not learn: they know the interface that owns each address, drop packets with another source, and deliver
only to the owner. Here, sets have the pairs (port, MAC), (port, address) and (port, delegated range). A packet from a
port with another source, including ARP, is dropped and counted. A packet to a port that does not own the destination is
dropped as well. A host that receives a reply from an address therefore proves that the reply left the instance through
the interface that owns the address.

AWS calls it the source/destination check (EC2 user guide, "Elastic network interfaces"); other clouds have the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .namespaces import Namespace
from .nic import Nic

RULES = """
table bridge cloud {
  set mac_of { type ifname . ether_addr; }
  set v4_of { type ifname . ipv4_addr; }
  set v6_of { type ifname . ipv6_addr; }
  set range4_of { type ifname . ipv4_addr; flags interval; }
  set range6_of { type ifname . ipv6_addr; flags interval; }
  set lost { type ifname . ipv4_addr . ipv4_addr; size 65535; flags dynamic; counter; }
  set lost6 { type ifname . ipv6_addr . ipv6_addr; size 65535; flags dynamic; counter; }
  set misdelivered { type ifname . ipv4_addr; size 65535; flags dynamic; counter; }
  set misdelivered6 { type ifname . ipv6_addr; size 65535; flags dynamic; counter; }

  chain owned {
    iifname . ip saddr @v4_of accept
    iifname . arp saddr ip @v4_of accept
    iifname . ip6 saddr @v6_of accept
    iifname . ip saddr @range4_of accept
    iifname . arp saddr ip @range4_of accept
    iifname . ip6 saddr @range6_of accept
    ip6 saddr { ::, fe80::/10 } accept
  }
  chain from_instance {
    type filter hook prerouting priority -300; policy accept;
    iifname != "vm*" accept
    iifname . ether saddr @mac_of jump owned
    ip6 saddr { ::, fe80::/10 } drop
    ether type ip update @lost { iifname . ip saddr . ip daddr } drop
    ether type arp update @lost { iifname . arp saddr ip . arp daddr ip } drop
    ether type ip6 update @lost6 { iifname . ip6 saddr . ip6 daddr } drop
    drop
  }
  chain to_instance {
    type filter hook postrouting priority 300; policy accept;
    oifname != "vm*" accept
    icmpv6 type nd-redirect drop
    oifname . ip daddr @v4_of accept
    oifname . arp daddr ip @v4_of accept
    oifname . ip6 daddr @v6_of accept
    oifname . ip daddr @range4_of accept
    oifname . arp daddr ip @range4_of accept
    oifname . ip6 daddr @range6_of accept
    ip6 daddr { ff02::/16, fe80::/10 } accept
    ether type ip update @misdelivered { oifname . ip daddr } drop
    ether type ip6 update @misdelivered6 { oifname . ip6 daddr } drop
    ether type arp drop
  }
}
"""
"""A request for an address of another host is not delivered: a cloud answers ARP itself. Neighbour discovery passes,
because a kernel answers it only for addresses of the very link."""


@dataclass(frozen=True)
class LostPackets:
    """Packets from an interface with a source that it does not own (ARP requests included)."""

    mac: str
    source: str
    destination: str
    packets: int


class Filter:
    """The owners of addresses and ranges, in the kernel of `cloud`."""

    def __init__(self, cloud: Namespace) -> None:
        self._cloud = cloud
        self._owner: dict[str, str] = {}
        self._nft(RULES)

    def interfaces(self, action: str, nics: Sequence[Nic]) -> None:
        """`add` or `delete` their MACs. Former owners of a port are kept, for packets lost before."""
        self._owner |= {nic.port: nic.mac for nic in nics}
        self._nft("\n".join(_element_command(action, "mac_of", nic, nic.mac) for nic in nics))

    def owners(self, action: str, pairs: Sequence[tuple[Nic, str]]) -> None:
        """`add` or `delete` addresses and ranges."""
        names = {(False, 4): "v4_of", (False, 6): "v6_of", (True, 4): "range4_of", (True, 6): "range6_of"}
        self._nft(
            "\n".join(
                _element_command(action, names["/" in what, 6 if ":" in what else 4], nic, what) for nic, what in pairs
            )
        )

    def lost(self) -> list[LostPackets]:
        return [
            LostPackets(self._owner[port], source, destination, packets)
            for name in ("lost", "lost6")
            for port, source, destination, packets in self._entries(name)
        ]

    def clear_lost(self) -> None:
        self._nft("flush set bridge cloud lost\nflush set bridge cloud lost6")

    def _entries(self, name: str) -> Iterator[tuple[str, str, str, int]]:
        found = json.loads(self._cloud.run(["nft", "-j", "list", "set", "bridge", "cloud", name]).stdout)
        for part in found["nftables"]:
            for entry in part.get("set", {}).get("elem", []):
                port, source, destination = entry["elem"]["val"]["concat"]
                yield port, source, destination, entry["elem"]["counter"]["packets"]

    def _nft(self, rules: str) -> None:
        if rules:
            self._cloud.run(["nft", "-f", "-"], stdin=rules)


def _element_command(action: str, name: str, nic: Nic, what: str) -> str:
    return f"{action} element bridge cloud {name} {{ {nic.port} . {what} }}"
