"""GCP alias ranges that pods use: removed as soon as another link has an address of the range."""

from __future__ import annotations

import signal
from dataclasses import replace

from tests.lab import Interface, Lab, Spec
from tests.system.service import CONFIG, ip, kernel_addresses, own_objects, refresh, running_lab, status

RANGE, POD, BRIDGE = "10.4.0.0/24", "10.4.0.7", "10.4.0.1/24"
SPEC = Spec((Interface("10.0.1.0/24", 1, prefixes=(RANGE,)), Interface("10.0.2.0/24", 1)), provider="gcp")


def local(lab: Lab) -> list[str]:
    """Return the destinations of the owned routes of type local."""
    return [route["dst"] for route in own_objects(lab, "route-4") if route["table"] == "local"]


def is_range_removed(lab: Lab) -> bool:
    return local(lab) == [] and status(lab)["state"] == "degraded"


def check_range_is_removed(lab: Lab) -> None:
    """Check that the state reports the range with both keys, and that either key makes it ok."""
    nic = lab.nics[0]
    lab.wait_for(lambda: is_range_removed(lab), 10, "the range to be removed")
    assert refresh(lab) == "degraded"
    message = status(lab)["last_error"]["message"]
    assert f"{RANGE} of {nic.name}: cbr0 has 10.4.0.1" in message
    assert '[Network] Prefixes="ignore"' in message
    assert f'ExcludeAddresses="{RANGE}"' in message
    assert ip(lab, "route", "get", POD)[0]["dev"] == "cbr0"
    assert all(lab.reachability().values())
    for key in ('Prefixes = "ignore"', f'ExcludeAddresses = "{RANGE}"'):
        lab.write_config(f"[Network]\n{key}\n{CONFIG}")
        lab.kill("fetcher", signal.SIGHUP)
        lab.wait_for(lambda: status(lab)["state"] == "ok", 10, f"{key}")
        lab.write_config(CONFIG)
        lab.kill("fetcher", signal.SIGHUP)
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the report")
    lab.batch(["link delete cbr0"])
    lab.wait_for(lambda: local(lab) == [RANGE], 10, "the range")
    lab.wait_for(lambda: status(lab)["state"] == "ok", 10, "state ok")


def test_range_is_given_up_when_pods_start_later() -> None:
    with running_lab(SPEC, "", "netagent", "fetcher") as lab:
        assert local(lab) == [RANGE]
        lab.batch(["link add cbr0 type bridge", f"address add {BRIDGE} dev cbr0", "link set cbr0 up"])
        check_range_is_removed(lab)


def test_range_of_earlier_pods_is_left_alone() -> None:
    with Lab(replace(SPEC)) as lab:
        lab.batch(["link add cbr0 type bridge", f"address add {BRIDGE} dev cbr0", "link set cbr0 up"])
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), 10, "the addresses")
        check_range_is_removed(lab)


def test_range_in_a_subnet_of_two_secondary_interfaces() -> None:
    """AWS: neither has the subnet by DHCP, and the range is not of the one that gets its connected route."""
    subnet, block = "10.0.2.0/24", "10.0.2.64/28"
    spec = Spec((Interface("10.0.1.0/24", 2), Interface(subnet, 2), Interface(subnet, 2, prefixes=(block,))))
    with running_lab(spec, "", "netagent", "fetcher") as lab:
        primary, first, last = lab.nics
        lab.wait_for(lambda: status(lab)["state"] == "ok", 20, "state ok")
        selects = [each["table"] for each in own_objects(lab, "rule-4") if each["src"] == "10.0.2.64"]
        assert selects
        assert all(lab.reachability().values())
        lab.detach_interface(first.mac, "metadata", lambda: refresh(lab))
        lab.wait_for(lambda: refresh(lab) == "ok", 20, "state ok without the other interface")
        assert [each["table"] for each in own_objects(lab, "rule-4") if each["src"] == "10.0.2.64"] == selects
        assert all(lab.reachability([*primary.addresses, *last.addresses]).values())
