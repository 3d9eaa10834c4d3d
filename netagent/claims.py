"""Pure functions for the claims of a link (docs/policy.md). It imports no module of the package; the fetcher uses it.

A claim is an address, subnet, range or gateway for one link. A learned subnet is from DHCP, a router or an operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(map(ip_network, text.split()))


PRIVATE = _networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7")
"""Networks that a link may claim although it has not learned them: RFC 1918, RFC 6598 and RFC 4193."""
LINK_LOCAL = _networks("169.254.0.0/16 fe80::/10")
METADATA = _networks(
    "100.100.100.200 168.63.129.16 192.0.0.192"  # Alibaba; Azure's wire server; Oracle
    " fd00:ec2::/32 fd20:ce::254 fd00:42::42 fd00:c1::a9fe:a9fe"  # AWS, GCP, Scaleway, Oracle
)
"""Metadata servers outside link-local networks."""
UNROUTABLE = _networks("0.0.0.0/8 127.0.0.0/8 224.0.0.0/3 ::/96 ::ffff:0:0/96 ff00::/8")
"""No gateway forwards packets to these: unspecified, loopback, multicast, broadcast, reserved, IPv4 in IPv6."""
UNASSIGNED = _networks("::/3 4000::/2 8000::/2 c000::/3 e000::/4 f000::/5 f800::/6 fe00::/9 fec0::/10")
"""IPv6 addresses that are neither global unicast (2000::/3) nor unique local (fc00::/7): NAT64, for example."""
RESERVED = UNROUTABLE + LINK_LOCAL + METADATA + UNASSIGNED
"""No link may claim any of these, not even with AllowAddresses=."""
WIDEST_SUBNET = {4: 16, 6: 44}
"""Shortest prefix of a subnet that the link has not learned. AWS has the widest IPv6 subnets, /44."""
WIDEST_RANGE = {4: 20, 6: 64}
"""Shortest prefix of a range: a route of type local, or a source of forwarded packets."""
RANGE_EXTRA_BITS = 2
"""A range in a subnet of its link has a prefix that is at least 2 bits longer: at most a quarter of the subnet."""
_MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PATTERN = re.compile(r"\[[^]]+\]|[*?]")  # wildcards
CONVENTION_LENGTHS = {4: range(16, 31), 6: range(44, 65)}
"""Prefix lengths tried around a gateway by convention."""


SECOND_TABLE = 1 << 30
"""Distance from a link's table to its second one: above every ifindex that the kernel chooses."""


# Tables.


def tables(link: int, base: int) -> tuple[int, int]:
    """Return the link's table, and its second table, for a subnet that has a separate gateway."""
    return base + link, base + link + SECOND_TABLE


def link_of_table(table: int, base: int) -> int:
    """Return the ifindex of the link that this table number belongs to. The link need not exist."""
    return (table - base) % SECOND_TABLE


# Marks of ForwardedReplies="mark".


def arrival_bit(mask: int) -> int:
    """Return the highest bit of MarkMask=: set in the marks of packets that arrive on a link for a published port."""
    return 1 << (mask.bit_length() - 1)


def mark_bits(mask: int) -> int:
    """Return the bits of MarkMask= that identify links: all except the highest."""
    return mask & ~arrival_bit(mask)


def arrival_mark(mark: int, mask: int) -> int:
    """Return the mark of packets that arrive for a published port on the link with this mark."""
    return mark | arrival_bit(mask)


@dataclass(frozen=True, slots=True)
class MarkSelector:
    """The fwmark MARK/MASK of a rule of another program. An inverted rule (`not`) uses the mark, too."""

    mark: int
    mask: int
    is_inverted: bool = False

    def may_have(self, mark: int, mask: int) -> bool:
        """Return True if the rule's program may use the mark `mark`; `mask` has the bits that are compared.

        A rule that compares these bits with 0, or does not compare them, does not count; but `not fwmark 0/MASK`
        selects all packets that have one of the bits.
        """
        common = self.mask & mask
        if self.is_inverted and not self.mark:
            return bool(mark & common)
        return bool(self.mark & common) and self.mark & common == mark & common


def is_used_mark(mark: int, mask: int, others: Iterable[MarkSelector]) -> bool:
    """Return True if other programs use the mark of a link, or that of packets that arrive there."""
    both = (mark, arrival_mark(mark, mask))
    return any(other.may_have(each, mask) for other in others for each in both)


