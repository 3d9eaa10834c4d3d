"""Changes as netagent reads them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.apply import Netagent, NetagentError, to_operation
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.objects import Actual, Address, Route, Rule
from cloud_network.fetcher.network.plan import Change, LinkMtu, LinkUp, Verb, plan
from cloud_network.netagent import protocol
from hypothesis import given

from tests.unit.fetcher.values import BASE, clouds, configs, hosts


@given(clouds(), configs, hosts())
def test_every_plan_is_a_request_of_the_protocol(cloud: Instance, config: Config, before: Actual) -> None:
    changes = plan(desired(cloud, config, before), before, may_remove=True)
    request = protocol.Apply("x", tuple(map(to_operation, changes)), 30)
    if changes:
        frame = protocol.encode(request.to_wire())
        assert protocol.request_from_wire(protocol.decode(frame[protocol.HEADER.size :])) == request


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize(
    ("what", "name", "fields"),
    [
        (LinkUp(3), "link_up", {"link": 3}),
        (LinkMtu(3, 9001), "link_mtu", {"link": 3, "mtu": 9001}),
        (Address(3, ip_address("10.0.1.10"), 24, connected=True), "address", {"address": b"\n\0\1\n", "prefix": 24}),
        (
            Route(BASE + 3, 3, ip_network("10.0.2.0/24"), ip_address("10.0.1.1")),
            "route",
            {"table": BASE + 3, "link": 3, "address": b"\n\0\2\0", "prefix": 24, "gateway": b"\n\0\1\1"},
        ),
        (
            Route(BASE + 3, 3, ip_network("::/0"), None),
            "route",
            {"table": BASE + 3, "link": 3, "address": bytes(16), "prefix": 0, "gateway": None},
        ),
        (
            Rule(31000, 4, ip_network("10.0.1.10"), BASE + 3, suppress=True),
            "rule",
            {
                "priority": 31000,
                "address": b"\n\0\1\n",
                "prefix": 32,
                "table": BASE + 3,
                "suppress": True,
                "to": False,
                "local": False,
            },
        ),
        (
            Rule(31010, 6, None, 254, suppress=True),
            "rule",
            {
                "priority": 31010,
                "address": bytes(16),
                "prefix": 0,
                "table": 254,
                "suppress": True,
                "to": False,
                "local": False,
            },
        ),
        (
            Rule(31020, 4, ip_network("10.0.1.10"), BASE + 3, suppress=False, to=True),
            "rule",
            {
                "priority": 31020,
                "address": b"\n\0\1\n",
                "prefix": 32,
                "table": BASE + 3,
                "suppress": False,
                "to": True,
                "local": False,
            },
        ),
    ],
)
def test_a_change_says_what_it_is_in_numbers(
    verb: Verb, what: LinkUp | LinkMtu | Address | Route | Rule, name: str, fields: dict[str, object]
) -> None:
    op = to_operation(Change(verb, what)).to_wire()
    if isinstance(what, LinkUp | LinkMtu):
        assert op == {"op": name, **fields}
        return
    ending = {"route": ("replace", "remove")}.get(name, ("add", "remove"))[verb is Verb.REMOVE]
    assert op.pop("op") == f"{name}_{ending}"
    if isinstance(what, Address):
        assert op.pop("link") == 3
        assert op.pop("route", None) == (True if verb is Verb.ADD else None)
    assert op == fields


def test_a_netagent_that_is_not_there_is_named_with_its_socket() -> None:
    with pytest.raises(NetagentError, match=r"/nowhere/netagent.sock: No such file.*running\?"):
        Netagent("/nowhere/netagent.sock")
