"""fetcher/kernel.py against its oracle: pyroute2 reads the same messages, and the same kernel, to the same values."""

from __future__ import annotations

import json
import pickle
import socket
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.network.rtnetlink import Rtnetlink, attributes
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tests.lab import Lab, Spec
from tests.unit.fetcher import by_pyroute2

byte, index = st.integers(0, 255), st.integers(1, 2**31 - 1)
tables = st.sampled_from([0, 252, 253, 254, 255, 256, 10002, 2**32 - 1])
protocols = st.sampled_from([0, 2, 3, 9, 16, 66, 209])
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_é", min_size=1, max_size=7)
families = st.sampled_from([2, 10])


def addresses(family: int) -> st.SearchStrategy[str]:
    number, kind = (
        (st.integers(1, 2**32 - 1), IPv4Address) if family == 2 else (st.integers(1, 2**128 - 1), IPv6Address)
    )
    return number.map(lambda value: str(kind(value)))


def networks(family: int) -> st.SearchStrategy[tuple[str, int]]:
    """(address, length) without bits beyond it, as the kernel keeps a destination."""
    pair = st.tuples(addresses(family), st.integers(1, 32 if family == 2 else 128))
    return pair.map(lambda given: (str(ip_network("/".join(map(str, given)), strict=False).network_address), given[1]))


def encoded(kind: Any, header: dict[str, int], attributes: list[tuple[str, Any]]) -> tuple[bytes, Any]:
    """A message's body, and what pyroute2 reads in it."""
    message = kind()
    message.update(header)
    message["attrs"] = attributes
    message.encode()
    read = kind(bytes(message.data))
    read.decode()
    return bytes(message.data)[16:], read


def some(draw: st.DrawFn, attributes: dict[str, st.SearchStrategy[Any]]) -> list[tuple[str, Any]]:
    """Any of them in any order."""
    chosen = draw(st.lists(st.sampled_from(sorted(attributes)), unique=True))
    return [(name, draw(attributes[name])) for name in chosen]


@st.composite
def links(draw: st.DrawFn) -> tuple[bytes, Any]:
    header = {"index": draw(index), "flags": draw(st.integers(0, 2**32 - 1)), "ifi_type": draw(st.integers(0, 65535))}
    kind = names.map(lambda name: {"attrs": [("IFLA_INFO_KIND", name)]})
    rest = {"IFLA_ADDRESS": st.sampled_from(["02:00:00:00:00:0A", "fe:54:00:12:34:56"]), "IFLA_MASTER": index}
    rest |= {"IFLA_LINKINFO": kind, "IFLA_QDISC": names, "IFLA_GROUP": index, "IFLA_CARRIER": byte}
    attributes = [("IFLA_IFNAME", draw(names)), *some(draw, rest), ("IFLA_MTU", draw(st.integers(0, 2**32 - 1)))]
    return encoded(ifinfmsg, header, attributes)


@st.composite
def addressed(draw: st.DrawFn) -> tuple[bytes, Any]:
    family = draw(families)
    header = {"family": family, "prefixlen": draw(st.integers(0, 32)), "flags": draw(byte), "index": draw(index)}
    rest = {"IFA_LOCAL": addresses(family), "IFA_FLAGS": st.integers(1, 2**32 - 1), "IFA_PROTO": protocols}
    attributes = [("IFA_ADDRESS", draw(addresses(family))), *some(draw, rest | {"IFA_LABEL": names})]
    return encoded(ifaddrmsg, header, attributes)


@st.composite
def routes(draw: st.DrawFn) -> tuple[bytes, Any]:
    family, table = draw(families), draw(tables)
    destination = draw(st.none() | networks(family))
    header = {"family": family, "dst_len": destination[1] if destination else 0, "proto": draw(protocols)}
    header |= {"type": draw(st.integers(0, 12)), "scope": draw(byte), "table": table if table < 256 else 252}
    attributes = [("RTA_DST", destination[0])] if destination else []
    rest = {"RTA_OIF": index, "RTA_GATEWAY": addresses(family), "RTA_PRIORITY": index, "RTA_PREFSRC": addresses(family)}
    attributes += some(draw, rest | ({"RTA_TABLE": st.just(table)} if table < 256 else {}))
    return encoded(rtmsg, header, attributes if table < 256 else [*attributes, ("RTA_TABLE", table)])


