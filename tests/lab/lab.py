"""The lab: a cloud, an instance in it, and hosts that try to reach the instance.

    neighbour0 ── sn0 ──┐                 ┌── eth0 (device 0)
    neighbour1 ── sn1 ──┤  cloud (router, │── eth2 (device 1)   instance: its own network, mounts, /run, /etc, /sys,
        …          …    │  169.254.169.254)── eth3 (device 2)   accounts and process numbers
    beyond0 ───── wan ──┘                 └── eth1 (device 3)

The kernel's routing is real; only metadata and DHCP are emulated. The primary interface is configured as DHCP does in a
cloud's image: link up, first address with a lifetime, default route `proto dhcp`. The other links are down. IPv6 routes
come from router advertisements (router6.py). A cloud's differences are in its `Convention`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, Self, TypeVar

from .boot import boot
from .fabric import Fabric
from .filter import LostPackets
from .metadata import PROVIDERS, Metadata
from .namespaces import LAB_RUN, LabError, Namespace, Namespaces
from .nic import Interface, Nic
from .processes import USERS, Daemons
from .reach import HeldConnection, Reach
from .spec import Resolver, Spec, beyond_address, beyond_address6, resolve

CHECKOUT = Path(__file__).parents[2]
RESOLVER = "169.254.169.253"

INSTANCE_SYSCTL = MappingProxyType(
    {
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.default.rp_filter": "2",
        "net.ipv4.conf.all.promote_secondaries": "0",
        "net.ipv4.conf.default.promote_secondaries": "0",
    }
)
"""Loose reverse path filter, as systemd sets it on Debian; no promotion of secondaries, the harder case."""

ROUTER_SYSCTL = MappingProxyType(
    {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.default.rp_filter": "0",
        "net.ipv4.conf.all.send_redirects": "0",
        "net.ipv4.conf.default.send_redirects": "0",
        "net.ipv6.conf.all.forwarding": "1",
        "net.ipv6.conf.default.accept_dad": "0",
    }
)

HOST_SYSCTL = MappingProxyType({"net.ipv6.conf.default.accept_ra": "0", "net.ipv6.conf.default.accept_dad": "0"})
"""Outside hosts have only the addresses that the lab gives them. The instance's kernel is unchanged."""

T = TypeVar("T")
Where = str | tuple[str, int]
Update = Literal["metadata", "interface"]


def do_nothing() -> None:
    """Default for `between_updates`, the callback between the two halves of a change."""


