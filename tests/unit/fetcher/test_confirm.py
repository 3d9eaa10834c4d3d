"""Conclusions from netagent's refusals about single objects."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cloud_network.fetcher.confirm import rejections_of_refusals
from cloud_network.fetcher.network.objects import GatewayUse
from cloud_network.netagent.operations import RouteReplace
from cloud_network.netagent.protocol import Refused

from .values import BASE

GATEWAY = ip_address("10.0.2.250")
KEY = f'[Netagent] AllowGateways="{GATEWAY}"'


def test_gateway_of_several_refused_routes_is_reported() -> None:
    """The later routes may have been refused because of the first one, so that one is reported."""
    ops = tuple(RouteReplace(BASE + 3, 3, ip_network(each), GATEWAY) for each in ("10.0.2.0/24", "0.0.0.0/0"))
    refusals = (Refused("not known", 0, allow=KEY), Refused("not known", 1, allow=KEY, depends_on=0))
    [(refused, rejection)] = rejections_of_refusals(refusals, ops).items()
    assert refused == GatewayUse(3, GATEWAY)
    assert not rejection.dependent