# Networks.


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Return True if the networks have an address in common."""
    return contains(one, other) or contains(other, one)


def contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """Return True if `inner` is `outer` or a part of it."""
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    shift = outer.max_prefixlen - outer.prefixlen
    return int(outer.network_address) >> shift == int(inner.network_address) >> shift


def within(inner: IPNetwork, outer: Iterable[IPNetwork]) -> bool:
    """Return True if one of `outer` contains `inner`."""
    return any(contains(each, inner) for each in outer)


def single(address: IPAddress) -> IPNetwork:
    """Return the /32 or /128 of an address."""
    return IPv4Network(int(address)) if isinstance(address, IPv4Address) else IPv6Network(int(address))


def is_single(network: IPNetwork) -> bool:
    """Return True for a /32 or /128."""
    return network.prefixlen == network.max_prefixlen


def span(network: IPNetwork) -> tuple[int, int]:
    """Return the first and the last address of a network, as numbers."""
    first = int(network.network_address)
    return first, first | (1 << network.max_prefixlen - network.prefixlen) - 1


_RESERVED_SPANS = {version: [span(each) for each in RESERVED if each.version == version] for version in (4, 6)}


def is_reserved(network: IPNetwork) -> bool:
    """Return True if no link may claim `network`: loopback, link-local, multicast, a metadata server ..."""
    first, last = span(network)
    return any(begin <= last and first <= end for begin, end in _RESERVED_SPANS[network.version])


def is_link_local(network: IPNetwork) -> bool:
    """Return True if all of `network` is link-local."""
    return within(network, LINK_LOCAL)


def nested(network: IPNetwork, others: Iterable[IPNetwork]) -> IPNetwork | None:
    """Return the first of `others` that contains `network` or lies in it; equal networks are not nested.

    Two links may be in one subnet. A subnet that contains another link's subnet, or lies in it, would divert traffic to
    neighbours of that link. Routes to single addresses (DHCP clients add one to the gateway) are no subnets.
    """
    return next((each for each in others if each != network and not is_single(each) and overlap(each, network)), None)


def is_conventional_gateway(offset: int, size: int, version: int) -> bool:
    """Return True if clouds put the gateway of a subnet of `size` addresses at `offset` from its first address.

    At the first host (AWS, Azure, Google Cloud, Oracle, Hetzner ...); on Alibaba Cloud at the third-last address of an
    IPv4 subnet and the ninth-last of an IPv6 subnet.
    """
    last = 2 if version == 4 else 8
    return size > last + 1 and offset in (1, size - 1 - last)


def conventional_subnets(gateway: IPAddress) -> Iterator[IPNetwork]:
    """Yield the networks of which `gateway` is the gateway by convention."""
    for length in CONVENTION_LENGTHS[gateway.version]:
        size = 1 << gateway.max_prefixlen - length
        if is_conventional_gateway(int(gateway) % size, size, gateway.version):
            yield single(gateway).supernet(new_prefix=length)


def subnet_limit(subnet: IPNetwork, learned: Iterable[IPNetwork]) -> str | None:
    """Return the reason why a link may not claim a subnet of this size, or None. A learned subnet may have any size."""
    shortest = WIDEST_SUBNET[subnet.version]
    if subnet.prefixlen >= shortest or within(subnet, learned):
        return None
    return f"{subnet} is wider than /{shortest}, the widest subnet that is accepted without DHCP or a router"


def widened(network: IPNetwork, learned: Iterable[IPNetwork]) -> IPNetwork | None:
    """Return a learned subnet of the link that `network` is wider than, or None.

    Hosts outside the learned subnet are behind the gateway. With a wider on-link network, any neighbour that answers
    for their addresses would receive their packets.
    """
    return next((each for each in learned if not is_single(each) and each != network and contains(network, each)), None)


def range_limit(network: IPNetwork, subnets: Iterable[IPNetwork]) -> str | None:
    """Return the reason why a link may not claim a range of this size, or None. `subnets` are those of the link."""
    shortest = WIDEST_RANGE[network.version]
    if network.prefixlen < shortest:
        return f"{network} is wider than /{shortest}, the widest range that is accepted"
    if is_single(network):
        return None
    for subnet in subnets:
        if contains(network, subnet):
            return f"{network} covers {subnet}, a subnet of the link"
        if contains(subnet, network) and network.prefixlen < subnet.prefixlen + RANGE_EXTRA_BITS:
            return f"{network} is more than a quarter of {subnet}, a subnet of the link"
    return None


def is_network_or_broadcast(address: IPAddress, subnet: IPNetwork) -> bool:
    """Return True for the network or broadcast address of a subnet that has them.

    The network address of an IPv6 subnet is that of its routers (subnet-router anycast, RFC 4291, section 2.6.1).
    """
    if subnet.max_prefixlen - subnet.prefixlen < 2:
        return False
    return address == subnet.network_address if subnet.version == 6 else int(address) in span(subnet)


def is_excluded(patterns: Iterable[str], name: str, mac: str) -> bool:
    """Return True if Exclude= names a link: by its MAC, or by a shell-style pattern of its name (*, ?, [6-9], [!0])."""
    return any(pattern == mac or fnmatchcase(name, pattern) for pattern in patterns)


def link_patterns(text: str) -> tuple[str, ...]:
    """Return the names, patterns and MACs of links in the value of Exclude=. Raises ValueError with the reason."""
    return tuple(map(_link_pattern, text.split()))


def _link_pattern(word: str) -> str:
    if _MAC.fullmatch(word.lower()):
        return word.lower()
    if "," in word:
        raise ValueError(f'{word!r} has a comma; separate names with spaces: "{word.replace(",", " ").strip()}"')
    if word.startswith("!"):
        raise ValueError(f"{word!r} negates; name the links to exclude, or see [Network] Manage=")
    if word.endswith("+"):
        raise ValueError(f'{word!r} is a pattern of iptables; write "{word[:-1]}*"')
    bare = _PATTERN.sub("x", word)
    if len(bare.encode()) > 15 or "/" in word or ":" in word or word in (".", ".."):
        raise ValueError(f"{word!r} is not the name or MAC of a link")
    return word