class Lab:
    """`with Lab(Spec.aws(interfaces=4, addresses=15)) as lab:`; removed at the end, and when the process is killed.

    With `taps` the cloud's interfaces are taps, for a virtual machine, and the instance's namespace has none.
    """

    def __init__(self, spec: Spec, taps: bool = False) -> None:
        self.spec = spec
        self.taps = taps
        self.convention = PROVIDERS[spec.provider].convention
        self._resolver = Resolver(self.convention.gateway)
        self.nics = resolve(spec, self._resolver)

    def __enter__(self) -> Self:
        self.namespaces = Namespaces()
        try:
            self._build()
        except BaseException:
            self.namespaces.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(self.report())
        self.close()

    def close(self) -> None:
        self.namespaces.close()
        self.reach.close()
        self.daemons.close()
        self.fabric.close()
        self._metadata_process.wait(10)

    # — building

    def _build(self) -> None:
        self._open_instance()
        self.cloud = self.namespaces.open({"name": "cloud", "sysctl": dict(ROUTER_SYSCTL)})[0]
        self.fabric = Fabric(self.cloud, self.convention)
        self._start_metadata()
        self.neighbours: list[Namespace] = []
        self._add_subnets(self.nics)
        self.beyond = self._open_hosts("beyond", 0, self.spec.beyond)
        self.fabric.add_beyond_hosts(
            {namespace: (beyond_address(n), beyond_address6(n)) for n, namespace in enumerate(self.beyond)}
        )
        self.fabric.plug(self.nics, None if self.taps else self.instance)
        self.fabric.register_interfaces(self.nics)
        if not self.taps:
            served = self.nics if self.spec.dhcp_all or self.convention.all_links else self.nics[:1]
            boot(self.instance, served, self.fabric)
        self.daemons = Daemons(self.instance)
        self.reach = Reach()
        self.metadata = Metadata(self.cloud.path(LAB_RUN / "metadata.sock"))
        self._load_metadata()

    def _open_instance(self) -> None:
        primary = self.nics[0].addresses[0]
        hostname = f"ip-{primary.replace('.', '-')}"
        interpreter = {Path(sys.prefix), Path(sys.base_prefix)}
        [self.instance] = self.namespaces.open(
            {
                "name": "instance",
                "sysctl": {**INSTANCE_SYSCTL, **self.spec.sysctl},
                "hostname": hostname,
                "expose": sorted({str(CHECKOUT)} | {str(p) for p in interpreter if not p.is_relative_to(CHECKOUT)}),
                "users": dict(USERS),
                "etc": {"resolv.conf": f"nameserver {RESOLVER}\n", "hostname": f"{hostname}\n"},
                "dmi": dict(PROVIDERS[self.spec.provider].dmi),
            }
        )

    def _start_metadata(self) -> None:
        argv = [sys.executable, "-m", f"{__package__}.metadata", self.spec.provider, str(LAB_RUN / "metadata.sock")]
        self._metadata_process = self.cloud.popen(argv, stdout=None, env={"PYTHONPATH": str(CHECKOUT)})

    def _open_hosts(self, kind: str, first: int, count: int) -> list[Namespace]:
        return self.namespaces.open(
            *({"name": f"{kind}{first + n}", "sysctl": dict(HOST_SYSCTL)} for n in range(count))
        )

    def _add_subnets(self, nics: Sequence[Nic]) -> None:
        """Add the missing subnets, each with a neighbour."""
        wanted = {nic.subnet: nic.gateway for nic in nics if nic.subnet not in self.fabric.subnets}
        neighbours = self._open_hosts("neighbour", len(self.neighbours), len(wanted))
        self.fabric.add_subnets(wanted, neighbours)
        self.neighbours += neighbours

    def _load_metadata(self) -> None:
        self.metadata.load(self.nics)
        if self.spec.settings:
            self.metadata.configure(**self.spec.settings)
        self.metadata.reset()

    # — reading the state

    @property
    def addresses(self) -> list[str]:
        """Return every private IPv4 address of the instance, as the cloud has it."""
        return [address for nic in self.nics for address in nic.addresses]

    @property
    def addresses6(self) -> list[str]:
        """Return every IPv6 address of the instance, as the cloud has it."""
        return [address for nic in self.nics for address in nic.ipv6]

    @property
    def range_ends(self) -> list[str]:
        """Return the first and last address of every delegated range."""
        return [address for nic in self.nics for address in nic.range_ends]

    @property
    def sources(self) -> list[Namespace]:
        return [*self.beyond, *self.neighbours]

    def nic(self, key: str) -> Nic:
        """Return an interface by MAC, by kernel name, or by one of its addresses."""
        for nic in self.nics:
            if key in (nic.mac, nic.name, *nic.all_addresses):
                return nic
        raise LabError(f"no interface {key}")

    def namespace(self, where: Where) -> Namespace:
        if isinstance(where, tuple):
            return self.namespaces[f"{where[0]}{where[1]}"]
        return self.namespaces["beyond0" if where == "beyond" else where]

    def path(self, path: str | Path) -> Path:
        """Return a file of the instance as a path for this process."""
        return self.instance.path(path)

    def run(
        self,
        argv: Sequence[str],
        where: Where = "instance",
        *,
        user: str | None = None,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a namespace, as root or as one of its users."""
        return self.namespace(where).run(argv, user=user, check=check, stdin=stdin, timeout=timeout)

    def batch(self, lines: Sequence[str]) -> None:
        """Run `ip -batch` in the instance."""
        self.instance.batch(lines)

    def lost(self) -> list[LostPackets]:
        return self.fabric.lost()

    def dropped(self) -> int:
        """Return the number of packets that left the instance through an interface that does not own their source."""
        return sum(lost.packets for lost in self.fabric.lost())

    def report(self) -> str:
        """Return the information needed after a failed test."""
        lost = [f"  {lost}" for lost in self.fabric.lost()[:20]]
        return "\n".join(["--- lost packets" if lost else "--- no lost packets", *lost, self.daemons.report()])

    # — changing the cloud while it runs

    def attach_interface(
        self,
        interface: Interface,
        first_update: Update = "metadata",
        between_updates: Callable[[], object] = do_nothing,
    ) -> Nic:
        """Hot-plug an interface.

        Clouds update the host and the metadata in either order; `between_updates` is called after the first update.
        """
        device = 1 + max(nic.device for nic in self.nics)
        taken = {nic.name for nic in self.nics}
        name = next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)
        nic = self._resolver.resolve(interface, device, name)
        self._add_subnets([nic])

        def plug() -> None:
            self.fabric.register_interfaces([nic])  # first: the fetcher uses the new interface at once
            self.fabric.plug([nic], None if self.taps else self.instance)

        self._change([*self.nics, nic], plug, first_update, between_updates)
        return nic

    def detach_interface(
        self, mac: str, first_update: Update = "interface", between_updates: Callable[[], object] = do_nothing
    ) -> None:
        nic = self.nic(mac)

        def unplug() -> None:
            self.fabric.unregister_interface(nic)
            self.fabric.unplug(nic)

        self._change([other for other in self.nics if other != nic], unplug, first_update, between_updates)

    def add_address(self, mac: str, address: str) -> None:
        """Add an address of either family. The first IPv6 address of an interface decides its /64."""
        nic = self.nic(mac)
        if ":" in address:
            subnet6 = nic.subnet6 or str(IPv6Network((address, 64), strict=False))
            new = replace(nic, ipv6=(*nic.ipv6, address), subnet6=subnet6)
        else:
            new = replace(nic, addresses=(*nic.addresses, address))
        self.fabric.register_address(new, address)
        self._replace(nic, new)

    def remove_address(self, mac: str, address: str) -> None:
        nic = self.nic(mac)
        self.fabric.unregister_address(nic, address)
        left = tuple(other for other in nic.addresses if other != address)
        left6 = tuple(other for other in nic.ipv6 if other != address)
        public = {private: public for private, public in nic.public.items() if private != address}
        self._replace(nic, replace(nic, addresses=left, ipv6=left6, public=public))

    def add_range(self, mac: str, prefix: str) -> None:
        """Add a delegated block or alias range, in CIDR notation."""
        nic = self.nic(mac)
        new = replace(nic, prefixes=(*nic.prefixes, prefix))
        self.fabric.register_address(new, prefix)
        self._replace(nic, new)

    def remove_range(self, mac: str, prefix: str) -> None:
        nic = self.nic(mac)
        self.fabric.unregister_address(nic, prefix)
        self._replace(nic, replace(nic, prefixes=tuple(other for other in nic.prefixes if other != prefix)))

    def _replace(self, old: Nic, new: Nic) -> None:
        self._change([new if nic == old else nic for nic in self.nics])

    def _change(
        self,
        nics: list[Nic],
        update_host: Callable[[], None] = do_nothing,
        first_update: Update = "interface",
        between_updates: Callable[[], object] = do_nothing,
    ) -> None:
        def update_metadata() -> None:
            self.nics = nics
            self.metadata.load(nics)

        if first_update == "metadata":
            update_metadata()
            between_updates()
            update_host()
        else:
            update_host()
            between_updates()
            update_metadata()

    # — the daemons

    def write_config(self, text: str) -> None:
        """Replace the configuration in one step, as editors do: no daemon reads half of it."""
        new = self.path("/etc/cloud-network/cloud-network.toml.new")
        new.write_text(text)
        new.rename(self.path("/etc/cloud-network/cloud-network.toml"))

    def start(self, name: str, *argv: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
        """Run the console script cloud-network-NAME (netagent, fetcher, api) as root in the instance."""
        self.daemons.start(name, *argv, env=env)

    def stop(self, name: str) -> int:
        return self.daemons.stop(name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.daemons.kill(name, number)

    def restart(self, name: str) -> None:
        self.daemons.stop(name)
        self.daemons.start(name)

    def log(self, name: str) -> str:
        """Return the daemon's output on stdout and stderr, including earlier runs."""
        return self.daemons.log(name)

    def wait_for(self, predicate: Callable[[], T], timeout: float = 10, message: str = "") -> T:
        """Return the first true value of `predicate`; after the timeout, AssertionError with lost packets and logs."""
        end = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {message or predicate}\n{self.report()}")
            time.sleep(0.03)
        return value

    # — reachability

    def reachability(self, addresses: Sequence[str] | None = None, timeout: float = 1.5) -> dict[tuple[str, str], bool]:
        """Return {(source, address): answered} for every outside host and every address, tested in parallel.

        An answer proves that it left through the interface that owns the address: the cloud drops others (filter.py).
        Without `addresses`, all addresses of the instance are tested, but none of ranges. A neighbour in a subnet
        without IPv6 does not connect to IPv6 addresses.
        """
        self.reach.listen(self.instance)
        wanted = [*self.addresses, *self.addresses6] if addresses is None else addresses
        four = [(address, None) for address in wanted if ":" not in address]
        six = [(address, None) for address in wanted if ":" in address]
        sources = {namespace: [*four, *(six if self.fabric.has_ipv6(namespace) else [])] for namespace in self.sources}
        answers = self.reach.probe(sources, timeout)
        return {(source, target): answered for (source, target, _), answered in answers.items()}

    def outbound(self, timeout: float = 1.5, addresses: Sequence[str] | None = None) -> dict[str, bool]:
        """Return {address: can connect from it to the first host beyond}; False if it is not configured."""
        self.reach.listen(self.beyond[0])
        sources = [*self.addresses, *self.addresses6] if addresses is None else addresses
        wanted = [(beyond_address6(0) if ":" in source else beyond_address(0), source) for source in sources]
        answers = self.reach.probe({self.instance: wanted}, timeout)
        return {str(source): answered for (_, _, source), answered in answers.items()}

    def hold_connection(self, address: str, source: Where = "beyond", timeout: float = 3) -> HeldConnection:
        """Open a connection to `address`; `.alive()` sends bytes through it and waits for their echo."""
        self.reach.listen(self.instance)
        return self.reach.hold(self.namespace(source), address, timeout)
