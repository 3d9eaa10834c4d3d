"""Runs in the instance, `python -m bench.inside.steps ROUNDS`: the steps of a pass one by one, milliseconds as JSON."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cloud_network.fetcher import config as configuration
from cloud_network.fetcher.metadata.detect import detect, read_firmware
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.matching import match_links, with_leases
from cloud_network.fetcher.network.plan import plan
from cloud_network.netagent import protocol, request_policy, settings
from cloud_network.netagent.kernel import Kernel
from cloud_network.netagent.operations import operation_from_wire
from cloud_network.netagent.view import OutsideState, Snapshot, View
from pyroute2 import IPRoute


def dump_everything() -> None:
    """Dump the objects of `kernel.read` with pyroute2 alone, without converting them to values."""
    with IPRoute() as ip:
        for question in (ip.link, ip.addr):
            list(question("dump"))
        for family in (socket.AF_INET, socket.AF_INET6):
            list(ip.route("dump", family=family))
            list(ip.rule("dump", family=family))
        list(ip.neigh("dump", family=socket.AF_INET6))


def measure(rounds: int) -> dict[str, list[float]]:
    """Return {step: milliseconds of each round}."""
    config = configuration.load(configuration.PATH)
    provider = detect(config.provider, read_firmware())
    provider.client.kinds = config.allow_kinds
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    operator, known, netlink = settings.load(), OutsideState(settings.resolvers()[0]), Kernel(opened)
    found = defaultdict[str, list[float]](list)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        found[step].append((time.perf_counter() - began) * 1e3)

    for _ in range(rounds):
        with timed("metadata"):
            instance = provider.fetch()
        with timed("kernel read"):
            actual = kernel.read()
        with timed("bare dumps"):
            dump_everything()
        with timed("planning"):
            matches = match_links(instance, config, actual.links)
            leased = with_leases(instance, matches, actual)
            changes = plan(desired(leased, matches, config, actual), actual, may_remove=True)
        with timed("wire"):
            ops = [op.to_wire() for op in changes]
            for at in range(0, max(1, len(ops)), protocol.MAX_OPS):
                protocol.encode({"request": "apply", "id": "0", "ops": ops[at : at + protocol.MAX_OPS]})
        with timed("netagent's kernel read"):
            found_now = (
                tuple(netlink.links()),
                tuple(netlink.addresses()),
                tuple(netlink.routes()),
                tuple(netlink.rules()),
            )
            view = View(Snapshot(*found_now, netlink.routers()), operator, known)
        with timed("netagent's checks"):
            request_policy.check_for_apply([operation_from_wire(op) for op in ops], view)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
