"""The properties of a cloud's network, apart from its metadata. Each module in metadata/ defines its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from .nic import Interface

RANGES = 128
"""The first delegated address in a subnet, above the single ones."""


@dataclass(frozen=True)
class Convention:
    """Addresses of the metadata server, configuration at boot, router advertisements, and the limits of the cloud.

    `protocol` is that of the boot-time route: `dhcp`, or `static` if cloud-init writes the configuration. `mask` is the
    prefix length of the primary address if it differs from the subnet's: with 32 the gateway's route is on link.
    `first` is the primary interface if it differs from the others, with public addresses on it; its numbers are upper
    limits.
    """

    endpoints: tuple[str, ...] = ("169.254.169.254",)
    link_local: str = ""
    """An address of the metadata server on every link."""
    protocol: str = "dhcp"
    mask: int | None = None
    mtu: int = 1500
    all_links: bool = False
    """True if the image configures every interface's first address, not only the primary's."""

    gateway: int = 1
    """Position of the router's address in a subnet."""
    gateway6: int = 1
    router6: str = "fe80::1"
    on_link6: bool = True
    """RFC 4861, 4.6.2: the advertised prefix has the L flag. Without it, neighbours are reached through the router."""
    autonomous6: bool = False
    """The A flag: hosts make their own address (SLAAC)."""

    first: Interface | None = None
    most_interfaces: int = 64
    most_addresses: int = 64
    most_ipv6: int = 64
    ranges: tuple[int, ...] = ()
    """The IP versions of which the cloud delegates ranges: 4, 6."""

    def order(self, interfaces: int, addresses: int, ipv6: int, public: int, prefixes: int) -> tuple[Interface, ...]:
        """Return the interfaces of `Spec.cloud`, within the cloud's limits."""
        usual = [
            Interface(
                f"10.0.{n}.0/24",
                min(addresses, self.most_addresses),
                public=public,
                ipv6=min(ipv6, self.most_ipv6),
                prefixes=self._ranges(n, prefixes),
                subnet6=subnet6(n),
            )
            for n in range(1, min(interfaces, self.most_interfaces) + 1)
        ]
        if self.first:
            usual[:1] = [self._first(self.first, addresses, ipv6)]
        return tuple(usual)

    def _first(self, most: Interface, addresses: int, ipv6: int) -> Interface:
        assert isinstance(most.addresses, int)
        assert isinstance(most.ipv6, int)
        addresses, ipv6 = min(addresses, most.addresses), min(ipv6, most.ipv6)
        return replace(most, addresses=addresses, ipv6=ipv6, subnet6=subnet6(1))

    def _ranges(self, number: int, count: int) -> tuple[str, ...]:
        """Return a /28 as AWS and Alibaba delegate them, and a /80 of IPv6."""
        four, six = IPv4Network(f"10.0.{number}.0/24"), subnet6(number).removesuffix("::/64")
        wanted = {
            4: [f"{four[RANGES + 16 * n]}/28" for n in range(count)],
            6: [f"{six}:{n + 1:x}::/80" for n in range(count)],
        }
        return tuple(prefix for family in self.ranges for prefix in wanted[family])


def subnet6(number: int) -> str:
    return f"2001:db8:0:{number:x}::/64"