@st.composite
def rules(draw: st.DrawFn) -> tuple[bytes, Any]:
    family, table = draw(families), draw(tables)
    header = {"family": family, "table": table if table < 256 else 252, "action": draw(st.integers(0, 8))}
    attributes: list[tuple[str, Any]] = [("FRA_TABLE", table)]
    for key, length in (("FRA_SRC", "src_len"), ("FRA_DST", "dst_len")):
        if draw(st.booleans()):
            text, header[length] = draw(networks(family))
            attributes.append((key, text))
    rest = {"FRA_PRIORITY": index, "FRA_PROTOCOL": st.sampled_from([0, 2, 209]), "FRA_FWMARK": index}
    rest |= {"FRA_SUPPRESS_PREFIXLEN": st.sampled_from([0, 1, 2**32 - 1]), "FRA_IIFNAME": names, "FRA_L3MDEV": byte}
    return encoded(fibmsg, header, [*attributes, *some(draw, rest)])


@given(links())
def test_a_link(message: tuple[bytes, Any]) -> None:
    assert kernel.parse_link(message[0]) == by_pyroute2.link(message[1])


@given(addressed())
def test_an_address(message: tuple[bytes, Any]) -> None:
    assert kernel.parse_address(message[0]) == by_pyroute2.address(message[1])


@given(routes())
def test_a_route(message: tuple[bytes, Any]) -> None:
    assert kernel.parse_route(message[0]) == by_pyroute2.route(message[1])


@given(rules())
def test_a_rule(message: tuple[bytes, Any]) -> None:
    assert kernel.parse_rule(message[0]) == by_pyroute2.rule(message[1])


def test_what_else_the_kernel_says_in_a_type_is_not_its_number() -> None:
    """NLA_F_NESTED and NLA_F_NET_BYTEORDER of linux/netlink.h."""
    assert attributes(b"\x08\x00\x12\x80abcd\x06\x00\x03\x40ef\x00\x00", 0) == {18: b"abcd", 3: b"ef"}


# The real kernel

