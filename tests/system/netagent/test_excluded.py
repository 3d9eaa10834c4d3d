"""Links of Exclude=: nothing may be added, and owned objects may be removed."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, route, rule


@pytest.mark.parametrize("pattern", ["eth0", "e*0", "eth[0]", "MAC"])
def test_excluded_link_loses_our_objects_and_gets_none(lab: Lab, pattern: str) -> None:
    on, text = ifindex(lab, "eth0"), "10.0.2.10/24"
    with Wire(lab) as wire:
        added = [address(on, text), route(on, "0.0.0.0/0", "10.0.2.1"), rule("10.0.2.10", 9999 + on)]
        assert wire.apply(*added)["verdict"] == "applied"
    lab.stop("netagent")
    lab.write_config(f'[Network]\nExclude = "{lab.nic("eth0").mac if pattern == "MAC" else pattern}"\n{CONFIG}')
    start(lab)
    with Wire(lab) as wire:
        more = [address(on, "10.0.2.11/32"), route(on, "10.9.0.0/16", "10.0.2.1"), rule("10.0.2.10", 9999 + on, 31020)]
        for op in more:
            assert wire.apply(op)["reason"] == "eth0 is excluded"
        removed = [
            rule("10.0.2.10", 9999 + on, op="rule_remove"),
            route(on, "0.0.0.0/0", "10.0.2.1", op="route_remove"),
            address(on, text, "address_remove"),
        ]
        assert wire.apply(*removed)["verdict"] == "applied"
