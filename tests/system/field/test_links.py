"""Selection of the links to configure: Exclude=, Manage=, udev, network namespaces and bridge ports."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    CONFIG,
    cnctl,
    ip,
    is_healthy,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3)) as made:
        yield made


def reload(lab: Lab, network: str) -> None:
    """Give netagent and the fetcher a configuration with this [Network] section."""
    lab.write_config(f"[Network]\n{network}\n{CONFIG}")
    lab.restart("netagent")
    lab.kill("fetcher", signal.SIGHUP)


def ifindex(lab: Lab, name: str) -> int:
    """Return the ifindex of a link."""
    return int(next(link["ifindex"] for link in ip(lab, "link") if link["ifname"] == name))


def objects_on_link(lab: Lab, name: str) -> list[object]:
    """Return a link's owned objects: IPv4 addresses that DHCP did not set, routes of its table and rules for it."""
    [link] = [each for each in ip(lab, "address") if each["ifname"] == name]
    table = str(9999 + link["ifindex"])
    found: list[object] = [each for each in link["addr_info"] if each["family"] == "inet" and not each.get("dynamic")]
    return found + [
        each for what in ("route-4", "rule-4") for each in own_objects(lab, what) if str(each["table"]) == table
    ]


@pytest.mark.parametrize("how", ["pattern", "mac", "manage"])
def test_newly_excluded_link_loses_owned_objects(lab: Lab, how: str) -> None:
    """The objects return with the next configuration. Addresses of the operator and of other programs stay."""
    nic = lab.nics[1]
    keys = {
        "pattern": f'Exclude = "{nic.name[:-1]}[{nic.name[-1]}] eni*"',
        "mac": f'Exclude = "{nic.mac.upper()}"',
        "manage": 'Manage = "primary"',
    }
    excluded = [nic, lab.nics[2]] if how == "manage" else [nic]
    managed = [each for each in lab.nics if each not in excluded]
    held = lab.hold_connection(managed[0].addresses[1])
    lab.batch([f"address add 192.0.2.9/32 dev {nic.name}"])
    reload(lab, keys[how])
    for each in excluded:
        lab.wait_for(lambda at=each: len(objects_on_link(lab, at.name)) <= (at is nic), 10, "the removal of objects")  # type: ignore[misc]
    wanted = {**dict.fromkeys([each.name for each in managed], "ok"), **{each.name: "excluded" for each in excluded}}
    lab.wait_for(
        lambda: {link["name"]: link["state"] for link in status(lab)["links"].values()} == wanted,
        10,
        "the states of the links after the exclusion",
    )
    lab.wait_for(lambda: status(lab)["state"] == "ok", 10, "state ok")
    assert "excluded" in cnctl(lab, "status").stdout
    assert all(lab.reachability([address for each in managed for address in each.addresses]).values())
    notices = [text for text in status(lab)["notices"] if "matches no link" in text]
    assert notices == (['[Network] Exclude="eni*" matches no link of this host'] if how == "pattern" else [])
    assert lab.log("fetcher").count('Exclude=\\"eni*\\" matches') == len(notices)
    lab.wait_for(lambda: refresh(lab) == "ok" and held.alive(), message="state ok, with the connection open")
    assert lab.log("fetcher").count('Exclude=\\"eni*\\" matches') == len(notices), "logged once"
    reload(lab, "")
    lab.wait_for(lambda: is_healthy(lab) and set(lab.addresses) <= kernel_addresses(lab), 15, "the addresses")
    assert all(lab.reachability().values())


def test_commas_in_exclude_are_refused_with_the_right_spelling(lab: Lab) -> None:
    lab.write_config('[Network]\nExclude = "eth0,eth1"\n')
    lab.kill("fetcher", signal.SIGHUP)
    lab.wait_for(lambda: '\\"eth0 eth1\\"' in lab.log("fetcher"), 10, "the fetcher's error message")
    lab.stop("netagent")
    lab.start("netagent")
    lab.wait_for(lambda: '"eth0 eth1"' in lab.log("netagent"), 10, "netagent's error message")


def test_link_waits_until_udev_has_finished_with_it() -> None:
    """udev renames a link half a second after it appeared: it is not configured under its first name."""
    with Lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        data = lab.path("/run/udev/data")
        data.mkdir(parents=True)
        lab.path("/run/udev/control").touch()
        late, excluded = lab.nics[1], lab.nics[2]
        lab.write_config(f'[Network]\nExclude = "pod*"\n{CONFIG}')
        for nic in lab.nics[:1]:
            (data / f"n{ifindex(lab, nic.name)}").touch()
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(lab.nics[0].addresses) <= kernel_addresses(lab), 10, "the primary")
        time.sleep(0.5)
        assert {link["ifname"] for link in ip(lab, "link") if "UP" in link["flags"]} == {"lo", lab.nics[0].name}
        assert f"udev has not finished with {late.name}" in str(status(lab)["notices"])
        at = ifindex(lab, late.name), ifindex(lab, excluded.name)
        lab.batch([f"link set {late.name} name ens7", f"link set {excluded.name} name pod0"])
        for each in at:
            (data / f"n{each}").touch()
        lab.wait_for(lambda: status(lab)["state"] == "ok", 4, "the links")
        states = {link["name"]: link["state"] for link in status(lab)["links"].values()}
        assert states == {lab.nics[0].name: "ok", "ens7": "ok", "pod0": "excluded"}
        assert objects_on_link(lab, "pod0") == []
        [pod] = [link for link in ip(lab, "link") if link["ifname"] == "pod0"]
        assert "UP" not in pod["flags"]