BOTH = f"""
import pickle, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from cloud_network.fetcher.network import kernel
from tests.unit.fetcher import by_pyroute2
print(pickle.dumps((kernel.read(), by_pyroute2.read()), 0).decode())
"""
OURS = """
from pyroute2 import IPRoute
with IPRoute() as ipr:  # Debian's ip cannot set IFA_PROTO
    ipr.addr("add", index=ipr.link_lookup(ifname="br0")[0], address="172.17.0.3", prefixlen=32, proto=209)
"""
OF_ALL_KINDS = (
    "link add br0 type bridge",
    "link add up0 type veth peer name up1",
    "link set up0 master br0",
    "link set up0 up",
    "link set br0 up",
    "tuntap add tun9 mode tun",
    "link set eth1 up",
    "address add 172.17.0.1/16 dev br0",
    "address add 172.17.0.2/32 dev br0 noprefixroute",
    "address add 10.200.0.1 peer 10.200.0.2/32 dev br0",
    "address add fd00:17::1/64 dev br0 nodad",
    "address add 172.18.0.9/24 dev br0 valid_lft 1000 preferred_lft 900",
    "route add default via 172.17.0.9 dev br0 table 777 proto 209",
    "-6 route add default via fd00:17::9 dev br0 table 70000 proto 209",
    "route add 10.61.0.0/16 dev br0 table 777 proto bird",
    "-6 route add fd61::/48 dev br0 table 778 proto 66",
    "route add 10.62.0.0/16 nexthop via 172.17.0.3 dev br0 nexthop via 172.17.0.4 dev br0",
    "route add 10.63.0.0/16 table 777 proto 209 nexthop via 172.17.0.3 dev br0 nexthop via 172.17.0.4 dev br0",
    "route add blackhole 10.64.0.0/16 proto 209",
    "route add prohibit 10.65.0.0/16 table 779",
    "-6 route add unreachable fd65::/48",
    "route add 10.66.0.0/16 via 172.17.0.5 dev br0 proto dhcp metric 100",
    "route add 10.67.0.0/16 dev br0 proto dhcp mtu 1400 advmss 1300",
    "route add default via 172.17.0.6 dev br0 proto dhcp metric 300",
    "route add default via 172.17.0.7 dev br0 proto dhcp metric 301",
    "-6 route add default via fd00:17::6 dev br0 proto ra metric 300",
    "-6 route add fd67::/64 dev br0 proto kernel expires 3600",
    "route add local 10.68.0.0/24 dev br0 table local proto 66",
    "route add local 10.69.0.0/24 dev br0 table local proto 209",
    "-6 route add local fd68::/64 dev lo table local proto 66",
    "rule add pref 31000 from 172.17.0.2 lookup 777 suppress_prefixlength 0 protocol 209",
    "rule add pref 31001 from 172.17.0.5/24 lookup 777 protocol 209",
    "rule add pref 31002 from 10.0.0.0/8 to 10.1.0.0/16 lookup 70000 protocol 209",
    "rule add pref 31003 to 10.1.0.0/16 lookup 255 protocol 209",
    "rule add pref 31004 fwmark 0x10/0xf0 lookup 777 suppress_prefixlength 2 protocol 209",
    "rule add pref 31005 iif br0 lookup 777",
    "-6 rule add pref 31000 from fd00:17::1 lookup 777 protocol 209",
    "-6 rule add pref 31010 from all lookup main suppress_prefixlength 0 protocol 209",
    "rule add pref 31006 from 10.0.0.0/8 blackhole protocol 209",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=3)) as made:
        yield made


def both(lab: Lab) -> tuple[Actual, Actual]:
    found: tuple[Actual, Actual] = pickle.loads(lab.run([sys.executable, "-c", BOTH]).stdout.encode())
    return found


def test_a_kernel_with_something_of_every_kind(lab: Lab) -> None:
    for line in OF_ALL_KINDS:
        lab.run(["ip", *line.split()])
    lab.run([sys.executable, "-c", OURS])
    ours, theirs = both(lab)
    assert ours == theirs
    assert [str(address) for (_, address), each in ours.addresses.items() if each.owned] == ["172.17.0.3"]
    assert len(ours.links) > 4
    assert len(ours.rules) == 8
    assert {len(each) for each in ours.gateways.values()} >= {3}
    assert len(ours.foreign) >= 3


SINCE = """
import json, subprocess
from cloud_network.fetcher.network import kernel
reader = kernel.Reader()
def said():
    found = reader.read()
    assert found == kernel.read(), "what is known to it makes no difference"
    assert reader.read() is found, "nothing has changed since"
    links = [str(each.ifindex == 1) for each in found.routes if each.table == 779]
    return [len(found.addresses), len(found.routes), len(found.rules), "".join(links)]
def ip(text): subprocess.run(["ip", *text.split()], check=True)
seen = [said()]
for text in (
    "address add 10.55.0.1/32 dev lo", "rule add pref 31099 from 10.55.0.1 lookup 779 protocol 209",
    "route add 10.55.1.0/24 dev lo table 779 proto 209", "route replace 10.55.1.0/24 dev eth1 table 779 proto 209",
    "route del 10.55.1.0/24 table 779",
    "rule del pref 31099 from 10.55.0.1 lookup 779 protocol 209", "address del 10.55.0.1/32 dev lo",
):
    ip(text)
    seen.append(said())
print(json.dumps(seen))
"""


