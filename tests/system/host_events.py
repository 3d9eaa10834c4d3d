"""Events that other programs and operators cause on real hosts (issue 17). Each can be undone."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Collection

from tests.lab import Lab, Nic
from tests.lab.spec import beyond_address

Event = Callable[[], str | None]
BRIDGE, VIP = "port0", "vip0"
BRIDGE_MAC = "02:aa:bb:cc:dd:01"  # differs from its port's
METADATA_LOCK = "prohibit 169.254.169.254/32"  # a route of systemd-imdsd in locked mode
POD_BRIDGE, POD_RANGE = "cbr0", (".208/28", ".209/28")  # a delegated range of a /24, and the bridge's address in it


class HostEvents:
    """Causes these events, at most one of each kind at a time, and undoes them.

    `safe` are the MACs of interfaces that keep their links. `on_removal` is called with each interface whose addresses
    the daemons must remove because of an event.
    """

    def __init__(
        self,
        lab: Lab,
        chance: random.Random,
        config: str,
        safe: Collection[str],
        on_removal: Callable[[Nic], None],
    ) -> None:
        self._lab, self._chance, self._config = lab, chance, config
        self._safe, self._on_removal = safe, on_removal
        self._undo: dict[Event, Callable[[], None]] = {}
        self.excluded = frozenset[str]()  # MACs in Exclude=
        self.events: dict[Event, int] = {
            self._disable_ipv6: 2,
            self._forward: 1,
            self._duplicate: 2,
            self._enslave: 1,
            self._lease_route: 2,
            self._exclude: 1,
            self._move_to_pod: 1,
            self._assign_range_to_pods: 1,
            self._lower_mtu: 1,
            self._lock_metadata: 1,
            self._undo_one: 6,
        }

    def undo(self) -> None:
        """Undo every event."""
        while self._undo_one():
            pass

    def _undo_one(self) -> str | None:
        if not self._undo:
            return None
        event, undo = self._undo.popitem()
        undo()
        return f"undone: {event.__name__.strip('_')}"

    def _begin(self, event: Event, undo: Callable[[], None], text: str) -> str:
        self._undo[event] = undo
        return text

    def _disable_ipv6(self) -> str | None:
        if self._disable_ipv6 in self._undo:
            return None
        nic = self._chance.choice(self._lab.nics)
        key = f"net.ipv6.conf.{nic.name}.disable_ipv6"
        self._sysctl(key, 1)
        return self._begin(self._disable_ipv6, lambda: self._sysctl(key, 0), f"{key}=1")

    def _forward(self) -> str | None:
        """Enable forwarding, as Docker and k3s do. The kernel then removes what routers advertised; real routers
        advertise it again.
        """
        if self._forward in self._undo:
            return None
        key = "net.ipv6.conf.all.forwarding"

        def undo() -> None:
            self._sysctl(key, 0)
            for subnet in self._lab.fabric.subnets:
                self._lab.fabric.advertise(subnet)

        self._sysctl(key, 1)
        return self._begin(self._forward, undo, f"{key}=1")

    def _duplicate(self) -> str | None:
        """Add an address of the cloud to another link as well, as kube-proxy and VIPs do."""
        if self._duplicate in self._undo:
            return None
        address = self._chance.choice(self._lab.addresses)
        if self._chance.random() < 0.5:
            self._ip(f"address add {address}/32 dev lo")
            undo = f"address del {address}/32 dev lo"
        else:
            self._ip(f"link add {VIP} type bridge", f"link set {VIP} up", f"address add {address}/32 dev {VIP}")
            undo = f"link delete {VIP}"
        where = undo.split()[-1]
        return self._begin(self._duplicate, lambda: self._ip(undo), f"{address} added to {where}")

    def _enslave(self) -> str | None:
        nic = self._unsafe()
        if nic is None or self._enslave in self._undo:
            return None
        self._on_removal(nic)
        self._ip(
            f"link add {BRIDGE} address {BRIDGE_MAC} type bridge",
            f"link set {BRIDGE} up",
            f"link set {nic.name} master {BRIDGE}",
        )
        return self._begin(self._enslave, lambda: self._ip(f"link delete {BRIDGE}"), f"{nic.name} is a port")

    def _lease_route(self) -> str | None:
        """Add a host route as DHCP does, to the host beyond, by one of several links."""
        if self._lease_route in self._undo:
            return None
        nic = self._chance.choice(self._lab.nics)
        route = f"{beyond_address(0)} via {nic.gateway} dev {nic.name} proto dhcp"
        self._ip(f"route add {route}")
        return self._begin(self._lease_route, lambda: self._ip(f"route del {route}"), f"route {route}")

    def _exclude(self) -> str | None:
        nic = self._unsafe()
        if nic is None or self._exclude in self._undo:
            return None
        self._on_removal(nic)
        self.excluded = frozenset({nic.mac})
        self._configure(f'[Network]\nExclude = "{nic.mac}"\n{self._config}')

        def undo() -> None:
            self._configure(self._config)
            self.excluded = frozenset()

        return self._begin(self._exclude, undo, f"{nic.name} is excluded")

    def _move_to_pod(self) -> str | None:
        """Move a link into another network namespace, as CNI plugins do, and later back."""
        nic = self._unsafe()
        if nic is None or self._move_to_pod in self._undo:
            return None
        pod = self._lab.run(["sh", "-c", "unshare -n sleep infinity >/dev/null 2>&1 & echo $!"]).stdout.strip()
        namespace = self._lab.run(["readlink", "/proc/self/ns/net"]).stdout
        self._lab.wait_for(
            lambda: self._lab.run(["readlink", f"/proc/{pod}/ns/net"]).stdout != namespace, message="the pod"
        )
        self._ip(f"link set {nic.name} netns {pod}")

        def undo() -> None:
            script = f"nsenter -t {pod} -n ip link set {nic.name} netns $$; kill {pod}"
            self._lab.run(["sh", "-c", script], check=False)  # the interface may be detached

        return self._begin(self._move_to_pod, undo, f"{nic.name} moved to a pod")

    def _assign_range_to_pods(self) -> str | None:
        """Delegate a range to an interface, and add a bridge with an address of the range, before or after that."""
        nic = self._unsafe()
        if nic is None or self._assign_range_to_pods in self._undo:
            return None
        prefix, address = (nic.subnet.replace(".0/24", end) for end in POD_RANGE)
        steps: list[Callable[[], None]] = [
            lambda: self._lab.add_range(nic.mac, prefix),
            lambda: self._ip(
                f"link add {POD_BRIDGE} type bridge",
                f"address add {address} dev {POD_BRIDGE}",
                f"link set {POD_BRIDGE} up",
            ),
        ]
        self._chance.shuffle(steps)
        for step in steps:
            step()
            time.sleep(self._chance.choice((0.0, 0.5, 2.0)))

        def undo() -> None:
            self._ip(f"link delete {POD_BRIDGE}")
            if any(each.mac == nic.mac for each in self._lab.nics):
                self._lab.remove_range(nic.mac, prefix)

        return self._begin(self._assign_range_to_pods, undo, f"pods use {prefix} of {nic.name}")

    def _lower_mtu(self) -> str | None:
        """Lower a link's MTU below IPv6's minimum: the kernel removes IPv6 from it."""
        if self._lower_mtu in self._undo:
            return None
        nic = self._chance.choice(self._lab.nics)
        self._ip(f"link set {nic.name} mtu 1200")
        return self._begin(self._lower_mtu, lambda: self._ip(f"link set {nic.name} mtu 1500"), f"{nic.name} mtu 1200")

    def _lock_metadata(self) -> str | None:
        if self._lock_metadata in self._undo:
            return None
        self._ip(f"route add {METADATA_LOCK}")
        return self._begin(self._lock_metadata, lambda: self._ip(f"route del {METADATA_LOCK}"), "metadata locked")

    def _configure(self, text: str) -> None:
        self._lab.write_config(text)
        for name in ("netagent", "fetcher"):
            if self._lab.daemons.running(name):
                self._lab.kill(name, signal.SIGHUP)

    def _unsafe(self) -> Nic | None:
        nics = [nic for nic in self._lab.nics if nic.mac not in self._safe]
        return self._chance.choice(nics) if nics else None

    def _sysctl(self, key: str, value: int) -> None:
        self._lab.run(["sysctl", "-qw", f"{key}={value}"], check=False)  # the link may be removed

    def _ip(self, *lines: str) -> None:
        for line in lines:
            self._lab.run(["ip", *line.split()], check=False)
