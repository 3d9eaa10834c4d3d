"""A gateway that the fetcher may not ask, as under IPAddressDeny= of its unit, is judged after its route is made."""

from __future__ import annotations

from tests.lab import Spec
from tests.system.job import running, settle, status

DENY = """
table inet deny {
    chain output {
        type filter hook output priority 0;
        udp dport 9 ip daddr != 169.254.169.254 drop
        udp dport 9 ip6 daddr != fd00:ec2::254 drop
    }
}
"""


def test_routes_are_repaired_although_their_gateway_cannot_be_asked() -> None:
    with running(Spec.aws(interfaces=2, addresses=2)) as lab:
        settle(lab)
        lab.run(["nft", "-f", "-"], stdin=DENY)
        [link] = [each for each in status(lab)["links"].values() if each["name"] == lab.nics[1].name]
        lab.run(["ip", "neigh", "flush", "dev", lab.nics[1].name])
        lab.run(["ip", "route", "flush", "table", str(link["table"])])
        lab.wait_for(lambda: status(lab)["counters"]["drift_repaired"] > 0, 15, "the routes to be repaired")
        settle(lab)
        assert status(lab)["last_error"] is None
        assert all(lab.reachability().values())