def test_what_was_read_before_is_no_longer_said_when_it_is_gone_and_what_is_new_is(lab: Lab) -> None:
    """What messages were parsed to is kept from one look to the next: the same process looks after every change."""
    seen = json.loads(lab.run([sys.executable, "-c", SINCE]).stdout)
    steps = [(*(now - before for now, before in zip(each[:3], seen[0], strict=False)), each[3]) for each in seen]
    assert steps == [
        (0, 0, 0, ""), (1, 0, 0, ""), (1, 0, 1, ""), (1, 1, 1, "True"), (1, 1, 1, "False"), (1, 0, 1, ""),
        (1, 0, 0, ""), (0, 0, 0, ""),
    ]  # fmt: skip


RESTLESS = """
import subprocess, sys
from cloud_network.fetcher.network import rtnetlink
class Restless(rtnetlink.Rtnetlink):
    # after the first datagram of a dump somebody adds an address, so many times
    times, dumps = int(sys.argv[1]), 0
    def _send(self, *arguments):
        self.dumps, self.datagrams = self.dumps + 1, 0
        super()._send(*arguments)
    def _receive(self):
        self.datagrams += 1
        if self.datagrams == 2 and self.times:
            self.times -= 1
            subprocess.run(f"ip address add 10.78.0.{self.times}/32 dev lo".split(), check=True)
        return super()._receive()
try:
    with Restless() as kernel:
        print(len(kernel.dump(rtnetlink.RTM_GETADDR, bytes([2, *bytes(7)]))), kernel.dumps)
except InterruptedError as error:
    print(error, kernel.dumps)
"""


def test_a_dump_into_which_a_change_falls_is_taken_again(lab: Lab) -> None:
    before = lab.run(["ip", "-4", "address"]).stdout.count("inet ")
    lab.batch([f"address add 10.77.{number >> 8}.{number & 255}/32 dev lo" for number in range(4000)])
    assert lab.run([sys.executable, "-c", RESTLESS, "0"]).stdout.split() == [str(before + 4000), "1"]
    assert lab.run([sys.executable, "-c", RESTLESS, "2"]).stdout.split() == [str(before + 4002), "3"]
    lab.batch(["address del 10.78.0.0/32 dev lo", "address del 10.78.0.1/32 dev lo"])
    said = lab.run([sys.executable, "-c", RESTLESS, "99"]).stdout
    assert said == "[Errno 4] dump 22 interrupted by changes 5 times 5\n"
    lab.run(["ip", "address", "flush", "dev", "lo", "to", "10.76.0.0/14"])


def test_a_reader_goes_on_after_an_error(lab: Lab) -> None:
    program = """
import errno
from cloud_network.fetcher.network import kernel, rtnetlink
reader = kernel.Reader()
before, whole = reader.read(), rtnetlink.Rtnetlink._receive
def lost(self):
    whole(self)  # and what comes behind it stays in the socket
    raise OSError(errno.ENOBUFS, "lost")
rtnetlink.Rtnetlink._receive = lost
try:
    reader.read()
except kernel.KernelError as error:
    print(error)
rtnetlink.Rtnetlink._receive = whole
print(reader.read() is before)
"""
    said = lab.run([sys.executable, "-c", program]).stdout.splitlines()
    assert said == ["rtnetlink: [Errno 105] lost", "True"]


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x40\x00\x00\x00\x20\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00" + bytes(12),  # says more than there is
        b"\x00\x00\x00\x00\x20\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00",  # a length that leads nowhere
        b"\x10\x00\x00",
        (b"\x00\x80\x00\x00\x20\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00" + bytes(32752))
        * 4,  # larger than the buffer
    ],
)
def test_a_datagram_that_is_not_whole_is_an_error(datagram: bytes) -> None:
    with Rtnetlink() as kernel:
        kernel._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kernel._socket.setblocking(False)
        with other:
            other.send(datagram)
            with pytest.raises(OSError, match="not whole"):
                kernel.dump(34, bytes(12))
