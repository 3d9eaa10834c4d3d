"""The view of a kernel that changes while it is read: its dumps need not agree."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from cloud_network.netagent import request_policy
from cloud_network.netagent.operations import RuleAdd
from cloud_network.netagent.rtnetlink import Address, Link
from cloud_network.netagent.settings import Settings
from cloud_network.netagent.view import Known, Snapshot, View


def test_an_address_of_a_link_that_is_newer_than_the_links() -> None:
    """A rule for it is refused; once it ended netagent with a KeyError, and gave every budget back."""
    links = (Link(index=2, name="eth0", mtu=1500, kind=None, up=True, loopback=False),)
    addresses = (Address(9, IPv4Address("10.0.5.5"), 24, 0, None),)
    view = View(Snapshot(links, addresses, (), (), frozenset()), Settings(), Known())
    rule = RuleAdd(31000, IPv4Network("10.0.5.5/32"), False, 10001, True, False)
    (refused,) = request_policy.check_all([rule], view)
    assert refused.reason == "10.0.5.5/32 is no address or range of eth0"
