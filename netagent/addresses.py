"""The addresses of all links, with the accepted operations of this request applied: a part of `view`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from .claims import IPAddress, IPNetwork, contains, single
from .operations import PROTOCOL, IPInterface
from .rtnetlink import IFA_F_NOPREFIXROUTE, IFA_F_SECONDARY, Address
from .side_effects import AddressCounts

OwnedAddresses = frozenset[tuple[int, IPAddress]]
"""Link and address of each owned address, from the ledger."""


def network_of(address: Address) -> IPNetwork | None:
    """Return the network of an address, or None for a /32 or /128."""
    return None if address.prefix == address.ip.max_prefixlen else address.network


class Addresses:
    """The addresses by link, by address and by network."""

    def __init__(self, addresses: Iterable[Address], owned: OwnedAddresses | None) -> None:
        """`owned` are those of the ledger; None if the kernel has IFA_PROTO, which `have_protocol` tells."""
        there = list(addresses)
        self.have_protocol = owned is None or any(address.protocol is not None for address in there)
        self._owned = owned or frozenset()
        self._all: dict[tuple[int, IPAddress, int], Address] = {}  # by link, address and prefix length
        self._entries: dict[tuple[int, IPAddress], list[Address]] = defaultdict(list)  # by link and address
        self._holders: dict[IPAddress, list[int]] = defaultdict(list)  # links by address
        self._by_network: dict[tuple[int, IPNetwork], dict[IPAddress, Address]] = defaultdict(dict)
        self._connected = Counter[tuple[int, IPNetwork]]()  # addresses with a connected route, also of a link down
        self._peers = {address.peer for address in there if address.peer is not None}
        self.counts = AddressCounts()
        self.number_owned = 0

    def add(self, address: Address) -> None:
        """Count an address of the snapshot, or one that this request adds."""
        place = address.link, address.ip, address.prefix
        if address.peer is None or place not in self._all:  # an owned address has no peer, and must be found
            self._all[place] = address
        entries = self._entries[address.link, address.ip]
        if not entries:
            self._holders[address.ip].append(address.link)
        entries.append(address)
        self.counts.add(address)
        self.number_owned += self.owns(address)
        network = network_of(address)
        if network is not None:
            self._by_network[address.link, network][address.ip] = address
            self._connected[address.link, network] += not address.flags & IFA_F_NOPREFIXROUTE

    def remove(self, address: Address) -> None:
        """Forget an address that this request removes."""
        del self._all[address.link, address.ip, address.prefix]
        entries = self._entries[address.link, address.ip]
        entries.remove(address)
        if not entries:
            self._holders[address.ip].remove(address.link)
        self.counts.add(address, -1)
        self.number_owned -= self.owns(address)
        network = network_of(address)
        if network is not None:
            del self._by_network[address.link, network][address.ip]
            self._connected[address.link, network] -= not address.flags & IFA_F_NOPREFIXROUTE

    def owns(self, address: Address) -> bool:
        """Return True if netagent added the address: by IFA_PROTO, or by the ledger if the kernel has no IFA_PROTO.

        Addresses that this request adds have the protocol in any case.
        """
        in_ledger = not self.have_protocol and (address.link, address.ip) in self._owned
        return in_ledger or address.protocol == PROTOCOL

    def get(self, link: int, interface: IPInterface) -> Address | None:
        """Return the address of a link with this prefix length."""
        return self._all.get((link, interface.ip, interface.network.prefixlen))

    def all(self) -> list[Address]:
        """Return all addresses, the first added first; of two that differ in the peer, only one."""
        return [*self._all.values()]

    def owned(self) -> list[Address]:
        """Return the owned addresses, the first added first."""
        return [address for address in self._all.values() if self.owns(address)]

    def entries(self, link: int, ip: IPAddress) -> list[Address]:
        """Return all entries of an address on the link, which may have several prefix lengths."""
        return self._entries.get((link, ip), [])

    def holders(self, ip: IPAddress) -> list[int]:
        """Return the links that have this address."""
        return self._holders.get(ip, [])

    def in_network(self, link: int, network: IPNetwork) -> Iterable[Address]:
        """Return the link's addresses with exactly this network."""
        return self._by_network.get((link, network), {}).values()

    def same_subnet(self, address: Address) -> Iterable[Address]:
        """Return the link's addresses with the same network, this one included."""
        network = network_of(address)
        return () if network is None else self.in_network(address.link, network)

    def secondary_of(self, address: Address) -> IPAddress | None:
        """Return an IPv4 address that the kernel may remove with this one (unless promote_secondaries is set)."""
        if address.ip.version == 6 or address.flags & IFA_F_SECONDARY:
            return None
        return next((each.ip for each in self.same_subnet(address) if each.flags & IFA_F_SECONDARY), None)

    def has_family(self, link: int, version: int) -> bool:
        """Return True if the link has an address of this family."""
        return self.counts.of(link, version) > 0

    def has_connected_route(self, link: int, network: IPNetwork) -> bool:
        """Return True if an address of the link has a connected route to this network, or will have it once up."""
        return self._connected[link, network] > 0

    def connected_networks(self, link: int) -> set[IPNetwork]:
        """Return the networks to which the link has, or would have if it were up, a connected route, also of peers."""
        entries = (each for (other, _), found in self._entries.items() if other == link for each in found)
        return {network for each in entries for network in each.connected_networks}

    def has_peer(self, ip: IPAddress) -> bool:
        """Return True if this is the peer of an address, on any link."""
        return ip in self._peers

    def peer_inside(self, network: IPNetwork) -> IPAddress | None:
        """Return a peer of an address of any link inside `network`."""
        return next((each for each in self._peers if contains(network, single(each))), None)