def test_hanging_udev_does_not_block_addresses() -> None:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.path("/run/udev/data").mkdir(parents=True)
        lab.path("/run/udev/control").touch()
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: is_healthy(lab), 15, "the addresses")


def test_link_in_another_namespace_is_a_notice_unless_excluded(lab: Lab) -> None:
    """A CNI plugin moves a NIC into a pod; the NIC returns when the pod ends."""
    nic = lab.nics[1]
    held = lab.hold_connection(lab.nics[2].addresses[1])
    name = nic.name
    pod = lab.run(["sh", "-c", "unshare -n sleep 120 >/dev/null 2>&1 & echo $!"]).stdout.strip()
    here = lab.run(["readlink", "/proc/self/ns/net"]).stdout
    lab.wait_for(lambda: lab.run(["readlink", f"/proc/{pod}/ns/net"]).stdout != here, 10, "the pod's namespace")
    lab.run(["ip", "link", "set", name, "netns", pod])
    lab.wait_for(lambda: status(lab)["unknown_macs"] == [nic.mac], 10, "the unknown MAC")
    assert f'Exclude="{nic.mac}"' in str(status(lab)["notices"])
    lab.wait_for(lambda: status(lab)["state"] == "ok", 45, "the end of the wait for the interface")
    assert refresh(lab) == "ok"
    assert f"{nic.mac}: its link has left this host" in str(status(lab)["notices"])
    assert cnctl(lab, "status").returncode == 0
    assert all(lab.reachability([*lab.nics[0].addresses, *lab.nics[2].addresses]).values())
    assert held.alive()
    run = status(lab)["run"]
    lab.restart("fetcher")
    lab.wait_for(lambda: status(lab)["run"] != run and status(lab)["compared_at"], 20, "the first comparison")
    assert (status(lab)["state"], status(lab)["departed_macs"]) == ("ok", [nic.mac]), "a new process knows it, too"
    reload(lab, f'Exclude = "{nic.mac}"')
    lab.wait_for(lambda: "configuration read again" in lab.log("fetcher"), message="the reload")
    assert refresh(lab) == "ok"
    assert nic.mac not in str(status(lab)["notices"])
    reload(lab, "")
    lab.run(["sh", "-c", f"nsenter -t {pod} -n ip link set {name} netns $$"])
    lab.wait_for(lambda: is_healthy(lab), 20, "the interface")
    assert all(lab.reachability().values())


def test_port_of_a_bridge_with_another_mac_is_not_the_interface(lab: Lab) -> None:
    """A guest behind the bridge has an address of the interface: the host must not answer for it."""
    nic = lab.attach_interface(
        Interface("10.0.9.0/24", 2), first_update="interface", between_updates=lambda: enslave(lab)
    )
    lab.wait_for(lambda: nic.mac in str(status(lab)["notices"]), 10, "the reason")
    assert refresh(lab) == "degraded"
    assert set(nic.addresses).isdisjoint(kernel_addresses(lab))
    notices = str(status(lab)["notices"])
    assert f"{nic.name} has that MAC and is a port of br1" in notices
    ended = cnctl(lab, "doctor")
    assert (ended.returncode, "is a port of br1" in " ".join(ended.stdout.split())) == (1, True)
    assert f'[Network] Exclude="{nic.mac}"' in notices
    assert "AllowKinds" not in notices
    assert all(lab.reachability([address for each in lab.nics[:3] for address in each.addresses]).values())
    reload(lab, f'Exclude = "{nic.mac}"')
    lab.wait_for(lambda: status(lab)["state"] == "ok", 10, "state ok")
    reload(lab, "")
    lab.batch([f"link set {nic.name} nomaster"])
    wait_until_healthy(lab)
    assert set(nic.addresses) <= kernel_addresses(lab)


def test_new_bridge_port_loses_owned_objects(lab: Lab) -> None:
    """Otherwise the host would answer for the guest behind the bridge, which has the address now."""
    nic, others = lab.nics[1], [address for each in (lab.nics[0], lab.nics[2]) for address in each.addresses]
    held = lab.hold_connection(lab.nics[2].addresses[1])
    lab.batch(["link add br1 type bridge", "link set br1 address 02:aa:bb:cc:dd:01", f"link set {nic.name} master br1"])
    lab.wait_for(lambda: objects_on_link(lab, nic.name) == [], 10, "the removal of the owned objects")
    assert refresh(lab) == "degraded"
    assert f"{nic.name} has that MAC and is a port of br1" in str(status(lab)["notices"])
    assert all(lab.reachability(others).values())
    assert held.alive()
    lab.batch([f"link set {nic.name} nomaster"])
    lab.wait_for(lambda: is_healthy(lab), 15, "the interface")
    assert all(lab.reachability().values())


def enslave(lab: Lab) -> None:
    """Create a bridge with a separate MAC, and make the new NIC its port."""
    [name] = [link["ifname"] for link in ip(lab, "link") if link["ifname"] not in ("lo", "eth0", "eth1", "eth2")]
    lab.batch(["link add br1 type bridge", "link set br1 address 02:aa:bb:cc:dd:01", f"link set {name} master br1"])
