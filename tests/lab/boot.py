"""Configures the instance as a cloud's image does at boot. The kernel itself does its part for IPv6."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface

from .convention import Convention
from .fabric import Fabric
from .namespaces import TIMEOUT_S, LabError, Namespace
from .nic import Nic


def boot(instance: Namespace, served: Sequence[Nic], fabric: Fabric) -> None:
    """Configure loopback and the interfaces that the image configures; the others stay down."""
    six = [nic for nic in served if nic.ipv6]
    with without_dad(instance, six):
        instance.batch(["link set lo up", *(line for nic in served for line in lines(nic, fabric.convention))])
    for nic in six:
        fabric.advertise(nic.subnet)
        wait_for_router(instance, nic)


def lines(nic: Nic, convention: Convention) -> Iterator[str]:
    """Yield one interface's configuration as lines for `ip -batch`."""
    first, length = nic.addresses[0], convention.mask or nic.network.prefixlen
    leased = "valid_lft 3600 preferred_lft 3600" if convention.protocol == "dhcp" else ""
    route = f"proto {convention.protocol} src {first} metric {100 + nic.device}"
    yield f"link set {nic.name} mtu {convention.mtu} up"
    yield f"address add {first}/{length} brd + dev {nic.name} {leased}"
    if ip_address(nic.gateway) not in ip_interface(f"{first}/{length}").network:
        yield f"route add {nic.gateway} dev {nic.name} scope link {route}"
    yield f"route add default via {nic.gateway} dev {nic.name} {route}"
    if nic.anchor:
        yield f"address add {nic.anchor} brd + dev {nic.name}"
    if nic.ipv6:  # DHCPv6 gives no prefix length; the router advertises it (RFC 8415, 21.6)
        yield f"address add {nic.ipv6[0]}/128 dev {nic.name} {leased} nodad"


@contextmanager
def without_dad(instance: Namespace, nics: Sequence[Nic]) -> Iterator[None]:
    """Disable duplicate address detection within the block: it takes a second, and an instance has finished it."""

    def set_to(value: int) -> None:
        for nic in nics:
            instance.run(["tee", f"/proc/sys/net/ipv6/conf/{nic.name}/accept_dad"], stdin=str(value))

    set_to(0)
    yield
    set_to(1)


def wait_for_router(instance: Namespace, nic: Nic) -> None:
    """Wait until the kernel has processed a router advertisement."""
    show = ["ip", "-6", "route", "show", "default", "proto", "ra", "dev", nic.name]
    end = time.monotonic() + TIMEOUT_S
    while not instance.run(show).stdout:
        if time.monotonic() > end:
            raise LabError(f"{nic.name} has learned no default route from router advertisements")
        time.sleep(0.01)
