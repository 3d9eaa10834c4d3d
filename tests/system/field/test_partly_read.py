"""An incomplete read of the metadata removes nothing; additions must not block the later removal."""

from __future__ import annotations

from tests.lab import Spec
from tests.system.service import MACS, ip, is_healthy, kernel_addresses, refresh, running_lab


def test_address_is_added_while_the_removal_of_the_first_waits() -> None:
    """A second address with the subnet's length would be a secondary address of the first, and netagent would keep
    both.
    """
    with running_lab(Spec.aws(interfaces=2, addresses=3), "", "netagent", "fetcher") as lab:
        nic, other = lab.nics[1], lab.nics[0]
        first, second = nic.addresses[:2]
        lab.metadata.fail("status", f"{MACS}{other.mac}/*", status=500)
        lab.remove_address(nic.mac, first)
        lab.batch([f"address flush dev {nic.name} to {second}/32"])
        refresh(lab)
        lab.wait_for(lambda: second in kernel_addresses(lab), 20, "the address")
        assert first in kernel_addresses(lab), "the test needs a removal that waits"
        lab.metadata.clear()
        refresh(lab)
        lab.wait_for(lambda: is_healthy(lab), 30, "the removal")
        assert first not in kernel_addresses(lab)
        [link] = [each for each in ip(lab, "address") if each["ifname"] == nic.name]
        lengths = {each["local"]: each["prefixlen"] for each in link["addr_info"] if each["family"] == "inet"}
        assert lengths == {second: 24, nic.addresses[2]: 32}
